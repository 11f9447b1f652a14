import pytest

from convoy.trainer.measurement.peaks import PEAKS, known_peak

# As `nvidia-smi` prints them; TFLOP/s in half precision.
NAMES = {
    "NVIDIA GB300": 2500,
    "NVIDIA B300 SXM6 AC": 2250,
    "NVIDIA GB200": 2500,
    "NVIDIA B200": 2250,
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA GH200 480GB": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H20": 148,
    "NVIDIA H20-3e": 148,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A40": 149.7,
    "NVIDIA A30": 165,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA L40S": 362,
    "NVIDIA L4": 121,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5090": 209.5,
    "Tesla V100S-PCIE-32GB": 130,
    "Tesla V100-PCIE-32GB": 112,
    "Tesla V100-SXM2-16GB": 125,
    "Tesla T4": 65,
}
UNKNOWN = [
    "NVIDIA A1000",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 5090 Laptop GPU",
    "NVIDIA RTX A600",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_half_precision_peak_of_a_gpu_is_found_by_its_name(name):
    peak = known_peak(name, "float16")
    assert peak == pytest.approx(1e12 * NAMES[name])
    assert known_peak(name, "bfloat16") == (None if name.startswith("Tesla") else peak)


def test_every_gpu_of_the_table_is_found():
    halves = {peak.half for peak in PEAKS}
    assert halves == set(NAMES.values())


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_names_have_no_peak(name):
    assert known_peak(name, "float16") is known_peak(name, "float32") is None


def test_float32_is_tf32_where_the_gpu_has_it():
    assert known_peak("NVIDIA A100-SXM4-40GB", "float32") == 156e12  # TensorFlow's default
    assert known_peak("Tesla V100-SXM2-16GB", "float32") == 15.7e12


def test_the_figures_are_dense():
    # Tensor cores compute half-precision products at twice the rate of TF32. A sparse figure beside a dense one, or a
    # rate with float16 sums, would show as a ratio of 4 or 1.
    for peak in PEAKS:
        if peak.tf32:
            assert peak.half / peak.tf32 == pytest.approx(2, rel=0.02), peak
