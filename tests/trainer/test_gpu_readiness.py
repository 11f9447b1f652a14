"""What can be shown without a GPU: for every shipped recipe and precision, the graphs that a GPU would run.

They are traced for the device `GPU:0`, which need not exist for that. TensorFlow's wheel for Linux is built with CUDA,
so its registry has the kernels of GPUs on any machine.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import keras
import pytest
import tensorflow as tf

from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from convoy.trainer import config as configs
from convoy.trainer.config.recipes import load_recipe, shipped_recipes
from convoy.trainer.evaluation.evaluator import Evaluator
from convoy.trainer.session.objective import Objective
from convoy.trainer.session.runtime import make_runtime, make_train_step
from convoy.trainer.step.step import TrainStep
from tests.trainer.gpu_kernels import RegisteredKernels, copies_to_host, described, is_on_host, nodes_of
from tests.trainer.graph_memory import allocated_bytes, peak_bytes

RECIPES = sorted(shipped_recipes())
PRECISIONS = ("float32", "bfloat16", "float16")
BATCH, CLASSES, LARGEST_SIZE = 4, 7, 32
PRETRAINED = ("convnext_tiny", "finetune", "vit_small")
# The rest takes minutes.
QUICK = ("smoke-bfloat16",)

# Operations without a GPU kernel for their dtypes, which TensorFlow places on the host.
ON_HOST = {
    "Unpack(T=uint32)": "splits the seeds of random layers, which are drawn on the host, where their kernels want them",
}
# Python code in a graph. Steps of several processes have two, which note the time (`StepResult.ready`, `reduced`).
CALLBACKS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")

pytestmark = pytest.mark.skipif(not tf.test.is_built_with_cuda(), reason="TensorFlow is built without CUDA")


class Traced(NamedTuple):
    """A recipe for a device.

    Attributes:
      recipe: its name.
      precision: float32, bfloat16 or float16.
      step: its training step.
      batch: what the reader hands to the step, as specs by column.
      graphs: the graphs of the step, one per training phase, and of evaluation.
    """

    recipe: str
    precision: str
    step: TrainStep
    batch: dict[str, tf.TensorSpec]
    graphs: dict[str, tf.Graph]

    def forward_and_backward(self, *, compiled: bool) -> tuple[Callable, list[tf.TensorSpec]]:
        """Returns the pure function of the step that XLA compiles on GPUs, for flat arguments, and their specs."""
        state, part = self.step._state, {name: spec for name, spec in self.batch.items() if name != "index"}
        arguments = (
            [tf.TensorSpec(w.shape, w.dtype) for w in state.weights],
            [tf.TensorSpec(v.shape, v.dtype) for v in state.averages] if state.statistics_of_averages else [],
            [tf.TensorSpec(v.shape, v.dtype) for v in state.statistics],
            tf.TensorSpec([max(1, sum(self.step._is_seed)), 2], tf.uint32),
            part | {"mixing": tf.TensorSpec([BATCH, 4])},
            tf.TensorSpec([]),
        )

        def run(*flat):
            return self.step._forward_backward(self.step._phases[0], *tf.nest.pack_sequence_as(arguments, flat))

        return tf.function(run, jit_compile=compiled or None, autograph=False), tf.nest.flatten(arguments)


@pytest.fixture(scope="module", autouse=True)
def float32_policy():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A preset with the layers of `vit_small`, of which Keras Hub has no weights here, and two blocks."""
    if not importlib.util.find_spec("keras_hub"):
        pytest.skip("needs the extra hub (Python 3.11)")
    import keras_hub

    folder = tmp_path_factory.mktemp("presets") / "tiny_deit"
    keras.config.set_dtype_policy("float32")
    backbone = keras_hub.models.DeiTBackbone(
        image_shape=(LARGEST_SIZE, LARGEST_SIZE, 3),
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        use_mha_bias=True,
    )
    backbone.save_to_preset(folder)
    size = (LARGEST_SIZE, LARGEST_SIZE)
    keras_hub.layers.DeiTImageConverter(image_size=size, scale=1 / 255, offset=0.0).save_to_preset(folder)
    return folder


def parameters():
    for recipe in RECIPES:
        for precision in PRECISIONS:
            name = f"{recipe}-{precision}"
            yield pytest.param((recipe, precision), id=name, marks=[] if name in QUICK else [pytest.mark.slow])


@pytest.fixture(scope="module", params=parameters())
def traced(request, dataset):
    """A recipe in one precision, as traced for a GPU without XLA, so operation by operation."""
    recipe, precision = request.param
    config = recipe_config(recipe, precision, request)
    return Traced(recipe, precision, *trace(config, dataset, device="GPU:0"))


def recipe_config(recipe, precision, request):
    config = load_recipe(recipe)
    if config.model.name.startswith("keras_hub:"):
        config.model.name = f"keras_hub:{request.getfixturevalue('transformer')}"
    config.model.weights = ""
    config.precision, config.xla, config.batch_size, config.virtual_replicas = precision, "off", BATCH, 1
    config.image_size = min(config.image_size, LARGEST_SIZE)
    config.progressive.sizes, config.progressive.ends = (), ()
    return config


def trace(config, dataset, *, device):
    """Returns step, batch and graphs of a recipe for a device."""
    strategy = tf.distribute.OneDeviceStrategy(device)
    freezes = config.model.freeze_epochs > 0
    config.model.freeze_epochs = 0.0  # which needs weights
    plan = configs.resolve(config, num_images=64, replicas=1)
    runtime = make_runtime(config, strategy, num_classes=CLASSES)
    step = make_train_step(config, dataclasses.replace(plan, freeze_steps=int(freezes)), runtime, Objective())
    side, slices = config.image_size, BatchSlice(BATCH)
    pipeline = parse_pipeline(config.augment.ops, image_size=side)
    split = open_dataset(dataset.data).split("test")
    reader = Reader(split, Crop(side, *pipeline.scale), draws=pipeline.draws, operations=pipeline.host)
    batch = reader.training(slices, seed=0).element_spec
    scalars = (tf.TensorSpec([], tf.int64), tf.TensorSpec([]), tf.TensorSpec([]))
    graphs = {
        f"step, phase {number}": step._run.get_concrete_function(phase, *scalars, batch).graph
        for number, phase in enumerate(filter(None, step._phases))
    }
    evaluator = Evaluator(runtime.state, runtime.built, reader, BATCH, flip_tta=config.flip_tta)
    evaluated = reader.evaluation(slices).element_spec
    graphs["evaluation"] = evaluator._evaluate_batch.get_concrete_function((evaluated,)).graph
    reader.close()
    return step, batch, graphs


@pytest.fixture(scope="module")
def gpu():
    return RegisteredKernels("GPU")


def test_each_operation_has_a_kernel_of_gpus_or_belongs_on_the_host(traced, gpu):
    for name, graph in traced.graphs.items():
        without = {described(node) for node in nodes_of(graph) if not is_on_host(node) and not gpu.find(node)}
        assert not without - ON_HOST.keys(), name


def test_nothing_calls_python(traced):
    for name, graph in traced.graphs.items():
        assert not [node.op for node in nodes_of(graph) if node.op in CALLBACKS], name


def test_nothing_waits_for_a_value_of_the_gpu(traced, gpu):
    for name, graph in traced.graphs.items():
        assert not copies_to_host(graph, gpu), name


def test_images_reach_the_device_as_bytes(traced):
    assert traced.batch["image"].dtype == tf.uint8
    for name, graph in traced.graphs.items():
        columns = [tensor for tensor in graph.inputs if tensor.dtype != tf.resource]
        # The others are of an image: its random numbers, labels, index and weight.
        large = [tensor.dtype for tensor in columns if tensor.shape.num_elements() > 64 * BATCH]
        assert large == [tf.uint8], name


def test_xla_compiles_forward_and_backward_pass(traced):
    compiled, specs = traced.forward_and_backward(compiled=True)
    # Fails for an operation that XLA cannot compile: there is no falling back.
    assert "ENTRY" in compiled.experimental_get_compiler_ir(*specs)(stage="hlo")
    xla = RegisteredKernels("XLA_GPU_JIT")
    graph = compiled.get_concrete_function(*specs).graph
    assert not {described(node) for node in nodes_of(graph) if not xla.find(node)}


def test_the_estimated_memory_is_what_a_run_on_the_cpu_allocates(traced):
    if traced.recipe in PRETRAINED or traced.precision == "float16":
        pytest.skip("kernels of the CPU for depthwise convolutions and float16 need memory of their own")
    function, specs = traced.forward_and_backward(compiled=False)
    concrete = function.get_concrete_function(*specs)
    estimated, allocated = peak_bytes(concrete.graph), allocated_bytes(concrete)
    assert 0.7 * allocated < estimated < 1.3 * allocated


@pytest.mark.slow
def test_a_step_compiled_by_xla_trains(dataset, request):
    config = recipe_config("smoke", "float32", request)
    config.xla = "on"
    step, batch, _ = trace(config, dataset, device="CPU:0")
    values = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in batch.items()}
    assert step(values, 0.1).finite


@pytest.mark.parametrize("collective", ["CollectiveReduceV2", "CollectiveGatherV2", "CollectiveAllToAllV2"])
def test_the_collectives_of_several_processes_have_kernels_of_gpus(gpu, collective):
    assert gpu.has(collective)
