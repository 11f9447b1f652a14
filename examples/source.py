"""A data source of your own: training on a zip archive of photos, without unpacking or converting it.

    PHOTOS=photos.zip convoy train --data=examples/source.py:photos --workdir=run
    PHOTOS=photos.zip convoy evaluate --workdir=run --split=validation

A source has `num_images`, the label of each image, and reads images by index as the bytes of their files. Convoy does
the rest: order, shuffling, decoding, augmentation, exact resume. A run on a source has the same weights as one on
converted shards with the same images in the same order.

The function is called without arguments, by every worker, and returns one source per split. The bytes of an image must
not change while it is used. `read` is called from several threads, one call at a time.
"""

import os
import zipfile


class ZippedPhotos:
    """The images `.../CLASS/NAME.jpg` of an archive, or the part of them that a split has."""

    def __init__(self, archive, names):
        """Takes an open archive and the names of its files."""
        self._archive = archive
        self._names = names
        self.num_images = len(names)
        self.class_names = sorted({class_of(name) for name in photo_names(archive)})  # the same for all splits

    def label(self, index):
        """Returns the index of an image's class in `class_names`."""
        return self.class_names.index(class_of(self._names[index]))

    def read(self, indices):
        """Returns the bytes of the files."""
        return [self._archive.read(self._names[index]) for index in indices]


def photo_names(archive):
    """Returns the names of the photos, sorted, so that the order is the same on every host."""
    return sorted(name for name in archive.namelist() if name.endswith((".jpg", ".png")))


def class_of(name):
    """Returns the folder that a file is in."""
    return name.split("/")[-2]


def photos():
    """Returns the sources: every tenth photo is for validation."""
    archive = zipfile.ZipFile(os.environ.get("PHOTOS", "photos.zip"))
    names = photo_names(archive)
    return {
        "train": ZippedPhotos(archive, [name for i, name in enumerate(names) if i % 10]),
        "validation": ZippedPhotos(archive, names[::10]),
    }
