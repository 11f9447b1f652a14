"""A page that shows what augmentation does: a recipe's line on an image, and every operation at three strengths.

    page = augmentation_page(images, names, text="crop | flip | trivial", recipe="convnet", image_size=64, seed=0)
    Path("augment.html").write_bytes(page.encode())

The page is one file without scripts and without links to other files. It depends on its input alone.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from convoy.core.html.templates import page_template
from convoy.input_pipeline.augment import policies
from convoy.input_pipeline.augment.apply import on_device, on_host
from convoy.input_pipeline.augment.pipeline import CROP_DRAWS, OPERATIONS, AugmentPipeline, Parameter, parse_pipeline
from convoy.input_pipeline.reading import decode as cropping
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.order import image_randomness
from convoy.input_pipeline.report.pictures import SIDE

LINE_DRAWINGS = 16
_QUALITY = 85
_MOST = 1 - 2**-24  # the largest random number
_MIDDLE = 0.5

# How each operation is shown: at a low, a middle and a high strength, and with which random numbers.
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
    images: Sequence[np.ndarray], names: Sequence[str], *, text: str, recipe: str, image_size: int, seed: int
) -> str:
    """Returns the page, HTML.

    Args:
      images: one or more, each [height, width, 3] uint8, whole. The line is drawn on the first.
      names: of their classes.
      text: the recipe's line.
      recipe: its name.
      image_size: side of the images in training.
      seed: the run's: the drawings are what training sees of image 0 in its first epochs.

    Raises:
      UsageError: the line is none.
    """
    numbers = np.arange(len(images))
    randomness = image_randomness(numbers, numbers * 0, seed=seed, draws=CROP_DRAWS + 64)
    operations = [_operation(name, images, randomness, image_size) for name in OPERATIONS if _EXAMPLES[name][0]]
    whole = np.stack([cropping.resize(tf.constant(image), image_size) for image in images])
    return page_template(Path(__file__).with_name("augmentation.html.j2")).render(
        recipe=recipe,
        text=text,
        image_size=image_size,
        names=list(names),
        originals=_uris(whole),
        drawings=_drawings(images[0], parse_pipeline(text, image_size=image_size), image_size, seed),
        halves=_halves(parse_pipeline(text, image_size=image_size)),
        operations=operations,
        sampled=_sampled(whole),
        strengths=_STRENGTHS,
    )


def _drawings(image: np.ndarray, line: AugmentPipeline, image_size: int, seed: int) -> list[str]:
    epochs = np.arange(LINE_DRAWINGS)
    randomness = image_randomness(epochs * 0, epochs, seed=seed, draws=line.draws)
    return _uris(_augmented([image] * LINE_DRAWINGS, line, randomness, image_size))


def _augmented(
    images: Sequence[np.ndarray], line: AugmentPipeline, randomness: np.ndarray, image_size: int
) -> np.ndarray:
    """Returns what the model sees, [n, image_size, image_size, 3] uint8, as reader and step make it."""
    crop = Crop(image_size, *line.scale)
    cropped = tf.stack(
        [
            cropping.crop_and_resize(tf.constant(image), draws, crop)
            for image, draws in zip(images, randomness, strict=True)
        ]
    )
    pixels = on_device(on_host(cropped, randomness, line.host), randomness, line.device)
    return np.uint8(np.rint(pixels.numpy()))


def _operation(name: str, images: Sequence[np.ndarray], randomness: np.ndarray, image_size: int) -> dict[str, Any]:
    arguments, draws = _EXAMPLES[name]
    columns = []
    for argument in arguments:
        line = parse_pipeline(f"{name}({argument})", image_size=image_size)
        numbers = randomness[:, : line.draws].copy()
        if draws:
            numbers[:, CROP_DRAWS : CROP_DRAWS + len(draws)] = draws
        columns.append((f"{name}({argument})", _uris(_augmented(images, line, numbers, image_size))))
    signature = OPERATIONS[name]
    return {
        "name": name,
        "about": signature.about,
        "where": "step or reader" if signature.on_device else "reader",
        "parameters": [(parameter.name, _described(parameter)) for parameter in signature.parameters],
        "columns": columns,
    }


def _described(parameter: Parameter) -> str:
    default = parameter.default
    if isinstance(default, tuple):
        default = f"{default[0]:g}..{default[1]:g}"
    elif default is not None:
        default = f"{default:g}" if default else "that of the run"
    return parameter.legal + (f"; {default} where left out" if default is not None else "")


def _sampled(images: np.ndarray) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Returns each operation of TrivialAugment's space: its name, and of some strengths what they are called and do."""
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


def _halves(line: AugmentPipeline) -> str:
    names = [", ".join(operation.name for operation in half) for half in (line.host, line.device)]
    crop = "crop" if line.crops else "resize"
    reader = f"the reader does {', '.join(filter(None, [crop, names[0]]))}"
    return f"{reader}; the step does {names[1] or 'nothing more'}"


def _uris(images: np.ndarray) -> list[str]:
    return [_uri(image) for image in images]


def _uri(image: np.ndarray) -> str:
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
