"""Contents of a dataset directory of `convoy convert`, from which the reference page is made.

`{name}` in a path stands for any text without a slash. Descriptions are Markdown.
"""

FILES = {
    "manifest.json": "name, classes, settings, splits and shards; see [manifest.json](#manifestjson). A folder with it "
    "is a dataset directory: it is written last",
    "{name}-{split}.tfrecord-{number}-of-{shards}": "shard: TFRecord file of `tf.train.Example` records; see "
    "[Records](#records)",
    "{name}-{split}.tfrecord-{number}-of-{shards}.idx": "offset and size of each record of the shard in bytes, one "
    "line each, for readers such as DALI and `tfrecord`",
    "index-{split}.npz": "location, label and checksum of each record of a split; see [index-SPLIT.npz]"
    "(#index-splitnpz). Opening a dataset reads it in place of the shards; if it is missing, record headers are read",
    "images-{split}.npz": "facts about each image of a split, for the report and for finding duplicates; see "
    "[images-SPLIT.npz](#images-splitnpz). With `--group_column` there is also `group`, the hash of an image's group, "
    "0 for none",
    "quarantine.jsonl": "files that were left out, one JSON object each; see [quarantine.jsonl](#quarantinejsonl)",
    "report.html": "report on all splits: classes, sizes, duplicates, findings, in one file",
    "dataset_info.json": "splits and shards, for TFDS (`tfds.builder_from_directory`)",
    "features.json": "features of a record, for TFDS",
    "image.class.label.labels.txt": "class names by label, one per line, for TFDS",
    "image-class-label.labels.txt": "the same for readers of flat records",
}

MANIFEST = {
    "format_version": "version of the format",
    "name": "name of the dataset in file names",
    "settings": "`image_size` (0: original sizes) and `encoding` (`keep`, `jpeg`, `png` or `raw`), the same for all "
    "splits",
    "class_names": "class names; the position of a class is its label",
    "multi_label": "`true` if an image has any number of labels; missing if each has one",
    "label_delimiter": "of such a dataset: what separates the labels of an image in one text",
    "splits": "an object per split, with the fields below",
}

SPLIT = {
    "seed": "seed of the split and of the order of its records",
    "num_images": "number of records",
    "counts": "number of records per class, by label",
    "labels_per_image": "of a multi-label dataset: number of images with 0, 1, 2, ... labels",
    "class_weights": "inverse-frequency weight per class, by label; their mean over the images is 1, and empty classes "
    "have 0. Of a multi-label dataset: images without the class over images with it",
    "shards": "`file`, `images`, `bytes` and `sha256` of each shard, in order",
    "grouped": "with `--group_similar` or `--group_column`: what was kept together, and how many groups and images",
}

RECORD = {
    "image/encoded": ("bytes", "JPEG or PNG file, or raw RGB pixels"),
    "image/format": ("text", "`jpeg`, `png` or `raw`"),
    "image/height": ("integer", "height in pixels"),
    "image/width": ("integer", "width in pixels"),
    "image/channels": ("integer", "channels of the encoded image; it is read as RGB"),
    "image/class/label": ("integer", "label, from 0; of a multi-label dataset a list of any number of them, rising"),
    "image/class/text": ("text", "class name; of a multi-label dataset a list of as many"),
    "image/filename": ("text", "path of the source file, relative to the folder of images"),
}

INDEX = {
    "shard": "number of the shard",
    "offset": "start of the record in the shard, in bytes",
    "length": "payload bytes",
    "label": "label; of a multi-label dataset the labels of one record after another",
    "crc": "masked CRC-32C of the payload, as in the shard",
    "num_labels": "of a multi-label dataset: number of labels",
}

IMAGES = {
    "width": "width in pixels, as stored",
    "height": "height in pixels, as stored",
    "source_bytes": "size of the source file in bytes",
    "content": "hash of the source file's bytes",
    "perceptual": "perceptual hash; images that look alike differ in few bits",
    "changed": "whether the image was re-encoded",
}

QUARANTINE = {
    "split": "split that the file would be in",
    "path": "path relative to the folder of images; of other sources, the file and the row, record or member in it",
    "category": "class; empty for files that are not images, or have no label",
    "reason": "why it was left out: cannot be decoded, no label, `same bytes as ...`, not named by the CSV, ...",
}
