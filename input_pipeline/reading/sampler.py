"""Which images a process reads at each step: its slice of the batch, and the image at each position of the stream.

slices = BatchSlice(global_batch_size=128, replicas=2)
sampler = Sampler(split)
indices, epochs = sampler.locate(slices.positions(step=10), seed=0)
"""

from dataclasses import dataclass

import numpy as np

from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.reading import order


@dataclass(frozen=True)
class BatchSlice:
    """The positions of each step that this process reads, and the batches it yields them in.

    Attributes:
      global_batch_size: images per step, over all processes; a multiple of `replicas`.
      replicas: number of replicas, over all processes.
      first_replica: index of the first replica that this process feeds.
      local_replicas: how many replicas it feeds; 0 for all.
    """

    global_batch_size: int
    replicas: int = 1
    first_replica: int = 0
    local_replicas: int = 0

    @property
    def replica_batch_size(self) -> int:
        """Images per replica and step."""
        return self.global_batch_size // self.replicas

    @property
    def num_local_replicas(self) -> int:
        """How many replicas this process feeds."""
        return self.local_replicas or self.replicas

    def positions(self, step: int) -> np.ndarray:
        """Returns this process's positions of one step, [num_local_replicas * replica_batch_size] int64."""
        start = step * self.global_batch_size + self.first_replica * self.replica_batch_size
        return np.arange(start, start + self.num_local_replicas * self.replica_batch_size)


class Sampler:
    """Maps positions of the training stream to images.

    Attributes:
      stripes: of a striped shuffle; None with global shuffle.
    """

    def __init__(self, split: Split, *, stripes: order.Stripes | None = None, sampling: str = "natural"):
        """Prepares the order.

        Args:
          split: the images.
          stripes: of a striped shuffle (`windows.make_stripes`); None for a global shuffle.
          sampling: how often each class is drawn, one of `order.SAMPLINGS`; other than `natural` only with global
            shuffle. An image of several labels counts to the rarest one, and those without a label to a class of
            their own.
        """
        self.stripes = stripes
        self._num_images = split.num_images
        self._sampling = order.class_sampling(split.strata(), sampling) if sampling != "natural" else None

    def locate(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images at positions [n] int64 of the stream.

        Returns:
          image indices [n] int64, and [n] int64 the epoch, or with class sampling the pass over the class.
        """
        if self.stripes:
            return order.striped_positions_to_images(positions, stripes=self.stripes, seed=seed)
        if self._sampling:
            return order.sampled_positions_to_images(positions, sampling=self._sampling, seed=seed)
        return order.positions_to_images(positions, num_images=self._num_images, seed=seed)
