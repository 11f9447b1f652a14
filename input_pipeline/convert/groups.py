"""Splits that keep groups of images together: those that look alike, and those with the same value in a CSV column.

    splits, summary = divide_grouped(images, options, work, settings, together=frozenset(), progress=..., log=print)

Images look alike if the report calls them near duplicates (`images.perceptual`), also by way of others. The hashes are
those that the conversion will find, so every image is read and decoded twice. They are kept in the working folder, for
a conversion that is interrupted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from convoy.core.npz import opened, read_array
from convoy.input_pipeline.convert import marks, plan
from convoy.input_pipeline.convert.options import Options
from convoy.input_pipeline.convert.publish import WorkingDirectory
from convoy.input_pipeline.convert.sources import Source
from convoy.input_pipeline.convert.summary import GroupSummary
from convoy.input_pipeline.convert.worker import HashTask, write_hashes
from convoy.input_pipeline.images import worker_pool
from convoy.input_pipeline.images.perceptual import FLAT, components, near_pairs
from convoy.input_pipeline.images.pixels import Pixels

_IMAGES_PER_TASK = 512
_MISSED = 0.1  # a split whose size differs by more from its share is reported


def divide_grouped(
    images: Sequence[Source],
    options: Options,
    work: WorkingDirectory,
    settings: Mapping[str, Any],
    *,
    together: frozenset[str],
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> tuple[dict[str, tuple[Source, ...]], GroupSummary]:
    """Returns the images of each split as `plan.divide`, with each group in one split, and what became of the groups.

    Args:
      images: the images.
      options: options of the conversion.
      work: keeps the hashes of an interrupted conversion.
      settings: settings of the dataset, as in the manifest.
      together: as in `plan.divide`.
      progress: called with the number of images compared and the total.
      log: called with one line on what is done.
    """
    if options.table and options.table.group_column and (alone := sum(not image.group for image in images)):
        log(f"{options.table.path}: {alone:,} images have no {options.table.group_column!r}, and form no group.")
    hashes = _perceptual_hashes(images, options, work, settings, progress, log) if options.group_similar else None
    groups, complete = find_groups(images, hashes)
    without = plan.divide(images, options.drawn, options.seed, together)
    split_of = {image.name: split for split, members in without.items() for image in members}
    splits = plan.divide(images, options.drawn, options.seed, together, groups)
    wanted = {split: share * len(images) for split, share in options.drawn.items()}
    return splits, GroupSummary(
        groups=len(groups),
        images=sum(map(len, groups)),
        largest=max(map(len, groups), default=0),
        otherwise_spread=sum(len({split_of[image.name] for image in group}) > 1 for group in groups),
        complete=complete,
        missed={
            split: (options.drawn[split], len(members) / len(images))
            for split, members in splits.items()
            if abs(len(members) - wanted[split]) > max(1, _MISSED * wanted[split])
        },
    )


def _perceptual_hashes(
    images: Sequence[Source],
    options: Options,
    work: WorkingDirectory,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> np.ndarray:
    """Returns the perceptual hash of each image, [n] uint64, as the conversion will store it."""
    work.hashes.mkdir(exist_ok=True)
    pixels = Pixels(settings["image_size"], settings["encoding"], options.limits)
    tasks = []
    for start in range(0, len(images), _IMAGES_PER_TASK):
        part = tuple(images[start : start + _IMAGES_PER_TASK])
        fingerprint = marks.fingerprint(part, [0] * len(part), {**settings, **vars(options.limits)})
        tasks.append(HashTask(work.hashes / f"{fingerprint}.npz", part, pixels))
    kept = {task.path: hashes for task in tasks if (hashes := _read(task)) is not None}
    remaining = [task for task in tasks if task.path not in kept]
    before = sum(map(len, kept.values()))
    log(f"Comparing {len(images):,} images before they are split" + f", {before:,} of them done earlier" * bool(before))
    if remaining:
        worker_pool.run(
            write_hashes,
            remaining,
            workers=options.workers,
            progress=lambda done: progress(before + done, len(images)),
            place=lambda task, done: task.images[min(done, len(task.images) - 1)].name,
            rerun_note=", and goes on with the images that are not compared yet",
        )
    return np.concatenate([kept[task.path] if task.path in kept else _read(task) for task in tasks])


def _read(task: HashTask) -> np.ndarray | None:
    """Returns the hashes of a task that is done, else None."""
    try:
        with opened(task.path) as archive:
            hashes = read_array(archive, "hashes", np.uint64, dimensions=1)
    except Exception:  # a file that a crash has cut short makes zipfile and numpy raise anything
        return None
    return hashes if hashes.shape == (len(task.images),) else None


def find_groups(
    images: Sequence[Source], hashes: np.ndarray | None = None
) -> tuple[tuple[tuple[Source, ...], ...], bool]:
    """Returns the groups of two or more images, in order, and whether all images that look alike were found.

    Args:
      images: the images; those with the same `group` form one.
      hashes: their perceptual hashes, [n] uint64, to group those that look alike too; None for the former only.
    """
    number = len(images)
    _, columns = np.unique([image.group for image in images], return_inverse=True)
    in_column = np.array([image.group != "" for image in images], bool)
    links, complete = [(np.flatnonzero(in_column), columns[in_column])], True
    if hashes is not None:
        distinct, which = np.unique(hashes, return_inverse=True)
        pairs = near_pairs(distinct)
        looks, complete = components(len(distinct), pairs.first, pairs.second)[which], pairs.complete
        counts = hashes != FLAT  # images of a single color do not count as alike
        links.append((np.flatnonzero(counts), number + looks[counts]))
    # An image is linked to its value in the column and to its look, as nodes that follow those of the images.
    first = np.concatenate([link[0] for link in links])
    second = np.concatenate([link[1] for link in links]) + number
    group = components(3 * number, first, second)[:number]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    members = (part.tolist() for part in np.split(order, starts[1:]))
    return tuple(tuple(images[i] for i in part) for part in members if len(part) > 1), complete
