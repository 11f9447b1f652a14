"""`convoy predict`: flags of prediction."""

from pathlib import Path

from absl import flags as absl_flags

from convoy.evaluate import define_model_flags
from input_pipeline.quiet_tensorflow import start_tensorflow

REQUIRED = ("workdir", "images", "output")


def define_flags(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Defines the flags."""
    absl_flags.DEFINE_string("workdir", None, "run directory of `convoy train`", flag_values=flags)
    absl_flags.DEFINE_string("images", None, "folder of images, in any folders of it", flag_values=flags)
    absl_flags.DEFINE_string("output", None, "CSV to write: filename,category", flag_values=flags)
    absl_flags.DEFINE_string(
        "manifest", None, "CSV whose column `filename` says which images, in which order", flag_values=flags
    )
    absl_flags.DEFINE_string("like", None, "sample submission: its header and its order are kept", flag_values=flags)
    absl_flags.DEFINE_integer("top_k", 1, "categories an image, best first", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_bool("probabilities", False, "write each category's probability too", flag_values=flags)
    define_model_flags(flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Predicts and says where the CSV is."""
    from trainer.devices import parse_devices

    devices = parse_devices(flags.devices)
    start_tensorflow()
    from trainer.prediction import Request, predict
    from trainer.restore import open_run

    request = Request(
        images=Path(flags.images),
        output=Path(flags.output),
        manifest=Path(flags.manifest) if flags.manifest else None,
        like=Path(flags.like) if flags.like else None,
        top_k=flags.top_k,
        probabilities=flags.probabilities,
    )
    trained = open_run(flags.workdir, devices, checkpoint=flags.checkpoint)
    count = predict(trained, request)
    print(f"{request.output}: {count:,} images, with the weights of step {trained.step}")
