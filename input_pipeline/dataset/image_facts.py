"""images-SPLIT.npz: facts about each image of a split, for the report and for finding duplicates."""

from pathlib import Path
from typing import cast

import numpy as np

from convoy.core.errors import ConvoyError
from convoy.core.npz import opened, read_array
from convoy.core.remote import RemotePath
from convoy.input_pipeline.dataset.index import AnyPath
from convoy.input_pipeline.dataset.storage import local_copy

# The arrays, in the order of the records: stored size in pixels, bytes and `plan.content_hash` of the source file,
# `perceptual_hash`, and whether the image was re-encoded.
IMAGE_TYPES = {
    "width": np.uint32,
    "height": np.uint32,
    "source_bytes": np.int64,
    "content": np.uint64,
    "perceptual": np.uint64,
    "changed": np.bool_,
}
# A further array if the conversion had `--group_column`: the hash of the image's group, 0 for none.
GROUP = "group"


def images_path(directory: AnyPath, split: str) -> AnyPath:
    """Returns the path of a split's images-SPLIT.npz."""
    return cast(AnyPath, directory / f"images-{split}.npz")


def read_images(directory: Path | RemotePath, split: str) -> dict[str, np.ndarray]:
    """Returns the arrays of images-SPLIT.npz; {} if it is missing or damaged.

    Raises:
      ConvoyError: the object store fails.
    """
    try:
        with local_copy(images_path(directory, split)) as local, opened(local) as archive:
            types = IMAGE_TYPES | ({GROUP: np.uint64} if f"{GROUP}.npy" in archive.namelist() else {})
            columns = {name: read_array(archive, name, dtype, dimensions=1) for name, dtype in types.items()}
    except ConvoyError:
        raise
    except Exception:  # damaged bytes make zipfile and numpy raise anything
        return {}
    return columns if len({column.shape for column in columns.values()}) == 1 else {}
