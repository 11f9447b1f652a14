"""Values of event files, one function per TensorBoard page: pure functions from arrays and text to protos.

    scalar("quality/loss", 3.1), text("run/config", "..."), image("media/worst", picture), ...

Class names may contain anything: TensorBoard escapes them, and `pictures.printable` makes them safe to encode and draw.
"""

import io
import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.graph import keras_util
from tensorboard.plugins.graph import metadata as graphs
from tensorboard.plugins.histogram import metadata as histograms
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.image import metadata as images
from tensorboard.plugins.pr_curve import metadata as pr_curves
from tensorboard.plugins.scalar import metadata as scalars
from tensorboard.plugins.text import metadata as texts
from tensorboard.util.tensor_util import make_tensor_proto

from convoy.trainer.evaluation.counts import THRESHOLDS
from convoy.trainer.evaluation.pictures import printable

_HISTOGRAM_BUCKETS = 30
_SCALAR_METADATA = scalars.create_summary_metadata(display_name=None, description=None)

# The custom scalars page: by category, the tags (regular expressions) of each chart.
_CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Generalization": {
        "loss, train and validation": ("quality/loss$",),
        "top-1, train and validation": ("quality/top1$",),
        "top-5": ("quality/top5$",),
        "gap in top-1: train minus validation": ("gap/top1$",),
        "gap in loss: validation minus train": ("gap/loss$",),
        "best top-1 in validation": ("best/top1$",),
        "macro F1": ("quality/macro_f1$",),
        "calibration error (ECE)": ("quality/ece$",),
        "other metrics": ("quality/(?!loss$|top1$|top5$|macro_f1$|ece$).+",),
    },
    "Optimization": {
        "learning rate": ("optim/lr$",),
        "gradient norm": ("optim/grad_norm$",),
        "weight norm": ("optim/weight_norm$",),
        "loss scale": ("optim/loss_scale$",),
    },
    "Performance": {
        "images/s": ("perf/images_per_s$",),
        "images/s per replica": ("perf/images_per_s_per_replica$",),
        "step time in ms: median and 95th percentile": ("perf/step_ms_p50$", "perf/step_ms_p95$"),
        "step time in ms by part": ("perf/input_wait_ms$", "perf/reduction_ms$", "perf/compute_ms$"),
        "share of the step in %": ("perf/.*_pct$",),
        "model FLOPs utilization": ("perf/model_flops_utilization$",),
        "memory": ("perf/.*memory.*",),
    },
}


_OF_LABELS: dict[str, tuple[str, ...]] = {
    "loss, train and validation": ("quality/loss$",),
    "mAP, train and validation": ("quality/mean_average_precision$",),
    "gap in mAP: train minus validation": ("gap/mean_average_precision$",),
    "gap in loss: validation minus train": ("gap/loss$",),
    "best mAP in validation": ("best/mean_average_precision$",),
    "micro F1": ("quality/micro_f1$",),
    "macro F1": ("quality/macro_f1$",),
    "other metrics": ("quality/(?!loss$|mean_average_precision$|micro_f1$|macro_f1$).+",),
}


def scalar(tag: str, value: float) -> Summary.Value:
    """Returns a point of a curve."""
    tensor = TensorProto(dtype=DT_FLOAT, float_val=[value])
    return Summary.Value(tag=tag, metadata=_SCALAR_METADATA, tensor=tensor)


def text(tag: str, content: str) -> Summary.Value:
    """Returns text that is shown verbatim, as a code block."""
    block = "".join(f"    {line}\n" for line in content.splitlines())  # the content could close a fence
    return _value(tag, texts.create_summary_metadata(None, None), np.array(_utf8(block), object))


def text_of_json(tag: str, value: Any) -> Summary.Value:  # noqa: ANN401 (any JSON value)
    """Returns a JSON value as text."""
    return text(tag, json.dumps(value, indent=2, ensure_ascii=False))


def image(tag: str, picture: Image.Image) -> Summary.Value:
    """Returns a picture."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # a third of the time, 8 % more bytes
    size = [str(side).encode() for side in picture.size]
    metadata = images.create_summary_metadata(display_name=None, description=None)
    return _value(tag, metadata, np.array([*size, file.getvalue()], object))


def histogram(tag: str, values: np.ndarray) -> Summary.Value:
    """Returns a histogram of the finite values of an array of any shape."""
    # In float64: nearly equal weights leave no room for bin edges between them in float32.
    values = values[np.isfinite(values)].astype(np.float64)
    counts, edges = np.histogram(values, _HISTOGRAM_BUCKETS)
    # [buckets, 3] float64: left edge, right edge, count
    buckets = np.stack([edges[:-1], edges[1:], counts.astype(np.float64)], axis=1)
    return _value(tag, histograms.create_summary_metadata(display_name=None, description=None), buckets)


def pr_curve(tag: str, positives: np.ndarray, negatives: np.ndarray) -> Summary.Value:
    """Returns a precision-recall curve.

    Args:
      tag: tag of the curve.
      positives: [THRESHOLDS] int64: examples of the class by score; entry k counts scores in
        [k, k + 1) / (THRESHOLDS - 1).
      negatives: [THRESHOLDS] int64: the same for the other examples.
    """
    true_positives, false_positives = (np.cumsum(counts[::-1])[::-1] for counts in (positives, negatives))
    rows = [true_positives, false_positives, negatives.sum() - false_positives, positives.sum() - true_positives]
    rows += [true_positives / np.maximum(1, true_positives + false_positives)]
    rows += [true_positives / np.maximum(1, positives.sum())]
    metadata = pr_curves.create_summary_metadata(display_name=None, description=None, num_thresholds=THRESHOLDS)
    return _value(tag, metadata, np.stack(rows).astype(np.float32))  # [6, THRESHOLDS]


def layout(*, multi_label: bool = False) -> Summary.Value:
    """Returns the layout of the custom scalars page."""
    by_category = _CHARTS | ({"Generalization": _OF_LABELS} if multi_label else {})
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(title=chart, multiline=layout_pb2.MultilineChartContent(tag=tags))
                for chart, tags in charts.items()
            ],
        )
        for title, charts in by_category.items()
    ]
    content = layout_pb2.Layout(category=categories).SerializeToString()
    return _value(custom_scalar.CONFIG_SUMMARY_TAG, custom_scalar.create_summary_metadata(), np.array(content, object))


def experiment(hyperparameters: Mapping[str, Any], first: Collection[str], metrics: Collection[str]) -> Summary.Value:
    """Returns the columns of the HParams page. Without them TensorBoard finds no metrics of a run in the root folder.

    Args:
      hyperparameters: by name, as for `session_start`.
      first: names of the first columns; the page shows five columns and the others on demand.
      metrics: tags of the metric columns: scalars of the same run as the session.
    """
    infos = [
        api_pb2.HParamInfo(name=name, type=_hparam_type(value), differs=name in first)
        for name, value in hyperparameters.items()
    ]
    names = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
    columns = api_pb2.Experiment(hparam_infos=infos, metric_infos=names)
    return _hparams(plugin_data_pb2.HParamsPluginData(experiment=columns), hparams.EXPERIMENT_TAG)


def session_start(hyperparameters: Mapping[str, Any], wall_time: float) -> Summary.Value:
    """Returns a run's row of the HParams page; its metrics are the scalars of the same run.

    Args:
      hyperparameters: by name: numbers, strings, bools, or other values, which are shown as text.
      wall_time: start of the run, seconds since 1970.
    """
    info = plugin_data_pb2.SessionStartInfo(start_time_secs=wall_time)
    for name, value in hyperparameters.items():
        kind = _hparam_type(value)
        if kind == api_pb2.DATA_TYPE_BOOL:
            info.hparams[name].bool_value = value
        elif kind == api_pb2.DATA_TYPE_FLOAT64:
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = printable(str(value))
    return _hparams(plugin_data_pb2.HParamsPluginData(session_start_info=info), hparams.SESSION_START_INFO_TAG)


def session_end(wall_time: float) -> Summary.Value:
    """Returns the end of a run, for the HParams page."""
    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=wall_time)
    return _hparams(plugin_data_pb2.HParamsPluginData(session_end_info=info), hparams.SESSION_END_INFO_TAG)


def layer_graph(model: Mapping[str, Any]) -> list[Summary.Value]:
    """Returns the graph of a model's layers, from `model_graph.layers_of`.

    In two forms: the Graphs page opens with the graph of operations, and also has a conceptual graph of layers.
    """
    graph, outer = keras_util.keras_model_to_graph_def(model), f"{model['config']['name']}/"
    for node in graph.node:  # without the model's own scope, so that the page shows the layers and not one box
        node.name, node.op = node.name.removeprefix(outer), node.attr["keras_class"].s.decode()
        node.input[:] = [name.removeprefix(outer) for name in node.input]
    return [
        _graph(graphs.RUN_GRAPH_NAME, graphs.PLUGIN_NAME, graph.SerializeToString()),
        _graph("keras", graphs.PLUGIN_NAME_KERAS_MODEL, json.dumps(model).encode()),
    ]


def _graph(tag: str, plugin: str, content: bytes) -> Summary.Value:
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin), data_class=DATA_CLASS_BLOB_SEQUENCE
    )
    return _value(tag, metadata, np.array([content], object))


def _hparam_type(value: Any) -> int:  # noqa: ANN401 (any config value)
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_FLOAT64 if isinstance(value, int | float) else api_pb2.DATA_TYPE_STRING


def _hparams(data: plugin_data_pb2.HParamsPluginData, tag: str) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=hparams.create_summary_metadata(data), tensor=hparams.NULL_TENSOR)


def _value(tag: str, metadata: SummaryMetadata, array: np.ndarray) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(array))


def _utf8(content: str) -> bytes:
    return content.encode("utf-8", "replace")
