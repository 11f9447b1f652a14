#!/usr/bin/env bash
# The basic workflow on generated images: install, sample, convert, train, evaluate, predict.
#
#   ./launch/demo.sh [FOLDER]        # FOLDER: for all output; default: demo/ in the checkout
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
demo="${1:-$checkout/demo}"
mkdir -p "$demo"
demo="$(cd "$demo" && pwd)"
epochs="${CONVOY_DEMO_EPOCHS:-30}"

heading() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# Two devices: two GPUs, or two logical CPU devices without a GPU. A single GPU computes both virtual replicas.
case "$(nvidia-smi --list-gpus 2>/dev/null | wc -l)" in
  0) devices="cpu:2" extras="" ;;
  1) devices="gpu:0" extras="[cuda]" ;;
  *) devices="gpu:0,1" extras="[cuda]" ;;
esac

heading "1/6 Installing Convoy into $checkout/.venv"
"$checkout/launch/install.sh" "$checkout/.venv" "$extras"
export PATH="$checkout/.venv/bin:$PATH"

rm -rf "$demo/photos" "$demo/data" "$demo/run"

heading "2/6 Generating sample images: 42 categories"
convoy sample --output="$demo/photos"

heading "3/6 Converting them to TFRecords"
convoy convert --images="$demo/photos/train" --manifest="$demo/photos/train.csv" --output="$demo/data"
convoy convert --images="$demo/photos/test" --manifest="$demo/photos/test.csv" --output="$demo/data" --split=test

heading "4/6 Training on --devices=$devices"
convoy train --config=convnet_fast --data="$demo/data" --workdir="$demo/run" --devices="$devices" \
  --config.virtual_replicas=2 --config.epochs="$epochs" --config.eval_every_epochs=3

heading "5/6 Evaluating on held-out images"
convoy evaluate --workdir="$demo/run" --split=train --devices="$devices"
evaluation="$(convoy evaluate --workdir="$demo/run" --split=test --devices="$devices")"
echo "$evaluation"

heading "6/6 Predicting a category for every test image"
convoy predict --workdir="$demo/run" --images="$demo/photos/test" --manifest="$demo/photos/test.csv" \
  --output="$demo/predictions.csv" --devices="$devices"

heading "Done"
cat <<END
Accuracy on the test images:
  $(grep -o 'top-1 [^ ]*  top-5 [^ ]*' <<<"$evaluation")

Files:
  $demo/photos             the sample images
  $demo/data               TFRecord shards, index, manifest
  $demo/run                checkpoints, metrics.jsonl, results.csv, result.json
  $demo/run/report.html    accuracy, error analysis, suggestions
  $demo/run/MODEL_CARD.md  model card
  $demo/run/curves.png     training and validation curves
  $demo/predictions.csv    filename,category

TensorBoard:
  $checkout/.venv/bin/tensorboard --logdir $demo/run/tensorboard
END
