"""`convoy predict`: flags of prediction."""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from convoy.cli.evaluate import define_mirror_flag, define_model_flags
from convoy.core.errors import UsageError
from convoy.input_pipeline.tf_startup import start_tensorflow
from convoy.trainer.export.loaders import FILES

if TYPE_CHECKING:
    from convoy.core.devices import Devices
    from convoy.trainer.evaluation.classifier import Classifier

REQUIRED = ("images", "output")
RENAMED_FLAGS = {"tta": "flip_tta"}


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the flags."""
    absl_flags.DEFINE_string("workdir", None, "run directory of `convoy train`", flag_values=flags)
    absl_flags.DEFINE_string("export", None, "folder of `convoy export`, instead of --workdir", flag_values=flags)
    absl_flags.DEFINE_string(
        "format",
        None,
        f"which of the export's formats to use; the first it has of {', '.join(FILES)} where left out",
        flag_values=flags,
    )
    absl_flags.DEFINE_string("images", None, "folder of images, in any folders of it", flag_values=flags)
    absl_flags.DEFINE_string("output", None, "CSV to write: filename,category", flag_values=flags)
    absl_flags.DEFINE_string(
        "manifest", None, "CSV whose column `filename` says which images, in which order", flag_values=flags
    )
    absl_flags.DEFINE_string("like", None, "sample submission: its header and its order are kept", flag_values=flags)
    absl_flags.DEFINE_integer("top_k", 1, "categories an image, best first", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_bool("probabilities", False, "write each category's probability too", flag_values=flags)
    define_mirror_flag(flags)
    define_model_flags(flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Predicts and says where the CSV is."""
    from convoy.core.devices import parse_devices

    if bool(flags.workdir) == bool(flags.export):
        raise UsageError("Give --workdir=RUN, or --export=DIR of `convoy export`: one of the two.")
    needless = "checkpoint" if flags.export else "format"
    if flags[needless].present:
        raise UsageError(f"--{needless} does not go with --{'export' if flags.export else 'workdir'}: leave it out.")
    devices = parse_devices(flags.devices)
    start_tensorflow()
    from convoy.trainer.evaluation.prediction import Request, predict

    classifier = _classifier(flags, devices)
    request = Request(
        images=Path(flags.images),
        output=Path(flags.output),
        manifest=Path(flags.manifest) if flags.manifest else None,
        like=Path(flags.like) if flags.like else None,
        top_k=flags.top_k,
        probabilities=flags.probabilities,
        flip_tta=classifier.flip_tta if flags.flip_tta is None else flags.flip_tta,
    )
    count = predict(classifier, request)
    print(f"{request.output}: {count:,} images, with the weights of step {classifier.step}")


def _classifier(flags: absl_flags.FlagValues, devices: "Devices") -> "Classifier":
    if flags.export:
        from convoy.trainer.cluster.strategy import make_strategy
        from convoy.trainer.export.classifier import open_export

        make_strategy(devices)  # hides GPUs that are not wanted; the export runs on the first device
        return open_export(Path(flags.export), flags.format or "")
    from convoy.trainer.evaluation.classifier import RunClassifier
    from convoy.trainer.session.restore import open_run

    return RunClassifier(open_run(flags.workdir, devices, checkpoint=flags.checkpoint))
