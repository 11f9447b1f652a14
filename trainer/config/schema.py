"""What a run is: the default config, recipes that change some of it, and what follows from both.

    config = load_config("convnet")            # a shipped recipe, or a file with get_config()
    plan = resolve(config, num_images=4000, replicas=2)
    plan.total_steps, plan.virtual_replicas, plan.peak_learning_rate

A duration is given in steps, epochs or images, as one of `eval_every_steps`, `eval_every_epochs`,
`eval_every_images`; a bare `eval_every` means steps. Imports no TensorFlow.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections


def default_config() -> ml_collections.ConfigDict:
    """Returns every field with its default, locked: a recipe that sets a field that is not there fails."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "virtual_replicas": 0,  # 0: the number of replicas at the first start
            "batch_size": 64,  # images of a step, over all devices
            "image_size": 64,  # side in pixels
            "eval_image_size": 0,  # side of the images that are evaluated, predicted and exported for; 0: image_size
            "flip_tta": False,  # evaluate and predict by the mean over each image and its mirror image
            "progressive": {"sizes": (), "ends": ()},  # smaller images first, each size up to a share of the run
            "epochs": 10.0,
            "steps": 0,  # above 0 it stands instead of epochs
            "precision": "auto",
            "xla": "auto",
            "deterministic": False,
            "deterministic_threads": 2,  # of a CPU, on any machine: how many share a sum changes its last bits
            "reduce_in_bfloat16": False,  # gradients between devices: half the traffic, 8 bits of mantissa
            "label_smoothing": 0.0,
            "shuffle": "global",  # block: shards and blocks of records are shuffled, for storage slow at random reads
            "shuffle_block_size": 0,  # records that are shuffled together; 0: 64 MiB of them, usually at least 1024
            "sampling": "natural",  # inverse_sqrt, balanced: small classes come more often than they have images
            "on_corrupt": "raise",  # substitute: other images stand in for records that cannot be used
            "cache": "none",  # memory: decoded images are kept over the epochs; auto: where all would fit easily
            "keep_checkpoints": 3,
            "measure_peak": False,  # time matrix products once, where no table knows what the devices can do at most
            **_duration("eval_every"),
            **_duration("checkpoint_every"),
            **_duration("log_every"),
            **_duration("histogram_every"),  # of the weights, for TensorBoard; 0: never
            "model": {
                "name": "convnet",
                "weights": "",  # a file; the head is a new one where its classes are others
                "dropout": -1.0,  # below 0: the model's own
                "depth": 0,  # of resnet; 0: 18
                "width": 0,  # of resnet: channels of the first stage; 0: 64
                "stochastic_depth": 0.0,  # of resnet: how often its last block is left out
                "instance_norm": "auto",  # on, off; auto: convnet has it, resnet does not
                **_duration("freeze"),  # until then only the head is trained
                "backbone_rate": 1.0,  # learning rate of all but the head, times the head's
            },
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-3,
                "beta_1": 0.9,
                "beta_2": 0.999,
                "epsilon": 1e-7,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 0.0,  # never on biases and norms
                "trust_coefficient": 0.001,
                "clip_norm": 0.0,  # 0: no clipping
            },
            "schedule": {
                "name": "constant",
                **_duration("warmup"),
                "final_fraction": 0.0,  # cosine ends at this share of the peak
                "boundaries": (0.5, 0.75),  # step: shares of the run
                "factor": 0.1,  # step: times this at each boundary
                "scaling": "none",  # of the learning rate with the global batch
                "reference_batch_size": 64,
            },
            "augment": {"ops": ""},  # crop(scale=0.35..1) | flip | trivial | erase(0.25); empty: whole images
            "mix": {
                "mixup": 0.0,  # alpha of Beta(alpha, alpha); 0: none
                "cutmix": 0.0,  # likewise; where both are on, each image gets one of them
                "probability": 1.0,  # share of the images that are mixed
                "off_fraction": 0.0,  # share of the run, at its end, without mixing
            },
            "ema": {"decay": 0.0},  # 0: no moving average of the weights
            "divergence": {
                "rollbacks": 0,  # how often a run goes back to its last checkpoint when its loss is NaN or infinite
                "learning_rate_factor": 0.5,  # times this from there on, each time
            },
        }
    ).lock()


def _duration(name: str) -> dict[str, float]:
    return {name: 0, f"{name}_steps": 0, f"{name}_epochs": 0.0, f"{name}_images": 0}


def fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `(dotted name, value)` for every leaf of a config, in its order."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as plain JSON data."""
    return json.loads(json.dumps(config.to_dict()))
