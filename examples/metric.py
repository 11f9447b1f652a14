"""A metric of your own: the mean margin, by how much the probability of the label exceeds the best of the others.

    convoy train --data=data --workdir=run --config.metrics=mcc,examples/metric.py:mean_margin

It appears as `mean_margin` in the console, TensorBoard, metrics.jsonl, results.csv, result.json and `convoy evaluate`.

A metric is made with the number of classes. Devices and batches are added up, so it has three parts: `size` numbers,
which `batch_sums` computes for a part of a batch and `summarize` turns into the metric when all are added.
"""

import tensorflow as tf


class mean_margin:  # noqa: N801 (the name of the metric)
    """The sum of the margins, and the number of images."""

    size = 2

    def __init__(self, num_classes):
        """Takes the number of classes."""
        self.num_classes = num_classes

    def batch_sums(self, logits, labels, losses, weights):
        """Returns [size] float32, as TensorFlow operations. Padding has the weight 0 and must not count."""
        probabilities = tf.nn.softmax(logits)
        is_label = tf.one_hot(labels, self.num_classes)
        of_label = tf.reduce_sum(probabilities * is_label, -1)
        of_others = tf.reduce_max(probabilities - 2.0 * is_label, -1)
        return tf.stack([tf.reduce_sum(weights * (of_label - of_others)), tf.reduce_sum(weights)])

    def summarize(self, sums):
        """Returns the metric, from the sums over all images as [size] float64."""
        return sums[0] / sums[1]
