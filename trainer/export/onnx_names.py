"""Names of the nodes and tensors in an ONNX graph, by their position.

tf2onnx numbers names, orders nodes and picks which of several equal constants it keeps in the order of Python's sets,
which differs from process to process. `rename` makes the files of the same model the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx


def rename(graph: "onnx.GraphProto") -> None:
    """Sorts nodes and constants by position, from the outputs backwards, and names them accordingly.

    Leaves a graph with control flow as it is: its inner graphs refer to outer names.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return
    constants = {constant.name: constant for constant in graph.initializer}
    nodes = _sorted_nodes(graph)
    names = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}  # "" is an absent input
    used = []
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type}_{number}"
        for position, name in enumerate(node.input):
            if name not in names:  # not the output of an earlier node
                names[name] = f"{node.name}_input_{position}"
                used.append(constants[name])
        names |= {name: f"{node.name}_output_{n}" for n, name in enumerate(node.output) if name not in names}
    for node in nodes:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for constant in used:
        constant.name = names[constant.name]
    _replace(graph.node, nodes)
    _replace(graph.initializer, used)
    del graph.value_info[:]  # shapes by the old names
    graph.ClearField("doc_string")  # "converted from" a function with a number


def _sorted_nodes(graph: "onnx.GraphProto") -> list["onnx.NodeProto"]:
    """Returns the nodes that the outputs need, each after those that it needs."""
    producers = {output: node for node in graph.node for output in node.output}
    nodes, done = [], set()
    to_visit = [value.name for value in reversed(graph.output)]
    while to_visit:
        node = producers.get(to_visit[-1])
        if node is None or node.output[0] in done:
            to_visit.pop()
        elif missing := [name for name in node.input if name in producers and producers[name].output[0] not in done]:
            to_visit += reversed(missing)
        else:
            nodes.append(node)
            done.add(node.output[0])
    return nodes


def _replace(field: Any, values: Sequence[Any]) -> None:  # noqa: ANN401 (a repeated field)
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)
