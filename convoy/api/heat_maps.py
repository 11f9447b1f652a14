"""`Run.explain`: where a model finds the evidence for a class."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convoy.api.shown import Rows, Shown
from convoy.core.errors import UsageError, did_you_mean
from convoy.core.text import counted, weights_text

if TYPE_CHECKING:
    from convoy.trainer.evaluation.classifier import MixedEnsemble, RunClassifier


@dataclass(frozen=True, repr=False)
class HeatMaps(Shown):
    """Where in images the model finds the evidence for a class.

    Attributes:
      names: path of each image, or its number if it is not a file.
      labels: the class that is explained in each image.
      maps: strength of the evidence, relative to the strongest in the image, [images, size, size] float32 in [0, 1]; 0
        everywhere if nothing speaks for the class.
      pixels: the images as the model sees them, [images, size, size, 3] uint8.
      step: last step of the weights.
      checkpoint: as `Evaluation.checkpoint`.

    Example:
      found = convoy.open_run("run").explain("photos/test")
      found.maps.shape, found.labels[:3]
      found.overlays[0]
    """

    names: Sequence[str]
    labels: Sequence[str]
    maps: np.ndarray
    pixels: np.ndarray
    step: int
    checkpoint: str = ""

    @property
    def overlays(self) -> np.ndarray:
        """The maps drawn on the images, as in the report, [images, size, size, 3] uint8."""
        from convoy.trainer.evaluation.pictures import heat_overlay

        return np.stack([heat_overlay(pixels, heat) for pixels, heat in zip(self.pixels, self.maps, strict=True)])

    def _title(self) -> str:
        return f"Heat maps of {weights_text(self.step, self.checkpoint)} for {counted(len(self.names), 'image')}"

    def _table(self) -> Rows:
        return Rows({"name": name, "class": label} for name, label in zip(self.names, self.labels, strict=True))


def explained(
    classifier: "RunClassifier | MixedEnsemble",
    images: Any,  # noqa: ANN401 (as in `Run.explain`)
    classes: list[str] | str | None,
) -> HeatMaps:
    """Returns the heat maps of a run's model; `images` as in `Run.explain`, `classes` from `class_names_in`."""
    import tensorflow as tf

    from convoy.trainer.evaluation.classifier import RunClassifier
    from convoy.trainer.evaluation.loading import pixels_of, sources_of

    if not isinstance(classifier, RunClassifier) or classifier.models > 1:
        raise UsageError(
            f"explain: a heat map is of one model, and the run has {classifier.models}. Open that of a fold: "
            "convoy.open_run(RUN/fold-1)."
        )
    if classifier.grad_cam.obstacle:
        fix = "Explain a model whose features end in global pooling, such as convnet."
        raise UsageError(f"explain: {classifier.grad_cam.obstacle} {fix}")
    names, sources = sources_of(images)
    pixels = np.stack([*pixels_of(sources, classifier.crop)])
    if classes is None:
        seen = tf.constant(pixels)
        found = classifier.probabilities(lambda number: seen[number], len(pixels), flip_tta=classifier.flip_tta)
        labels = [int(probabilities.argmax()) for probabilities in found]
    else:
        labels = _labels(classes, classifier.class_names, len(names))
    maps = classifier.grad_cam.maps(pixels, np.array(labels)[:, np.newaxis])[:, 0]
    explained_names = [classifier.class_names[label] for label in labels]
    return HeatMaps(names, explained_names, maps, pixels, classifier.step, classifier.checkpoint)


def class_names_in(classes: object) -> list[str] | str | None:
    """Returns `classes` of `Run.explain`; raises a UsageError if these are no names."""
    if classes is None or isinstance(classes, str):
        return classes
    given = list(classes) if isinstance(classes, Iterable) else [classes]
    names = [name for name in given if isinstance(name, str)]
    if len(names) < len(given):
        wrong = next(name for name in given if not isinstance(name, str))
        raise UsageError(
            f"classes={classes!r:.200}: {wrong!r:.60} is not the name of a class. Pass a name as text, or a list of "
            "one name per image."
        )
    return names


def _labels(classes: list[str] | str, class_names: Sequence[str], count: int) -> list[int]:
    given = [classes] * count if isinstance(classes, str) else classes
    if len(given) != count:
        raise UsageError(f"classes: {counted(len(given), 'name')} for {counted(count, 'image')}. Pass one per image.")
    for name in given:
        if name not in class_names:
            raise UsageError(f"classes: the run has no class {name!r}{did_you_mean(name, class_names)}.")
    return [class_names.index(name) for name in given]
