"""`convoy predict`: predicts the categories of a folder of images with a trained run or an export."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.cli.evaluate import WORKDIR_HELP, define_flip_flag, define_model_flags, split_workdirs
from convoy.cli.limits import define_limit_flags, limits_of
from convoy.cli.tables import print_table
from convoy.core.devices import Devices, parse_devices
from convoy.core.errors import UsageError
from convoy.core.flags import FlagDefiner
from convoy.core.text import counted, weights_text
from convoy.input_pipeline.tf_startup import start_tensorflow
from convoy.trainer.export.loaders import FILES

if TYPE_CHECKING:
    from convoy.trainer.evaluation.classifier import Classifier, MixedEnsemble

REQUIRED = ("images",)
_SHOWN = 20  # images whose answers are printed
RENAMED_FLAGS = {"tta": "flip_tta"}


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the flags."""
    define = FlagDefiner(flags)
    define.string("workdir", None, WORKDIR_HELP)
    define.string("export", None, "folder of `convoy export`, instead of --workdir")
    define.string("format", None, f"format of the export to use; default: the first available of {', '.join(FILES)}")
    define.list("images", None, "folder of images, searched recursively, or image files, comma-separated")
    define.string("output", None, "CSV to write: filename,category; without it the answers are printed")
    define.string("manifest", None, "CSV whose column `filename` lists the images and their order")
    define.string("like", None, "sample submission: CSV whose images, order and columns are used")
    define.enum("on_corrupt", "fail", ("fail", "skip"), "what to do with images that cannot be read; skip lists them")
    define.string("corrupt_label", "", "category that --on_corrupt=skip writes for them")
    define.integer("top_k", 1, "categories per image, the most probable first", lower_bound=1)
    define.bool("probabilities", False, "write each category's probability as well")
    define_limit_flags(define)
    define_flip_flag(flags)
    define_model_flags(flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Writes the predictions and prints where they are."""
    if bool(flags.workdir) == bool(flags.export):
        raise UsageError("Pass exactly one of --workdir=RUN and --export=DIR (a folder written by `convoy export`).")
    excluded = "checkpoint" if flags.export else "format"
    if flags[excluded].present:
        source = "export" if flags.export else "workdir"
        raise UsageError(f"--{excluded} cannot be used with --{source}. Remove it.")
    devices, limits = parse_devices(flags.devices), limits_of(flags)
    start_tensorflow()
    from convoy.trainer.evaluation.prediction import Request, predict

    classifier, weights = _classifier(flags, devices)
    request = Request(
        images=_images(flags.images),
        output=Path(flags.output) if flags.output else None,
        manifest=Path(flags.manifest) if flags.manifest else None,
        like=Path(flags.like) if flags.like else None,
        top_k=flags.top_k,
        probabilities=flags.probabilities,
        flip_tta=classifier.flip_tta if flags.flip_tta is None else flags.flip_tta,
        skip_unreadable=flags.on_corrupt == "skip",
        unreadable_label=flags.corrupt_label,
        limits=limits,
    )
    found = predict(classifier, request)
    for note in found.notes:
        print(f"convoy: {note}", file=sys.stderr)
    for name, reason in found.unreadable.items():
        print(f"convoy: {name!r} cannot be read: {reason}", file=sys.stderr)
    if len(found.names) <= _SHOWN or not request.output:
        rows = zip(found.names, found.best, strict=True)
        print_table(("image", "category"), ("probability",), [(name, *_cells(best)) for name, best in rows])
    left_out = f", {len(found.unreadable):,} of them unreadable" if found.unreadable else ""
    print(f"{request.output or 'Predicted'}: {counted(len(found.names), 'image')}{left_out}, with {weights}")


def _images(names: list[str]) -> list[Path]:
    """Returns the folder or the files of `--images`; a path may contain commas."""
    whole = Path(",".join(names))
    return [whole] if whole.exists() else [Path(name) for name in names]


def _cells(best: tuple[str, float] | None) -> tuple[str, str]:
    return (best[0], f"{100 * best[1]:.1f} %") if best else ("", "unreadable")


def _classifier(flags: absl_flags.FlagValues, devices: Devices) -> "tuple[Classifier | MixedEnsemble, str]":
    """Returns the model, and what it consists of for the user."""
    if flags.export:
        from convoy.trainer.cluster.strategy import make_strategy
        from convoy.trainer.export.classifier import open_export

        make_strategy(devices)  # hides the other GPUs; the export runs on the first device
        exported = open_export(Path(flags.export), flags.format or "", trust_code=flags.trust_code)
        return exported, f"the weights of {weights_text(exported.step, exported.checkpoint)}"
    from convoy.trainer.evaluation.classifier import classifier_of
    from convoy.trainer.session.restore import open_runs

    workdirs = split_workdirs(flags.workdir)
    trained = open_runs(workdirs, devices, checkpoint=flags.checkpoint, trust_code=flags.trust_code)
    return classifier_of(trained), trained.weights_text
