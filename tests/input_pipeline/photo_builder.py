"""A TFDS builder whose files are on the server in PHOTO_SERVER, for tests of `convoy convert --tfds=FILE.py:CLASS`."""

import os

import tensorflow_datasets as tfds


class PhotoSet(tfds.core.GeneratorBasedBuilder):
    """Images of two classes in two splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cup", "jar"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        folders = dl_manager.download_and_extract({split: _url(split) for split in ("train", "test")})
        return {split: self._generate_examples(folder) for split, folder in folders.items()}

    def _generate_examples(self, folder):
        for path in sorted(folder.glob("*/*.png")):
            yield path.name, {"image": path, "label": path.parent.name}


class ByHand(PhotoSet):
    """Needs a file that cannot be downloaded."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Register at example.org, and\nput photos.tar there."

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.manual_dir)}


class Poems(PhotoSet):
    """Has no images."""

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)


def _url(split):
    return f"{os.environ['PHOTO_SERVER']}/{split}.zip"


not_a_builder = 3
