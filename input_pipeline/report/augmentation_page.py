"""The page of `convoy augment`: a recipe's pipeline applied to an image, and every operation at three strengths.

    page = augmentation_page(images, names, text="crop | flip | trivial", recipe="convnet", crop=Crop(64), seed=0)
    Path("augment.html").write_bytes(page.encode())

The page is one self-contained file without scripts. It depends on the arguments only.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from convoy.core.html.templates import page_template
from convoy.input_pipeline.augment import policies
from convoy.input_pipeline.augment.apply import on_device, on_host
from convoy.input_pipeline.augment.checks import check_operations
from convoy.input_pipeline.augment.pipeline import AugmentPipeline, Operation, parse_pipeline
from convoy.input_pipeline.augment.signatures import CROP_DRAWS, OPERATIONS, Parameter, Signature, Value
from convoy.input_pipeline.reading import decode as cropping
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.order import image_randomness
from convoy.input_pipeline.report.pictures import SIDE, data_uri

_DRAWINGS = 16
_QUALITY = 85
_MOST = 1 - 2**-24  # the largest random number
_MIDDLE = 0.5

# Arguments of each operation at low, medium and high strength, and the random numbers that are used.
_EXAMPLES: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "crop": (("scale=0.7..0.7", "scale=0.4..0.4", "scale=0.1..0.1"), ()),
    "flip": (("1",), (0.0,)),
    "translate": (("0.1", "0.25", "0.5"), (_MOST, _MOST)),
    "rotate": (("10", "30", "90"), (_MOST,)),
    "shear": (("0.1", "0.3", "0.6"), (_MOST, _MIDDLE)),
    "brightness": (("0.1", "0.3", "0.6"), (_MOST,)),
    "contrast": (("0.3", "0.6", "0.9"), (0.0,)),
    "saturation": (("0.3", "0.6", "1"), (0.0,)),
    "hue": (("0.05", "0.15", "0.4"), (_MOST,)),
    "posterize": (("5, 1", "3, 1", "1, 1"), (0.0,)),
    "solarize": (("192, 1", "128, 1", "32, 1"), (0.0,)),
    "sharpness": (("0.3", "0.6", "1"), (_MOST,)),
    "equalize": (("1",), (0.0,)),
    "autocontrast": (("1",), (0.0,)),
    "trivial": ((), ()),
    "rand": (("1, 9", "2, 9", "2, 20"), ()),
    "erase": (
        ("1, area=0.05..0.05", "1, area=0.15..0.15", "1, area=0.33..0.33"),
        (0.0, _MIDDLE, _MIDDLE, _MIDDLE, _MIDDLE),
    ),
}
_UNITS = {"move_x": "pixels", "move_y": "pixels", "degrees": "degrees", "posterize": "bits", "solarize": "from"}
_STRENGTHS = (10, 20, 30)


def augmentation_page(
    images: Sequence[np.ndarray], names: Sequence[str], *, text: str, recipe: str, crop: Crop, seed: int
) -> str:
    """Returns the page, HTML.

    Args:
      images: one or more images, each [height, width, 3] uint8, uncropped. The pipeline is applied to the first.
      names: names of their classes.
      text: the pipeline, `config.augment.ops`.
      recipe: name of the recipe.
      crop: how training resizes whole images.
      seed: seed of the run. The page shows image 0 as training sees it in its first epochs.

    Raises:
      UsageError: the pipeline cannot be parsed, or a user's operation is not a pure function.
    """
    pipeline = parse_pipeline(text, image_size=crop.size)
    check_operations(pipeline, [crop.size], exact=False)
    numbers = np.arange(len(images))
    randomness = image_randomness(numbers, numbers * 0, seed=seed, draws=CROP_DRAWS + 64)
    added = [operation for operation in (*pipeline.host, *pipeline.device) if operation.added]
    operations = [_added(operation, images, crop, seed) for operation in added]
    operations += [_operation(name, images, randomness, crop) for name in OPERATIONS if _EXAMPLES[name][0]]
    whole = np.stack([cropping.resize(tf.constant(image), crop) for image in images])
    return page_template(Path(__file__).with_name("augmentation.html.j2")).render(
        recipe=recipe,
        text=text,
        image_size=crop.size,
        resize=crop.resize,
        names=list(names),
        originals=_uris(whole),
        drawings=_drawings(images[0], pipeline, crop, seed),
        stages=_stages(pipeline),
        operations=operations,
        sampled=_sampled(whole),
        strengths=_STRENGTHS,
    )


def _drawings(image: np.ndarray, pipeline: AugmentPipeline, crop: Crop, seed: int) -> list[str]:
    epochs = np.arange(_DRAWINGS)
    randomness = image_randomness(epochs * 0, epochs, seed=seed, draws=pipeline.draws)
    return _uris(_augmented([image] * _DRAWINGS, pipeline, randomness, crop))


def _augmented(
    images: Sequence[np.ndarray], pipeline: AugmentPipeline, randomness: np.ndarray, crop: Crop
) -> np.ndarray:
    """Returns the model's input, [n, size, size, 3] uint8, augmented as by reader and step."""
    crop = Crop(crop.size, *pipeline.scale, crop.resize)
    cropped = tf.stack(
        [
            cropping.crop_and_resize(tf.constant(image), draws, crop)
            for image, draws in zip(images, randomness, strict=True)
        ]
    )
    pixels = on_device(on_host(cropped, randomness, pipeline.host), randomness, pipeline.device)
    return np.uint8(np.rint(pixels.numpy()))


def _operation(name: str, images: Sequence[np.ndarray], randomness: np.ndarray, crop: Crop) -> dict[str, Any]:
    arguments, draws = _EXAMPLES[name]
    columns = []
    for argument in arguments:
        pipeline = parse_pipeline(f"{name}({argument})", image_size=crop.size)
        numbers = randomness[:, : pipeline.draws].copy()
        if draws:
            numbers[:, CROP_DRAWS : CROP_DRAWS + len(draws)] = draws
        columns.append((f"{name}({argument})", _uris(_augmented(images, pipeline, numbers, crop))))
    return _row(name, OPERATIONS[name], columns)


def _added(operation: Operation, images: Sequence[np.ndarray], crop: Crop, seed: int) -> dict[str, Any]:
    """Returns the row of a user's operation: its effect in two epochs, with its arguments in the pipeline."""
    arguments = ", ".join(f"{name}={_value(value)}" for name, value in operation.arguments.items())
    pipeline, numbers, columns = AugmentPipeline(device=(replace(operation, first_draw=0),)), np.arange(len(images)), []
    for epoch in range(2):
        randomness = image_randomness(numbers, numbers * 0 + epoch, seed=seed, draws=operation.draws)
        columns.append((f"{operation.name}({arguments})", _uris(_augmented(images, pipeline, randomness, crop))))
    return _row(operation.name, operation.signature, columns)


def _row(name: str, signature: Signature, columns: list[tuple[str, list[str]]]) -> dict[str, Any]:
    return {
        "name": name,
        "about": signature.about,
        "where": "step or reader" if signature.on_device else "reader",
        "parameters": [(parameter.name, _description(parameter)) for parameter in signature.parameters],
        "columns": columns,
    }


def _description(parameter: Parameter) -> str:
    default = parameter.default
    if default is None:
        return parameter.legal
    is_of_run = parameter in OPERATIONS["crop"].parameters and not default
    return f"{parameter.legal}; default {'set by the run' if is_of_run else _value(default)}"


def _value(value: Value) -> str:
    return f"{value[0]:g}..{value[1]:g}" if isinstance(value, tuple) else f"{value:g}"


def _sampled(images: np.ndarray) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Returns (name, [(strength, data URIs)]) of each operation that TrivialAugment samples."""
    space = policies.wide_space()
    rows = []
    for number, name in enumerate(space.names):
        has_strength = space.strengths[number].any()
        columns = []
        for strength in _STRENGTHS if has_strength else _STRENGTHS[:1]:
            amount = space.strengths[number, strength]
            chosen, amounts = tf.fill([len(images)], number), tf.fill([len(images)], amount)
            changed = policies.apply_chosen(space.names, tf.constant(images), chosen, amounts)
            words = f"{'±' * int(space.is_signed[number])}{amount:.3g} {_UNITS.get(name, '')}" if has_strength else ""
            columns.append((words, _uris(changed.numpy())))
        rows.append((name.replace("_", " "), columns))
    return rows


def _stages(pipeline: AugmentPipeline) -> str:
    names = [", ".join(operation.name for operation in stage) for stage in (pipeline.host, pipeline.device)]
    crop = "crop" if pipeline.crops else "resize"
    reader = f"the reader does {', '.join(filter(None, [crop, names[0]]))}"
    return f"{reader}; the step does {names[1] or 'nothing'}"


def _uris(images: np.ndarray) -> list[str]:
    pictures = [Image.fromarray(image) for image in images]
    for picture in pictures:
        picture.thumbnail((2 * SIDE, 2 * SIDE))
    return [data_uri(picture, quality=_QUALITY, subsampling=0) for picture in pictures]
