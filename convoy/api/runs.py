"""`open_run` and `list_runs`: runs, what they have recorded, and their models."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convoy.api.datasets import path_text
from convoy.api.exports import predicted
from convoy.api.heat_maps import HeatMaps, class_names_in, explained
from convoy.api.label_results import evaluation_of
from convoy.api.recorded import RecordedRun
from convoy.api.results import Evaluation, Export, Predictions
from convoy.api.shown import Rows
from convoy.api.spelling import in_python, spelled_for_python
from convoy.core.devices import parse_devices
from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.input_pipeline.dataset.folds import OUT_OF_FOLD
from convoy.input_pipeline.dataset.open import Data, stated_format
from convoy.trainer.run import listing

if TYPE_CHECKING:
    from PIL import Image

    from convoy.trainer.evaluation.classifier import MixedEnsemble, RunClassifier
    from convoy.trainer.session.restore import TrainedRun

_Path = str | os.PathLike[str]

_logger = logging.getLogger("convoy")


class Run(RecordedRun):
    """A run directory, finished or in progress: its attributes are read again each time.

    Attributes:
      path: the run directory.
      name: its path relative to the folder given to `list_runs`, or its name.
      differences: after `list_runs`, the config fields that are not the same in all listed runs.

    Example:
      run = convoy.open_run("run")
      run.state, run.step, run.best, run.config.batch_size, run.checkpoints
      run.evaluate("test").top1
      run
    """

    def __init__(self, path: Path, name: str = "", differences: Mapping[str, Any] | None = None):
        """Args are the attributes."""
        super().__init__(path, name, differences)
        self._loaded: tuple[tuple[list[tuple[int, ...]], str], TrainedRun, RunClassifier | MixedEnsemble] | None = None

    @spelled_for_python()
    def evaluate(
        self,
        split: str,
        *,
        data: Data | None = None,
        checkpoint: str | int = "best",
        devices: str = "auto",
        flip_tta: bool | None = None,
        save: bool = True,
        image_key: str = "",
        label_key: str = "",
        class_names: Sequence[str] = (),
        trust_code: bool = False,
    ) -> Evaluation:
        """Evaluates the model on every image of a split, each once.

        The model stays loaded for the next call with the same checkpoint and devices.

        Args:
          split: name of the split; `out_of_fold` for the images of a cross-validation, each by its fold's run.
          data: dataset directory or sources, as in `open_dataset`; None for those the run was trained on.
          checkpoint: `best` (by its score on validation, such as top-1), `last`, `mean:N` (the mean of the last N, with
            batch statistics renewed on training images), or the step of a checkpoint.
          devices: as in `train`.
          flip_tta: average over each image and its mirror image; None for `config.flip_tta`.
          save: add a row to RUN/results.csv, and write RUN/predictions_SPLIT.csv and RUN/evaluation_SPLIT.json, from
            which `report` makes its page; a run that cannot be written gets a warning instead.
          image_key: feature of the encoded image in TFRecords of other tools.
          label_key: feature of the label in them.
          class_names: class of each label in them.
          trust_code: run the code of a run that another user owns.

        Raises:
          UsageError: there is no such checkpoint or device, or the code is not trusted.
          DataError: run or dataset cannot be used, the dataset lacks the split, or a file cannot be written.

        Example:
          evaluation = convoy.open_run("run").evaluate("test")
          evaluation.top1, evaluation.per_class()
        """
        from convoy.trainer.evaluation.split import evaluate_split

        stated = stated_format(path_text(data), image_key, label_key, class_names=class_names)
        which: dict[str, Any] = {"data": path_text(data) or data, "record_format": stated}
        if split == OUT_OF_FOLD and self._files.folds:
            from convoy.trainer.cross_validation.out_of_fold import evaluate_out_of_fold
            from convoy.trainer.tf_compat.keras_state import global_state_kept

            model: dict[str, Any] = {"checkpoint": str(checkpoint), "trust_code": trust_code}
            with global_state_kept():
                found = evaluate_out_of_fold(self._files, parse_devices(devices), flip_tta=flip_tta, **model, **which)
            evaluated, write = found.together, found.save
        else:
            with self._model(checkpoint, devices, trust_code) as (trained, _):
                flips = trained.flip_tta if flip_tta is None else flip_tta
                evaluated = evaluate_split(trained, split, flip_tta=flips, **which)
            write = evaluated.save
        if save and (unwritable := self._files.write_error()):
            _logger.warning("%s cannot be written (%s): the evaluation is not saved.", self.path, unwritable.strerror)
        elif save:
            write()
        return evaluation_of(evaluated.evaluation, evaluated.predictions, evaluated.decision)

    @spelled_for_python()
    def predict(
        self,
        images: "_Path | Image.Image | np.ndarray | Sequence[_Path | Image.Image | np.ndarray]",
        *,
        checkpoint: str | int = "best",
        devices: str = "auto",
        flip_tta: bool | None = None,
        on_corrupt: str = "fail",
        max_megapixels: float | None = None,
        max_file_mib: int | None = None,
        max_metadata_mib: int | None = None,
        trust_code: bool = False,
    ) -> Predictions:
        """Predicts the class of images of any size.

        The model stays loaded for the next call with the same checkpoint and devices.

        Args:
          images: a path or several: image files, or a folder that is searched recursively; PIL images, which are turned
            by EXIF and put on white where transparent, as files are; or RGB pixels [height, width, 3] uint8, also
            [n, height, width, 3].
          checkpoint: as in `evaluate`.
          devices: as in `train`.
          flip_tta: as in `evaluate`.
          on_corrupt: `fail`, or `skip` for files that cannot be read: they get no label.
          max_megapixels: as in `convert`.
          max_file_mib: as in `convert`.
          max_metadata_mib: as in `convert`.
          trust_code: as in `evaluate`.

        Raises:
          UsageError: there is no such checkpoint or device, the code is not trusted, or an array has another shape or
            dtype.
          DataError: run or images cannot be used.

        Example:
          import numpy as np
          run = convoy.open_run("run")
          run.predict("photos/test").labels
          run.predict(np.zeros([2, 48, 64, 3], np.uint8)).probabilities.shape
        """
        with self._model(checkpoint, devices, trust_code) as (_, classifier):
            return predicted(
                classifier,
                images,
                flip_tta,
                on_corrupt,
                max_megapixels=max_megapixels,
                max_file_mib=max_file_mib,
                max_metadata_mib=max_metadata_mib,
            )

    @spelled_for_python()
    def explain(
        self,
        images: "_Path | Image.Image | np.ndarray | Sequence[_Path | Image.Image | np.ndarray]",
        *,
        classes: str | Sequence[str] | None = None,
        checkpoint: str | int = "best",
        devices: str = "auto",
        trust_code: bool = False,
    ) -> HeatMaps:
        """Shows where in images the model finds the evidence for a class (Grad-CAM, Selvaraju et al. 2017).

        The model stays loaded for the next call with the same checkpoint and devices.

        Args:
          images: as in `predict`.
          classes: name of the class to explain, or of one per image; None for the most probable class of each.
          checkpoint: as in `evaluate`.
          devices: as in `train`.
          trust_code: as in `evaluate`.

        Raises:
          UsageError: as `predict`; a class is unknown or no text, the model has no feature map before its head, or the
            run is a cross-validation, which has several models.
          DataError: run or images cannot be used.

        Example:
          found = convoy.open_run("run").explain("photos/test")
          found.labels[0], found.maps[0].max(), found.overlays[0].shape
        """
        named = class_names_in(classes)
        with self._model(checkpoint, devices, trust_code) as (_, classifier):
            return explained(classifier, images, named)

    @spelled_for_python()
    def export(
        self,
        output: _Path,
        *,
        formats: str | Sequence[str] = ("saved_model",),
        checkpoint: str | int = "best",
        quantize: str = "none",
        data: _Path | None = None,
        trust_code: bool = False,
    ) -> Export:
        """Exports the model with resizing, pixel scaling and class names inside, and verifies each format.

        Each is loaded in a new process, and its predictions are compared with an evaluation in float32.

        Args:
          output: folder to create; an existing export is replaced.
          formats: one or more of `saved_model`, `keras`, `litert` and `onnx`.
          checkpoint: as in `evaluate`.
          quantize: `int8` for weights and activations in 8 bits (`litert` and `onnx`), calibrated on training images.
          data: dataset directory with the images to compare and calibrate on; None for the run's own.
          trust_code: as in `evaluate`.

        Raises:
          UsageError: a format is unknown or cannot be quantized, its library is not installed, or the output exists and
            is not an export.
          DataError: run or dataset cannot be used, or no format can express the model.

        Example:
          exported = convoy.open_run("run").export("exported", formats=["keras"])
          exported.files["keras"], exported.largest_differences["keras"]
        """
        from convoy.trainer.cluster.strategy import make_strategy
        from convoy.trainer.export.exporter import export as export_run
        from convoy.trainer.export.request import Request
        from convoy.trainer.tf_compat.keras_state import global_state_kept

        left_out: list[str] = []

        def leave_out(error: ConvoyError) -> None:
            left_out.append(in_python(str(error)))

        request = Request(
            os.fspath(self.path),
            Path(output),
            (formats,) if isinstance(formats, str) else tuple(formats),
            checkpoint=str(checkpoint),
            data=os.fspath(data) if data else None,
            quantize=quantize,
            trust_code=trust_code,
        )
        with global_state_kept():
            make_strategy(parse_devices("auto"))  # a first use of TensorFlow on the CPU would hide the GPUs for good
            return Export(Path(output), export_run(request, leave_out), left_out)

    @spelled_for_python()
    def report(self, *, output: _Path | None = None, data: _Path | None = None) -> Path:
        """Writes the report page from the last evaluation of each split, with curves and error analysis.

        Args:
          output: HTML file to write, as the only one; None for RUN/report.html, with RUN/MODEL_CARD.md and pictures.
          data: directory of the evaluated dataset; None for the one it was evaluated from.

        Returns:
          The page.

        Raises:
          DataError: a file of the run is damaged, or the page cannot be written.

        Example:
          convoy.open_run("run").report()
        """
        from convoy.trainer.evaluation.report.page import write_report

        write_report(self._files, output=Path(output) if output else None, data=os.fspath(data) if data else None)
        return Path(output) if output else self._files.report

    @contextlib.contextmanager
    def _model(
        self, checkpoint: str | int, devices: str, trust_code: bool
    ) -> "Iterator[tuple[TrainedRun, RunClassifier | MixedEnsemble]]":
        """Yields the model with the weights of a checkpoint, loaded unless it is the last one that was used."""
        from convoy.trainer.evaluation.classifier import classifier_of
        from convoy.trainer.session.chosen_steps import steps_by_model
        from convoy.trainer.session.restore import open_run
        from convoy.trainer.session.runtime import enable_determinism
        from convoy.trainer.tf_compat.keras_state import global_state_kept

        key = (steps_by_model(self._files, str(checkpoint)), devices)
        with global_state_kept():
            if not self._loaded or self._loaded[0] != key:
                self._loaded = None  # frees its memory first
                trained = open_run(
                    os.fspath(self.path), parse_devices(devices), checkpoint=str(checkpoint), trust_code=trust_code
                )
                steps = [member.steps for member in trained.members]
                self._loaded = (steps, devices), trained, classifier_of(trained)
            elif self._loaded[1].config.deterministic:
                enable_determinism()
            yield self._loaded[1:]


class Runs(list[Run]):
    """Runs, best first; a terminal and a notebook show them as a table.

    Example:
      runs = convoy.list_runs(".")
      runs[0].path
      runs
    """

    def to_dicts(self) -> Rows:
        """Returns a row per run: name, `best_top1`, `best_step`, `images_per_second`, state, and differing fields.

        Of a run with several labels per image, `best_mean_average_precision` instead.

        Example:
          convoy.list_runs(".").to_dicts()[0]["best_top1"]
        """
        rows = Rows()
        for run in self:
            found = run._listed()
            facts = {f"best_{found.score}": found.best_score}
            facts |= {name: getattr(found, name) for name in ("best_step", "images_per_second")}
            rows.append({"run": run.name, **facts, "state": found.state_text, **run.differences})
        return rows

    def __repr__(self) -> str:
        """Returns the table as text."""
        return repr(self.to_dicts())

    def _repr_html_(self) -> str:
        return self.to_dicts()._repr_html_()


@spelled_for_python()
def open_run(workdir: _Path) -> Run:
    """Opens a run directory, finished or in progress; nothing is written or locked.

    Args:
      workdir: the run directory.

    Raises:
      UsageError: it is no path.
      DataError: there is no run.

    Example:
      run = convoy.open_run("run")
      run.metrics("validation")
    """
    if not isinstance(workdir, str | os.PathLike):
        several = isinstance(workdir, Iterable)
        ensemble = " For several runs as an ensemble, run `convoy predict --workdir=RUN,RUN`." if several else ""
        raise UsageError(f"workdir={workdir!r:.200}: is not a path. Pass that of one run directory.{ensemble}")
    path = Path(workdir)
    if not listing.is_run(path):
        raise DataError(
            f"{path}: {'not a run directory' if path.is_dir() else 'no such folder'}. Pass that of train()."
        )
    return Run(path)


@spelled_for_python()
def list_runs(folder: _Path) -> Runs:
    """Returns the runs in and under a folder, best validation top-1 first, as `convoy runs` does.

    Args:
      folder: the folder.

    Raises:
      UsageError: it is not the path of a folder.

    Example:
      for run in convoy.list_runs("."):
          run.name, run.best, run.differences
    """
    if not isinstance(folder, str | os.PathLike):
        raise UsageError(f"folder={folder!r:.200}: is not a path. Pass that of one folder.")
    found = listing.list_runs(Path(folder))
    return Runs(Run(Path(folder) / run.name, run.name, run.differences) for run in found)
