import onnx
from onnx import TensorProto, helper

from convoy.trainer.export.onnx_names import rename


def graph(names, order, *, unused=False):
    """Returns y = relu(x + c) * relu(x + c) + c, with the given names and order of the nodes."""
    add, relu, mul, last, constant = names
    nodes = [
        helper.make_node("Add", ["x", constant], [add], name=f"a{add}"),
        helper.make_node("Relu", [add], [relu], name=f"r{add}"),
        helper.make_node("Mul", [relu, relu], [mul], name=f"m{add}"),
        helper.make_node("Add", [mul, constant], ["y"], name=f"l{last}"),
    ]
    constants = [helper.make_tensor(constant, TensorProto.FLOAT, [2], [1.0, 2.0])]
    constants += [helper.make_tensor("unused", TensorProto.FLOAT, [1], [3.0])] * unused
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    return helper.make_graph([nodes[number] for number in order], "g", [x], [y], constants)


def test_names_and_order_depend_on_the_graph_only():
    first = graph(("a__1", "b__2", "c", "d", "const__3"), (0, 1, 2, 3))
    second = graph(("other", "a__1", "b", "e__9", "fold__1"), (3, 2, 1, 0), unused=True)
    for each in (first, second):
        rename(each)
    assert first.SerializeToString() == second.SerializeToString()
    onnx.checker.check_model(helper.make_model(first, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))
    assert [node.op_type for node in first.node] == ["Add", "Relu", "Mul", "Add"]


def test_graphs_deeper_than_the_call_stack():
    length = 3000
    nodes = [helper.make_node("Relu", [f"t{number}"], [f"t{number + 1}"]) for number in range(length)]
    ends = [helper.make_tensor_value_info(f"t{number}", TensorProto.FLOAT, [1]) for number in (0, length)]
    deep = helper.make_graph(nodes[::-1], "g", ends[:1], ends[1:])
    rename(deep)
    assert (deep.node[0].input[0], deep.node[-1].output[0], len(deep.node)) == ("t0", f"t{length}", length)
