"""Converting images that are not files: from an archive here; it could be a database or a download.

    PHOTOS=photos.tar convoy convert --images=examples/convert_iterable.py:photos --output=data

The function yields the bytes and the category of each image. It is read once, one image at a time. The result is that
of a folder of the same files: splits, duplicates, and images that cannot be decoded, which `data/quarantine.jsonl`
lists by their position. If the conversion is interrupted, the same command resumes it.
"""

import os
import tarfile


def photos():
    """Yields the images `.../CATEGORY/NAME.jpg` of an archive."""
    with tarfile.open(os.environ.get("PHOTOS", "photos.tar"), "r|*") as archive:  # a stream: nothing is unpacked
        for member in archive:
            file = archive.extractfile(member)
            if file and member.name.endswith((".jpg", ".png")):
                yield file.read(), member.name.split("/")[-2]
