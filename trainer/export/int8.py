"""Writes int8 models: weights and activations are 8-bit integers, whose ranges come from training images.

    images = calibration_images(trained, dataset)
    write_int8("onnx", model, Path("float32/model.onnx"), images, Path("model.onnx"))

Input and output are those of `formats`: pixels in uint8, probabilities in float32. Batch normalization becomes part of
the convolution before it. Layers that normalize with the statistics of the image (group, instance and layer
normalization) stay in float32, because variances range over several orders of magnitude, and so does the softmax of the
output, whose probabilities would be multiples of 1/256.
"""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.open import Dataset, Split
from convoy.input_pipeline.reading.decode import Crop, resize
from convoy.input_pipeline.reading.order import permute
from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.export.formats import ServingModel, add_labels, add_metadata, litert_converter, without_output
from convoy.trainer.export.onnx_names import rename
from convoy.trainer.session.restore import TrainedRun
from convoy.trainer.tf_compat.layers import inner_layers
from convoy.trainer.tf_compat.litert import quantize_calibrated

_SPLIT = "train"
_NUM_IMAGES = 256
_FLOAT32_LAYERS = (
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
)
# What computes most, and what moves or selects values. Arithmetic of single values stays in float32, as it is in
# normalization.
_ONNX_OPERATIONS = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool", "MaxPool", "Relu", "Clip"),
    *("Concat", "Flatten", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)


@dataclass(frozen=True)
class CalibrationImages:
    """Training images as evaluation sees them, without augmentation.

    Iterating decodes them, one at a time: [size, size, 3] uint8.
    """

    split: Split
    numbers: np.ndarray
    crop: Crop

    def __len__(self) -> int:
        """How many they are."""
        return len(self.numbers)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the images; raises a DataError if a record cannot be used."""
        with contextlib.closing(Reader(self.split, self.crop)) as reader:
            for number in self.numbers[:, np.newaxis]:
                (image,) = reader.images(number)
                yield resize(tf.constant(image), self.crop).numpy()


def calibration_images(trained: TrainedRun, dataset: Dataset) -> CalibrationImages:
    """Returns 256 training images, or all if there are fewer, drawn with the run's seed.

    Raises:
      DataError: the dataset has no training split, or it cannot be used.
    """
    if _SPLIT not in dataset.splits:
        raise DataError(
            f"--quantize=int8: {dataset.directory} has no split {_SPLIT!r}, whose images determine the ranges of int8 "
            f"(it has: {', '.join(dataset.splits)}). Pass a dataset that has one with --data=DATA."
        )
    split = dataset.split(_SPLIT)
    positions = np.arange(min(_NUM_IMAGES, split.num_images))
    numbers = permute(positions, num_images=split.num_images, seed=trained.config.seed, epoch=0)
    return CalibrationImages(split, numbers, trained.crop)


def write_int8(
    file_format: str, model: ServingModel, float32_file: Path, images: CalibrationImages, path: Path
) -> None:
    """Writes a model in int8, without console output.

    Args:
      file_format: one of `request.QUANTIZABLE`.
      model: the model.
      float32_file: what `formats.write` wrote.
      images: the calibration images.
      path: the file to create.

    Raises:
      DataError: a calibration image cannot be read.
      OSError: the file cannot be written.
      Exception: of any type; the model cannot be quantized.
    """
    if file_format == "litert":
        without_output(lambda: _litert(model, images, path))
    else:
        without_output(lambda: _onnx(model, float32_file, images, path))


def _litert(model: ServingModel, images: CalibrationImages, path: Path) -> None:
    converter = litert_converter(model, tf.float32)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: _whole_range(images)
    path.write_bytes(quantize_calibrated(converter, _stays_float32(model)))
    add_labels(model, path)


def _whole_range(images: CalibrationImages) -> Iterator[list[np.ndarray]]:
    """Yields the images as input tensors; the first has a black and a white pixel.

    So the range of the input is [0, 255], and integer pixels stand for themselves.
    """
    for number, image in enumerate(images):
        image = image[np.newaxis].astype(np.float32)
        if number == 0:
            image[0, 0, :2] = [[0], [255]]
        yield [image]


def _onnx(model: ServingModel, float32_file: Path, images: CalibrationImages, path: Path) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._images, None)
            return None if image is None else {"images": image[np.newaxis]}

    with tempfile.TemporaryDirectory(prefix="convoy-") as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(str(float32_file), prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            str(path),
            Images(),
            op_types_to_quantize=_ONNX_OPERATIONS,
            per_channel=True,
            reduce_range=True,  # 8-bit weights overflow on CPUs without VNNI
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    quantized = onnx.load(path)
    rename(quantized.graph)
    onnx.save(quantized, path)
    add_metadata(model, path)


def _stays_float32(model: ServingModel) -> Callable[[str], object]:
    """Returns a predicate of the names of operations: TensorFlow puts the layer's name before them."""
    names = [re.escape(layer.name) for layer in inner_layers(model.model) if isinstance(layer, _FLOAT32_LAYERS)]
    return re.compile(rf"(?:^|[/;])(?:{'|'.join(names) or '(?!)'})(?:_\d+)?/").search
