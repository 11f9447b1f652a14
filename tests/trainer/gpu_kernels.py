"""Which operations of a traced graph run on a GPU, by TensorFlow's registry of kernels. Needs no GPU.

    kernels = RegisteredKernels("GPU")
    missing = [node for node in nodes_of(graph) if not kernels.find(node)]
    copies_to_host(graph, kernels)          # Counter of (producer, consumer)

The wheel of TensorFlow for Linux is built with CUDA and registers the kernels of GPUs also where there is none.
"""

import collections
from collections.abc import Iterable, Iterator

import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.python.framework import kernels, op_def_registry

_CALLS = ("PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "While", "StatelessWhile", "Case")
_BRANCHES = ("If", "StatelessIf")
_ARGUMENTS = ("Placeholder", "_Arg", "_Retval")
HOST, DEVICE = "host", "device"
# TensorFlow keeps these in host memory: handles of variables, texts, and int32 between functions.
_ON_HOST_BETWEEN_FUNCTIONS = (tf.resource.as_datatype_enum, tf.string.as_datatype_enum, tf.int32.as_datatype_enum)


class RegisteredKernels:
    """The kernels of one kind of device: `GPU`, `CPU`, or `XLA_GPU_JIT` after the first use of XLA."""

    def __init__(self, device: str):
        """Reads the registry, with the kernels that serve any device unless it is a compiler."""
        self._kernels = collections.defaultdict(list)
        registered = kernels.get_all_registered_kernels().kernel
        for kind in (device,) if device.startswith("XLA") else (device, "DEFAULT"):  # those of the device come first
            for kernel in registered:
                if kernel.device_type == kind:
                    self._kernels[kernel.op].append(kernel)

    def has(self, operation: str) -> bool:
        """Whether there is a kernel of an operation for any dtypes."""
        return operation in self._kernels

    def find(self, node: Message) -> Message | None:
        """Returns the KernelDef for the dtypes of a NodeDef, or None."""
        return next((kernel for kernel in self._kernels.get(node.op, ()) if _matches(kernel, node)), None)


def _matches(kernel: Message, node: Message) -> bool:
    for constraint in kernel.constraint:
        value = node.attr[constraint.name]
        types = value.list.type if value.WhichOneof("value") == "list" else [value.type]
        if not set(types) <= set(constraint.allowed_values.list.type):
            return False
    return True


def bodies_of(graph: tf.Graph) -> Iterator[tuple[str, list[Message]]]:
    """Yields the nodes (NodeDef) of a graph and of each function that it calls, with the function's name."""
    definition = graph.as_graph_def()
    yield "", list(definition.node)
    for function in definition.library.function:
        yield function.signature.name, list(function.node_def)


def nodes_of(graph: tf.Graph) -> Iterator[Message]:
    """Yields the operations of a graph and of the functions that it calls, without calls and arguments themselves."""
    for _, nodes in bodies_of(graph):
        for node in nodes:
            if node.op not in _CALLS + _ARGUMENTS:
                yield node


def described(node: Message) -> str:
    """Returns an operation with its dtypes, such as `Cast(SrcT=uint8, DstT=float)`."""
    types = [(name, value.type) for name, value in sorted(node.attr.items()) if value.WhichOneof("value") == "type"]
    return f"{node.op}({', '.join(f'{name}={tf.as_dtype(value).name}' for name, value in types)})"


def is_on_host(node: Message) -> bool:
    """Whether the code pins an operation to the CPU."""
    return "CPU" in node.device


def copies_to_host(graph: tf.Graph, gpu: RegisteredKernels) -> collections.Counter:
    """Counts the copies from device to host memory that a graph makes when it runs on a GPU, each a wait.

    Operations are placed as traced: TensorFlow's graph optimizer may move small ones to the host. What depends only on
    constants is left out, since it computes that once, and so are scalars among the arguments, which come from Python.

    Returns:
      Number of copies by (producer, consumer), each as `described`, or as `argument` of a function.
    """
    found: collections.Counter = collections.Counter()
    for _, nodes in bodies_of(graph):
        by_name = {node.name: node for node in nodes}
        constant = _constants(nodes)
        for node in nodes:
            needed = _memory(node, gpu, "input_arg")
            for number, name in enumerate(each for each in node.input if not each.startswith("^")):
                producer, output = _producer(name, by_name)
                source = by_name.get(producer)
                if source is None or producer in constant or needed[number] != HOST or _is_scalar_argument(source):
                    continue
                made = _memory(source, gpu, "output_arg", output)
                if made == DEVICE:
                    found[described(source), described(node)] += 1
    return found


def _constants(nodes: list[Message]) -> set[str]:
    """Returns the names of the nodes that depend on constants only."""
    constant: set[str] = set()
    for node in nodes:  # in the order of tracing: inputs come first
        inputs = [each.partition(":")[0] for each in node.input if not each.startswith("^")]
        if node.op == "Const" or (inputs and constant.issuperset(inputs)):
            constant.add(node.name)
    return constant


def _is_scalar_argument(node: Message) -> bool:
    return node.op == "Placeholder" and not node.attr["shape"].shape.dim


def _producer(name: str, by_name: dict[str, Message]) -> tuple[str, str]:
    """Returns node and output of an input: `node:argument:number` in a function, `node:number` in a graph."""
    node, _, output = name.partition(":")
    return node, output or "0"


def _memory(node: Message, gpu: RegisteredKernels, kind: str, output: str | None = None):
    """Returns where each input of a node has to be, or where one of its outputs is."""
    definition = op_def_registry.get(node.op)
    where = [
        (argument.name, _place(node, argument, dtype, gpu))
        for argument in getattr(definition, kind)
        for dtype in _types(node, argument)
    ]
    if output is None:
        return [place for _, place in where]
    name, _, number = output.partition(":")
    if number:
        return [place for argument, place in where if argument == name][int(number)]
    return where[int(name)][1]


def _types(node: Message, argument: Message) -> Iterable[int]:
    if argument.type_list_attr:
        return node.attr[argument.type_list_attr].list.type
    dtype = node.attr[argument.type_attr].type if argument.type_attr else argument.type
    return [dtype] * (node.attr[argument.number_attr].i if argument.number_attr else 1)


def _place(node: Message, argument: Message, dtype: int, gpu: RegisteredKernels) -> str:
    if node.op in _BRANCHES and argument.name == "cond":
        return HOST
    if node.op in _CALLS + _ARGUMENTS:
        return HOST if dtype in _ON_HOST_BETWEEN_FUNCTIONS else DEVICE
    kernel = gpu.find(node)
    on_host = is_on_host(node) or kernel is None or argument.name in kernel.host_memory_arg
    return HOST if on_host or dtype == tf.resource.as_datatype_enum else DEVICE
