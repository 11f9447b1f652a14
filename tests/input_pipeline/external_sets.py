"""External TFRecord datasets: prepared by TFDS, and shards like those of Model Garden."""

from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels

KINDS = ("cup", "fork", "jar")


class Photos(tfds.core.GeneratorBasedBuilder):
    """Images of three kinds; the split `test` has no labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "kind": tfds.features.ClassLabel(names=list(KINDS)),
            "photo": tfds.features.Image(shape=(None, None, 3)),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager
        return {
            "train": self._generate_examples(range(60)),
            "validation": self._generate_examples(range(60, 75)),
            "test": self._generate_examples(range(75, 80), labeled=False),
        }

    def _generate_examples(self, numbers, labeled=True):
        for number in numbers:
            yield number, {"id": f"{number}", "kind": number % 3 if labeled else -1, "photo": pixels(number)}


class TwoSplits(Photos):
    """Images of three kinds, without a split `validation`."""

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(range(30)), "test": self._generate_examples(range(30, 36))}


def prepare_with_tfds(folder: Path, builder_class: type[tfds.core.GeneratorBasedBuilder] = Photos) -> Path:
    """Prepares a dataset with TFDS under `folder`; returns the dataset directory."""
    builder = builder_class(data_dir=str(folder))
    builder.download_and_prepare()
    return Path(builder.data_dir)


def write_like_model_garden(folder: Path, numbers: range, split: str, shards: int = 2) -> Path:
    """Writes images to shards with ImageNet's keys and labels from 1; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{split}-{shard:05d}-of-{shards:05d}" for shard in range(shards)]
    writers = [tf.io.TFRecordWriter(str(path)) for path in paths]
    for number in numbers:
        image = pixels(number)
        features = {
            "image/encoded": bytes_feature(encode(image, "jpeg")),
            "image/format": bytes_feature(b"JPEG"),
            "image/height": int_feature(image.shape[0]),
            "image/width": int_feature(image.shape[1]),
            "image/colorspace": bytes_feature(b"RGB"),
            "image/class/label": int_feature(number % 3 + 1),
            "image/class/text": bytes_feature(KINDS[number % 3].encode()),
            "image/filename": bytes_feature(f"{number}.JPEG".encode()),
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        writers[number % shards].write(example.SerializeToString())
    for writer in writers:
        writer.close()
    return folder


def bytes_feature(value: bytes) -> tf.train.Feature:
    """Returns a feature with one value."""
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def int_feature(value: int) -> tf.train.Feature:
    """Returns a feature with one value."""
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
