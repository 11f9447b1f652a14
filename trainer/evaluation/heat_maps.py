"""RUN/heat_maps_SPLIT.json: where the model looks in the most confident errors of an evaluation, as pictures.

    save(run, evaluation, predictions, drawn(worst, pixels, maps))
    found = load(run, evaluation, predictions)
    found.pictures[17]["predicted"]                  # "data:image/jpeg;base64,..."

The report shows them without a model. Imports no TensorFlow.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from convoy.core.errors import DataError
from convoy.input_pipeline.report.pictures import data_uri
from convoy.trainer.evaluation.label_predictions import LabelPredictions
from convoy.trainer.evaluation.pictures import heat_overlay
from convoy.trainer.evaluation.predictions import Evaluation, Predictions
from convoy.trainer.run.directory import RunDirectory

NUM_ERRORS = 24
KINDS = ("seen", "predicted", "label")  # the pixels that the model saw, and its evidence for two classes
_SIDE = 128  # pixels of a picture
_URI = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class HeatPictures:
    """The heat maps of an evaluation, drawn.

    Attributes:
      pictures: by index of the image in the split, a data URI for each of `KINDS`.
      obstacle: why there are none, as a sentence; empty if there are, or if nothing is known.
    """

    pictures: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    obstacle: str = ""


def drawn(indices: np.ndarray, pixels: np.ndarray, maps: np.ndarray) -> HeatPictures:
    """Returns heat maps as pictures.

    Args:
      indices: of the images in the split, [n].
      pixels: as the model sees them, [n, size, size, 3] uint8.
      maps: for the predicted class and for the label, [n, 2, size, size] in [0, 1].
    """
    pictures = {}
    for index, image, (predicted, label) in zip(indices.tolist(), pixels, maps, strict=True):
        images = (image, heat_overlay(image, predicted), heat_overlay(image, label))
        pictures[index] = {kind: _uri(each) for kind, each in zip(KINDS, images, strict=True)}
    return HeatPictures(pictures)


def save(
    run: RunDirectory, evaluation: Evaluation, predictions: Predictions | LabelPredictions, found: HeatPictures
) -> None:
    """Writes the file of an evaluation. Raises OSError if it cannot be written."""
    content = dataclasses.asdict(found)
    content["weights"] = evaluation.weights
    content["classes"] = {index: _classes(predictions, index) for index in found.pictures}
    run.write_json(run.heat_maps(evaluation.split), content)


def load(run: RunDirectory, evaluation: Evaluation, predictions: Predictions | LabelPredictions) -> HeatPictures:
    """Returns the heat maps of an evaluation; none if the file is missing, damaged, or of another evaluation."""
    try:
        content = run.read_json(run.heat_maps(evaluation.split))
        pictures = {
            int(index): {kind: str(found[kind]) for kind in KINDS} for index, found in content["pictures"].items()
        }
        is_ours = content["weights"] == evaluation.weights and all(
            content["classes"][str(index)] == _classes(predictions, index)
            and all(uri.startswith(_URI) for uri in found.values())
            for index, found in pictures.items()
        )
        return HeatPictures(pictures, str(content["obstacle"])) if is_ours else HeatPictures()
    except (DataError, KeyError, IndexError, TypeError, ValueError, AttributeError):
        return HeatPictures()


def _classes(predictions: Predictions | LabelPredictions, index: int) -> list[int]:
    if not isinstance(predictions, Predictions):  # has no heat maps
        return []
    return [int(predictions.label[index]), int(predictions.predicted[index])]


def _uri(pixels: np.ndarray) -> str:
    return data_uri(Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), quality=80)
