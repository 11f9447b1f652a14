"""The blocks of a backbone, in their order: layer-wise decay gives each its own learning rate.

    backbone, head = split(model)
    blocks_of_weights(backbone)      # for each trainable weight: 0 (the stem), 1, 2, ...

A block is what the names of the layers call one: `conv2_block1_1_conv`, `stage_0_block_1`, `transformer_block_3`. What
has no such name (stem, downsampling, final normalization) belongs to the block before it. Without such names, a block
is a layer with a kernel and what follows it, or all branches up to where they meet again.
"""

import re
from collections.abc import Sequence

import keras
from keras import layers

from convoy.trainer.models.head import trace
from convoy.trainer.tf_compat.internals import tensors_in

_BLOCK = re.compile(
    r"(?:conv|stage|stack)_?\d+[_/](?:blocks?|layers?)_?\d+"
    r"|(?:[a-z]+_)*(?<!downsampling_)(?:blocks?|layers?|encoder)_?\d+[a-z]?(?:_\d+)?(?=[_/])"
    r"|expanded_conv(?:_\d+)?(?=[_/])"
    r"|conv_[dp]w_(?P<mobilenet>\d+)"
    r"|(?:normal|reduction|adjust)_(?:\w*?_)??(?P<nasnet>(?:(?:stem|reduce)_)?\d+)/"
)


def blocks_of_weights(backbone: keras.Model) -> list[int]:
    """Returns the number of the block of each of `backbone.trainable_variables`, from 0 on."""
    paths = [weight.path for weight in backbone.trainable_variables]
    by_name = _numbered([_name_of_block(path) for path in paths])
    return by_name if len(set(by_name)) > 2 else _by_graph(backbone)


def _name_of_block(path: str) -> str:
    """Returns the name of a weight's block; "" if its path has none."""
    found = _BLOCK.search(path)
    return next((name for name in found.groups() if name), found[0]) if found else ""


def _numbered(names: Sequence[str]) -> list[int]:
    """Returns numbers for names by their first appearance; those without a name have the number before them."""
    number_of: dict[str, int] = {}
    numbers, latest = [], ""
    for name in names:
        latest = name or latest
        numbers.append(number_of.setdefault(latest, len(number_of)))
    return numbers


def _by_graph(backbone: keras.Model) -> list[int]:
    images = layers.Input(batch_shape=backbone.inputs[0].shape, dtype=backbone.inputs[0].dtype)
    calls, _ = trace(backbone, images)
    last_use: dict[int, int] = {}
    for number, (*_, outputs) in enumerate(calls):
        last_use |= {id(tensor): number for tensor in tensors_in(outputs)}
    number_of: dict[int, int] = {}
    block, is_after_cut, live = 0, False, {id(images)}
    for number, (layer, _, outputs) in enumerate(calls):
        weights = getattr(layer, "trainable_variables", ())
        if is_after_cut and any(len(weight.shape) > 1 for weight in weights):
            block, is_after_cut = block + 1, False
        number_of |= {id(weight): block for weight in weights}
        live |= {id(tensor) for tensor in keras.tree.flatten(outputs)}
        live -= {tensor for tensor in live if last_use.get(tensor, number) <= number}
        # All that follows depends on one tensor.
        is_after_cut = is_after_cut or (len(live) == 1 and bool(number_of))
    return [number_of[id(weight)] for weight in backbone.trainable_variables]
