"""Memory of a training step on a device, estimated from its graph, and measured on the CPU.

concrete = tf.function(forward_and_backward).get_concrete_function(...)
peak_bytes(concrete.graph)                             # largest sum of the tensors that are alive at once
allocated_bytes(concrete)                              # the same of a run

The estimate walks through the operations in the order in which they were traced. It counts neither the arguments of the
graph (weights and images) nor the workspace of kernels, and knows nothing of the fusions of XLA, which needs less.
"""

from collections import Counter

import numpy as np
import tensorflow as tf

# Their output is their input, seen differently.
_VIEWS = frozenset({
    "Bitcast", "EnsureShape", "ExpandDims", "Identity", "IdentityN", "PreventGradient", "Reshape", "Snapshot",
    "Squeeze", "StopGradient"
})  # fmt: skip
# These write their output over an input that nothing else needs.
_IN_PLACE = frozenset({
    "Add", "AddN", "AddV2", "BiasAdd", "Elu", "Exp", "Gelu", "LogSoftmax", "Maximum", "Minimum", "Mul", "Neg",
    "Pow", "RealDiv", "Relu", "Relu6", "Relu6Grad", "ReluGrad", "Rsqrt", "RsqrtGrad", "SelectV2", "Selu", "Sigmoid",
    "SigmoidGrad", "Softmax", "Sqrt", "Square", "SquaredDifference", "Sub", "Tanh", "TanhGrad"
})  # fmt: skip


def peak_bytes(graph: tf.Graph) -> int:
    """Returns the largest number of bytes that the results of a graph's operations take at once.

    Args:
      graph: of a function that computes forward and backward pass, with static shapes; tensors of others count as 0.
    """
    operations = graph.get_operations()
    uses = Counter(tensor.ref() for operation in operations for tensor in operation.inputs)
    uses.update(tensor.ref() for tensor in graph.outputs)  # these stay
    buffer_of, size_of, references = {}, {}, Counter()
    alive = peak = 0
    for operation in operations:
        read = [tensor.ref() for tensor in operation.inputs]
        for tensor in operation.outputs:
            buffer = _shared_buffer(operation, tensor, buffer_of, size_of, references)
            if buffer is None:
                buffer = tensor.ref()
                size_of[buffer] = 0 if operation.type == "Placeholder" else _bytes(tensor)
                alive += size_of[buffer]
            buffer_of[tensor.ref()] = buffer
            references[buffer] += uses[tensor.ref()]
        peak = max(peak, alive)
        for name in read:
            references[buffer_of[name]] -= 1
        for buffer in {buffer_of[name] for name in [*read, *(t.ref() for t in operation.outputs)]}:
            if references[buffer] == 0:
                alive -= size_of[buffer]
    return peak


def _shared_buffer(operation, tensor, buffer_of, size_of, references):  # noqa: ANN001, ANN202
    """Returns the buffer of an input that an output takes over, or None."""
    inputs = [buffer_of[each.ref()] for each in operation.inputs]
    if operation.type in _VIEWS:
        return inputs[0] if inputs else None
    if operation.type in _IN_PLACE:
        size = _bytes(tensor)
        return next((each for each in inputs if references[each] == 1 and size_of[each] == size > 0), None)
    return None


def _bytes(tensor: tf.Tensor) -> int:
    return tensor.shape.num_elements() * tensor.dtype.size if tensor.shape.is_fully_defined() else 0


def allocated_bytes(concrete: tf.types.experimental.ConcreteFunction) -> int:
    """Returns the largest number of bytes that a run of a function on the CPU allocates at once, for arguments of 0."""
    definition = concrete.graph.as_graph_def()
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
        feeds = {tensor.name: np.zeros(tensor.shape, tensor.dtype.as_numpy_dtype) for tensor in concrete.inputs}
        with tf.compat.v1.Session(graph=graph) as session:
            options = tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.FULL_TRACE)
            metadata = tf.compat.v1.RunMetadata()
            session.run([tensor.name for tensor in concrete.outputs], feeds, options=options, run_metadata=metadata)
    nodes = [node for device in metadata.step_stats.dev_stats for node in device.node_stats]
    memories = [memory for node in nodes for memory in node.memory]
    records = [(r.alloc_micros, r.alloc_bytes) for memory in memories for r in memory.allocation_records]
    return max(np.cumsum([size for _, size in sorted(records)]))
