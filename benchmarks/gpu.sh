#!/usr/bin/env bash
# Everything about GPUs in one command, on a bare machine with an NVIDIA driver: installs Convoy, runs the tests that
# need GPUs, measures, and writes docs/results/gpu.md and the JSON files beside it.
#
#   benchmarks/gpu.sh                      # about an hour on one GPU
#   benchmarks/gpu.sh --wheels=DIR         # install from a folder of wheels, offline (`pip download`)
#   benchmarks/gpu.sh --python=PYTHON      # use an environment that has Convoy already, install nothing
#   benchmarks/gpu.sh --output=DIR         # folder for all results, by default gpu-results
#   benchmarks/gpu.sh --tiny               # tries everything out in a few minutes on the CPU; writes no page into docs
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
wheels="" python="" output="gpu-results" tiny=""
for argument in "$@"; do
  case "$argument" in
    --wheels=*) wheels="$(realpath "${argument#*=}")" ;;
    --python=*) python="$(realpath --no-symlinks "$(command -v "${argument#*=}")")" ;;
    --output=*) output="${argument#*=}" ;;
    --tiny) tiny=yes ;;
    *) echo "gpu.sh: unknown argument $argument. Known: --wheels=DIR --python=PYTHON --output=DIR --tiny" >&2; exit 2 ;;
  esac
done
mkdir -p "$output"
output="$(realpath "$output")"
cd "$checkout"

if [ -z "$python" ]; then
  if [ "$(uname -m)" = aarch64 ]; then
    echo "gpu.sh: TensorFlow's wheels for Arm have no CUDA. Pass --python=PYTHON of NVIDIA's TensorFlow container," \
      "with Convoy installed." >&2
    exit 2
  fi
  # PIP_* reach the pip of the new environment too.
  [ -z "$wheels" ] || export PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheels"
  launch/install.sh .venv-gpu '[cuda,test]'
  python=.venv-gpu/bin/python
  # In an environment of its own: its CUDA libraries have the same folders as TensorFlow's.
  if launch/install.sh .venv-gpu-torch && .venv-gpu-torch/bin/python -m pip install --quiet torch torchvision; then
    export CONVOY_BENCH_TORCH="$PWD/.venv-gpu-torch/bin/python"
  else
    echo "gpu.sh: PyTorch cannot be installed and is left out."
  fi
fi
export PYTHONPATH="$checkout"

if [ -n "$tiny" ]; then
  export CUDA_VISIBLE_DEVICES=-1
  device=cpu page="$output/gpu.md" gpu=(--rounds=1 --steps_per_round=1 --image_size=32 --batch_size=4 --most_devices=2)
  gpu+=(--peers=fit,torch,convoy,convoy-on-2 --models=baseline_cnn)
  input=(--rounds=1 --round_seconds=0.05 --batch_size=8 --peers=decode,reader) count=200
else
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$output/nvidia-smi.txt"
  device=gpu page=docs/results/gpu.md gpu=(--rounds=5 --steps_per_round=50)
  input=(--peers=decode,reader,reader-disk,crops) count=4000
fi

convoy=("$python" -m convoy)
"${convoy[@]}" doctor --devices="$device" 2>&1 | tee "$output/doctor.txt" || echo "gpu.sh: the doctor found problems."
"$python" -m pytest -q -m gpu tests/gpu --junitxml="$output/tests.xml" || echo "gpu.sh: not all tests passed."
"${convoy[@]}" bench gpu --device="$device" "${gpu[@]}" --json="$output/gpu.json"
for size in 64 224; do # the image sizes of the models: whole JPEGs of 64x64, and larger ones that are resized
  case "$size" in
    64) images=(--small="$count" --medium=0 --large=0) ;;
    *) images=(--small=0 --medium=0 --large="$((count / 10))") ;;
  esac
  "${convoy[@]}" bench input "${images[@]}" "${input[@]}" --image_size="$size" --json="$output/input-$size.json"
done
"$python" -m benchmarks.gpu_page "$output" "$page"
