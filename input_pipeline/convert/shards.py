"""The shards of a conversion: which images go into which, and writing them in worker processes.

tasks = shard_tasks(splits, manifest, options, work)
shards = write_shards(tasks, work, options, progress=..., log=...)
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from convoy.core.errors import DataError
from convoy.core.text import counted
from convoy.input_pipeline.convert import marks, metadata, plan
from convoy.input_pipeline.convert.marks import Shard
from convoy.input_pipeline.convert.options import Options
from convoy.input_pipeline.convert.publish import WorkingDirectory
from convoy.input_pipeline.convert.sources import Source
from convoy.input_pipeline.convert.worker import ShardTask, check_shard, write_shard
from convoy.input_pipeline.images import worker_pool
from convoy.input_pipeline.images.pixels import Limits, Pixels

_LISTED = 3  # bad images that an error lists


def shard_tasks(
    splits: Mapping[str, Sequence[Source]], manifest: Mapping[str, Any], options: Options, work: WorkingDirectory
) -> dict[str, list[ShardTask]]:
    """Returns the tasks of the shards of each split, in order; `manifest` is that of the dataset."""
    label_of = {name: label for label, name in enumerate(manifest["class_names"])}
    pixels = Pixels(manifest["settings"]["image_size"], manifest["settings"]["encoding"], options.limits)
    settings = manifest["settings"] if options.limits == Limits() else {**manifest["settings"], **vars(options.limits)}
    tasks: dict[str, list[ShardTask]] = {}
    for split, shards in _assigned(splits, manifest["settings"], options).items():
        tasks[split] = []
        for i, images in enumerate(shards):
            name = metadata.shard_name(manifest["name"], split, i, len(shards))
            labels = tuple(_label(image, label_of) for image in images)
            tasks[split].append(
                ShardTask(
                    path=work.dataset / name,
                    mark=work.marks / name,
                    fingerprint=marks.fingerprint(images, labels, settings),
                    images=images,
                    labels=labels,
                    pixels=pixels,
                )
            )
    return tasks


def _label(image: Source, label_of: Mapping[str, int]) -> marks.Label:
    if image.labels is None:
        return label_of[image.category]
    return tuple(label_of[name] for name in image.labels)


def _assigned(
    splits: Mapping[str, Sequence[Source]], settings: Mapping[str, Any], options: Options
) -> dict[str, tuple[tuple[Source, ...], ...]]:
    """Returns the images of each shard of each split."""
    return {
        split: plan.assign_shards(
            split_images,
            split=split,
            seed=options.seed,
            total_bytes=_estimated_bytes(split_images, settings),
            shards=options.shards,
        )
        for split, split_images in splits.items()
    }


def _estimated_bytes(images: Sequence[Source], settings: Mapping[str, Any]) -> int:
    pixels = 3 * settings["image_size"] ** 2
    if settings["encoding"] == "raw":
        # A JPEG of a photograph has about a tenth of the bytes of its pixels.
        return len(images) * pixels if pixels else 10 * sum(image.size for image in images)
    return sum(min(image.size, pixels) if pixels else image.size for image in images)


def write_shards(
    tasks: Mapping[str, Sequence[ShardTask]],
    work: WorkingDirectory,
    options: Options,
    unusable: Sequence[tuple[Source, str]],
    *,
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> dict[str, list[Shard]]:
    """Writes the shards that no earlier conversion has finished; returns all shards by split, in order.

    A dry run decodes the images as if it wrote them. `unusable` are further images that cannot be used, with reasons.

    Raises:
      DataError: too many images are unusable, or a worker process died.
    """
    all_tasks = [task for split_tasks in tasks.values() for task in split_tasks]
    total = sum(len(task.images) for task in all_tasks)
    # Splits drawn from one folder share its quality; splits of a TFDS dataset are judged separately.
    totals = Counter(image.split for task in all_tasks for image in task.images)
    totals.update(image.split for image, _ in unusable)
    marked = work.finished()
    reused = {task.path: marks.read(task.mark, task.path, task.images, task.fingerprint) for task in all_tasks}
    done = {path: shard for path, shard in reused.items() if shard}
    work.keep_only({path.name for path in done})
    if marked:
        outdated = len(marked) - len(done)
        changed = f" ({outdated} outdated: images or settings have changed)" if outdated else ""
        log(f"Earlier conversion: reusing {len(done)} of its {counted(len(marked), 'finished shard')}{changed}.")

    def check_bad(shards: Sequence[Shard]) -> None:
        bad: dict[str, list[tuple[Source, str]]] = {}
        for image, why in chain(unusable, *(shard.bad for shard in (*done.values(), *shards))):
            bad.setdefault(image.split, []).append((image, why))
        for split, split_bad in bad.items():
            if len(split_bad) > options.max_bad_fraction * totals[split]:
                raise DataError(_too_many_bad(split_bad, totals[split], options.max_bad_fraction))

    check_bad([])
    remaining = [task for task in all_tasks if task.path not in done]
    before = sum(len(task.images) for task in all_tasks if task.path in done)
    if remaining:
        progress(before, total)
        written = worker_pool.run(
            check_shard if options.dry_run else write_shard,
            remaining,
            workers=options.workers,
            progress=lambda images: progress(before + images, total),
            place=lambda task, images: task.images[min(images, len(task.images) - 1)].name,
            check=check_bad,
            rerun_note="" if options.dry_run else ", and resumes from the finished shards",
        )
        done |= {task.path: shard for task, shard in zip(remaining, written, strict=True)}
    return {split: [done[task.path] for task in split_tasks] for split, split_tasks in tasks.items()}


def _too_many_bad(bad: Sequence[tuple[Source, str]], total: int, max_bad_fraction: float) -> str:
    listed = "; ".join(f"{image.name}: {why}" for image, why in sorted(bad, key=lambda pair: pair[0].name)[:_LISTED])
    return (
        f"at least {len(bad)} of {counted(total, 'image')} cannot be used, more than "
        f"--max_bad_fraction={max_bad_fraction:g} allows ({listed}). Fix or remove them, or raise --max_bad_fraction"
    )
