"""`open_export`, and prediction with any loaded model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convoy.api.results import Predictions
from convoy.api.shown import Shown
from convoy.api.spelling import spelled_for_python
from convoy.core.errors import UsageError
from convoy.core.text import weights_text

if TYPE_CHECKING:
    from PIL import Image

    from convoy.trainer.evaluation.classifier import Classifier, MixedEnsemble

_Path = str | os.PathLike[str]


class ExportedModel(Shown):
    """An exported model.

    Attributes:
      path: the folder.
      format: the format that is used.
      class_names: class names, by label.
      step: last step of the weights.
      checkpoint: as `Evaluation.checkpoint`.

    Example:
      model = convoy.open_export("exported")
      model.format, model.class_names, model.step
    """

    def __init__(self, path: Path, file_format: str, classifier: "Classifier"):
        """Takes the loaded model."""
        self._classifier = classifier
        self.path, self.format = path, file_format
        self.class_names, self.step = tuple(classifier.class_names), classifier.step
        self.checkpoint = classifier.checkpoint

    @spelled_for_python()
    def predict(
        self,
        images: "_Path | Image.Image | np.ndarray | Sequence[_Path | Image.Image | np.ndarray]",
        *,
        flip_tta: bool | None = None,
        on_corrupt: str = "fail",
    ) -> Predictions:
        """Predicts the class of images; as `Run.predict`.

        Args:
          images: as in `Run.predict`.
          flip_tta: as in `Run.predict`.
          on_corrupt: as in `Run.predict`.

        Raises:
          UsageError: an array has another shape or dtype.
          DataError: images cannot be used.

        Example:
          convoy.open_export("exported").predict("photos/test").labels
        """
        return predicted(self._classifier, images, flip_tta, on_corrupt)

    def _title(self) -> str:
        weights = weights_text(self.step, self.checkpoint)
        return f"Export {self.path} ({self.format}): {weights}, {len(self.class_names)} classes"


@spelled_for_python()
def open_export(folder: _Path, *, format: str = "", trust_code: bool = False) -> ExportedModel:
    """Opens an export to predict with it.

    Args:
      folder: a folder of `Run.export`.
      format: one of its formats; empty for the first.
      trust_code: load a SavedModel, which can read and write files, that another user owns.

    Raises:
      UsageError: the export lacks the format, its library is not installed, or it is not trusted.
      DataError: it is not an export, or a damaged one.

    Example:
      model = convoy.open_export("exported")
      model.class_names
    """
    from convoy.trainer.export.classifier import open_export as open_classifier
    from convoy.trainer.tf_compat.keras_state import global_state_kept

    with global_state_kept():
        classifier = open_classifier(Path(folder), format, trust_code=trust_code)
    return ExportedModel(Path(folder), classifier.file_format, classifier)


def predicted(
    classifier: "Classifier | MixedEnsemble",
    images: Any,  # noqa: ANN401 (as in `Run.predict`)
    flip_tta: bool | None,
    on_corrupt: str,
    **limits: float | None,
) -> Predictions:
    """Returns a model's predictions; the arguments are those of `Run.predict`."""
    from convoy.input_pipeline.images.pixels import Limits
    from convoy.trainer.evaluation.loading import probabilities_of, sources_of

    if on_corrupt not in ("fail", "skip"):
        raise UsageError(f"on_corrupt={on_corrupt!r}: must be fail or skip.")
    names, sources = sources_of(images)
    unreadable: dict[int, str] = {}
    found = probabilities_of(
        sources,
        classifier,
        flip_tta=classifier.flip_tta if flip_tta is None else flip_tta,
        limits=Limits.with_defaults(**limits),
        unreadable=unreadable if on_corrupt == "skip" else None,
    )
    probabilities = np.stack(list(found))
    probabilities[list(unreadable)] = np.nan
    reasons = {names[number]: reason for number, reason in sorted(unreadable.items())}
    return Predictions(
        names,
        probabilities,
        tuple(classifier.class_names),
        classifier.step,
        reasons,
        classifier.checkpoint,
        models=classifier.models,
        thresholds=classifier.decision.thresholds,
    )
