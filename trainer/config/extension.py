"""Extended runs (`convoy train --extend`): what depends on the length of a run does so on another one from a step on.

    extended = with_extension(config, before=900, step=900)     # config.epochs or config.steps is longer now
    spans(extended, total_steps=1200)                           # [Span(0, 900, 900), Span(900, 1200, 1200)]

The config keeps the steps at which a run was extended, and its lengths until then. So it still describes the run: the
same config, trained from step 0, gives the same weights. Does not import TensorFlow.
"""

from typing import NamedTuple

import ml_collections


class Span(NamedTuple):
    """Consecutive steps of one length of the run.

    Attributes:
      first_step: first step, counted from 0.
      end_step: step after the last one.
      length: steps of the whole run, as planned for these steps.
    """

    first_step: int
    end_step: int
    length: int


def spans(config: ml_collections.ConfigDict, total_steps: int) -> list[Span]:
    """Returns the spans of a run, which cover every step once."""
    ends = [*config.extended.steps, total_steps]
    lengths = [*config.extended.lengths, total_steps]
    return [Span(*span) for span in zip([0, *ends[:-1]], ends, lengths, strict=True)]


def length_at(config: ml_collections.ConfigDict, total_steps: int, step: int) -> int:
    """Returns the length by which a step is trained."""
    return next((span.length for span in spans(config, total_steps) if step < span.end_step), total_steps)


def mixing_steps(config: ml_collections.ConfigDict, total_steps: int) -> tuple[tuple[int, int], ...]:
    """Returns the steps with mixing, as intervals: first step, and step after the last one."""
    share = 1.0 - config.mix.off_fraction
    return tuple((first, min(end, round(share * length))) for first, end, length in spans(config, total_steps))


def with_extension(config: ml_collections.ConfigDict, *, before: int, step: int) -> ml_collections.ConfigDict:
    """Returns a copy of a config that has become longer: the first `step` steps keep the length `before`."""
    config = config.copy_and_resolve_references()
    config.extended.steps = (*config.extended.steps, step)
    config.extended.lengths = (*config.extended.lengths, before)
    return config
