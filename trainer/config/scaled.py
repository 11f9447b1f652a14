"""Configs of runs on some of the images of another run. Does not import TensorFlow."""

import ml_collections

from convoy.trainer.config.renamed import section_of
from convoy.trainer.config.schema import default_config, fields


def scaled(config: ml_collections.ConfigDict, share: float) -> ml_collections.ConfigDict:
    """Returns a copy of a config for a share of the images: for as many epochs, with all durations as much shorter.

    Those in epochs are so by themselves. Those in steps and in images are multiplied, but are at least 1, so that
    warmup, evaluations and an extension come at the same parts of the run; not those between log lines and histograms.
    All steps have the number of virtual replicas that the run has now.

    Args:
      config: complete.
      share: of the training images, in (0, 1].
    """
    config = config.copy_and_resolve_references()
    names = {name for name, _ in fields(default_config())}
    bases = {name.removesuffix("_epochs") for name in names if name.endswith("_epochs")}
    for base in bases - {"log_every", "histogram_every"}:
        for name in {base, f"{base}_steps", f"{base}_images"} & names:
            section, last = section_of(config, name)
            section[last] = _times(section[last], share)
    config.steps = _times(config.steps, share)
    for name in list(config.extended):
        config.extended[name] = tuple(_times(value, share) for value in config.extended[name])
    config.earlier_virtual_replicas.update({"steps": (), "numbers": ()})
    return config


def _times(value: int, share: float) -> int:
    return max(1, round(value * share)) if value else 0
