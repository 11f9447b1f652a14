"""Peak FLOP/s of known GPUs, by the name that their driver reports.

known_peak("NVIDIA A100-SXM4-40GB", "bfloat16")        # 312e12; None for a device that is not in the table
"""

import re
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Peak:
    """Dense peaks of a GPU in TFLOP/s: without structured sparsity, which doubles the figures of some data sheets.

    Half-precision products are those that accumulate in float32, as TensorFlow's do: on GeForce GPUs they have half the
    rate of those that accumulate in float16.

    Attributes:
      name: regular expression for a part of the name that the driver reports.
      source: data sheet or white paper of NVIDIA.
      half: bfloat16 and float16 products; float16 only where `tf32` is None, as on GPUs before Ampere.
      tf32: float32 products in TensorFloat-32; None if the GPU has none.
      float32: float32 products without it.
    """

    name: str
    source: str
    half: float
    tf32: float | None
    float32: float


# The first matching name counts, so specific ones come first. Laptop GPUs and other variants of GeForce GPUs, whose
# names go on after the number, are slower.
PEAKS = (
    Peak(r"\bGB300\b", "GB300 NVL72", 2500, 1250, 80),
    Peak(r"\bB300\b", "HGX B300", 2250, 1125, 75),
    Peak(r"\bGB200\b", "GB200 NVL72", 2500, 1250, 80),
    Peak(r"\bB200\b", "HGX B200", 2250, 1125, 75),
    Peak(r"\bH200 NVL\b", "H200 data sheet, H200 NVL", 835, 418, 60),
    Peak(r"\bG?H200\b", "H200 data sheet, H200 SXM", 989, 494, 67),
    Peak(r"\bH100 PCIe\b", "H100 data sheet, H100 PCIe", 756, 378, 51),
    Peak(r"\bH100 NVL\b", "H100 data sheet, H100 NVL", 835, 418, 60),
    Peak(r"\bH100\b", "H100 data sheet, H100 SXM", 989, 494, 67),
    Peak(r"\bH20\b", "HGX H20", 148, 74, 44),
    Peak(r"\bA100\b", "A100 data sheet", 312, 156, 19.5),
    Peak(r"\bA40\b", "A40 data sheet", 149.7, 74.8, 37.4),
    Peak(r"\bA30\b", "A30 data sheet", 165, 82, 10.3),
    Peak(r"\bA10\b", "A10 data sheet", 125, 62.5, 31.2),
    Peak(r"\bA10G\b", "A10G data sheet, for AWS", 70, 35, 35),
    Peak(r"\bL40S\b", "L40S data sheet", 362, 183, 91.6),
    Peak(r"\bL4\b", "L4 data sheet", 121, 60, 30.3),
    Peak(r"\bRTX A6000\b", "GA102 white paper, RTX A6000", 154.8, 77.4, 38.7),
    Peak(r"\bRTX 3090$", "GA102 white paper, GeForce RTX 3090", 71, 35.6, 35.6),
    Peak(r"\bRTX 4090$", "Ada white paper, GeForce RTX 4090", 165.2, 82.6, 82.6),
    Peak(r"\bRTX 5090$", "RTX Blackwell white paper, GeForce RTX 5090", 209.5, 104.8, 104.8),
    Peak(r"\bV100S-PCIE\b", "V100 data sheet, V100S PCIe", 130, None, 16.4),
    Peak(r"\bV100-PCIE\b", "V100 data sheet, V100 PCIe", 112, None, 14),
    Peak(r"\bV100\b", "V100 data sheet, V100 SXM2", 125, None, 15.7),
    Peak(r"\bT4\b", "T4 data sheet", 65, None, 8.1),
)


def known_peak(device_name: str, precision: str) -> float | None:
    """Returns the peak FLOP/s of a GPU's dense products, or None if it is not in the table.

    Args:
      device_name: as reported by the driver. MIG slices are not in the table.
      precision: float32, bfloat16 or float16.
    """
    peak = next((peak for peak in PEAKS if re.search(peak.name, device_name)), None)
    if peak is None or "MIG" in device_name:
        return None
    if precision == "float32":
        in_tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
        return 1e12 * (peak.tf32 if in_tf32 and peak.tf32 else peak.float32)
    return None if precision == "bfloat16" and not peak.tf32 else 1e12 * peak.half
