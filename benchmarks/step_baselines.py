"""The training step of Keras `fit` and of PyTorch, each in its usual way, for comparison with Convoy's."""

from typing import Any

from benchmarks.workers import Prepared, Round, SkippedError, Stopwatch, timed

CLASSES = 42
LEARNING_RATE = 1e-3


def keras_model(image_size: int, name: str = "baseline_cnn") -> Any:  # noqa: ANN401
    """Returns `baseline_cnn` as plain Keras code, or `resnet50` of `keras.applications`."""
    import keras
    from keras import layers

    if name == "resnet50":
        options = {"weights": None, "classes": CLASSES, "classifier_activation": None}
        body = keras.applications.ResNet50(input_shape=(image_size, image_size, 3), **options)
        return keras.Sequential([body, layers.Activation("softmax", dtype="float32")])

    def block(filters: int) -> list[keras.Layer]:
        return [layers.Conv2D(filters, 3), layers.Activation("relu"), layers.BatchNormalization()]

    def dense(units: int) -> list[keras.Layer]:
        return [layers.Dense(units), layers.Activation("relu"), layers.BatchNormalization(), layers.Dropout(0.5)]

    stack = [layers.Input((image_size, image_size, 3)), *block(32), *block(32)]
    stack += [layers.MaxPooling2D(2), layers.Dropout(0.25), *block(64), layers.Dropout(0.25)]
    stack += [*block(128), layers.MaxPooling2D(2), layers.Dropout(0.25), layers.Flatten(), *dense(512), *dense(128)]
    return keras.Sequential([*stack, layers.Dense(CLASSES), layers.Activation("softmax", dtype="float32")])


def prepare_fit(precision: str, options: dict[str, Any]) -> Prepared:
    """Prepares Keras `compile` and `fit`.

    Args:
      precision: "float32" or "bfloat16".
      options: batch_size, image_size, steps_per_round; `model` and `on_gpu` if they differ from `baseline_cnn` and the
        CPU.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    keras.config.set_dtype_policy("float32" if precision == "float32" else "mixed_bfloat16")
    size, batch_size, steps = options["image_size"], options["batch_size"], options["steps_per_round"]
    model = keras_model(size, options.get("model", "baseline_cnn"))
    model.compile(keras.optimizers.Adam(LEARNING_RATE), "sparse_categorical_crossentropy", metrics=["accuracy"])
    random = np.random.default_rng(0)
    images = random.random((batch_size, size, size, 3), np.float32)
    labels = random.integers(0, CLASSES, batch_size, np.int32)
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    on_gpu = options.get("on_gpu", False)
    dataset = dataset.apply(tf.data.experimental.prefetch_to_device("GPU:0", 2)) if on_gpu else dataset.prefetch(2)
    untimed_steps = 2

    class Timer(keras.callbacks.Callback):
        """Times a call of `fit` without its start-up.

        It has no `on_train_batch_end`, for which Keras would wait for the metrics of every step.
        """

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ANN401
            if batch == untimed_steps:
                model.optimizer.iterations.numpy()  # waits for the steps before
                self.watch = Stopwatch()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ANN401
            self.round = self.watch.stop(steps * batch_size)

    def time_round() -> Round:
        timer = Timer()
        model.fit(dataset, steps_per_epoch=untimed_steps + steps, epochs=1, verbose=0, callbacks=[timer])
        return timer.round

    return Prepared(time_round)


def prepare_torch(precision: str, options: dict[str, Any], *, compiled: bool = False) -> Prepared:
    """Prepares PyTorch with channels last and fused Adam.

    Args:
      precision: "float32" or "bfloat16", by autocast.
      options: as for `prepare_fit`, and threads.
      compiled: whether `torch.compile` compiles the model.

    Raises:
      SkippedError: PyTorch is not installed, or sees no GPU.
    """
    try:
        import torch
    except ImportError:
        raise SkippedError("torch is not installed: `pip install 'convoy-train[bench]'`") from None
    from torch import nn

    device = "cuda" if options.get("on_gpu") else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SkippedError("PyTorch sees no GPU")

    if options["threads"]:
        torch.set_num_threads(options["threads"])
    size, batch_size, steps = options["image_size"], options["batch_size"], options["steps_per_round"]

    def block(inputs: int, filters: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, filters, 3), nn.ReLU(), nn.BatchNorm2d(filters)]

    def dense(units: int) -> list[nn.Module]:
        return [nn.LazyLinear(units), nn.ReLU(), nn.BatchNorm1d(units), nn.Dropout(0.5)]

    stack = [*block(3, 32), *block(32, 32), nn.MaxPool2d(2), nn.Dropout(0.25), *block(32, 64), nn.Dropout(0.25)]
    stack += [*block(64, 128), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), *dense(512), *dense(128)]
    model = nn.Sequential(*stack, nn.LazyLinear(CLASSES))
    if options.get("model") == "resnet50":
        try:
            from torchvision.models import resnet50
        except ImportError:
            raise SkippedError("torchvision is not installed: `pip install 'convoy-train[bench]'`") from None
        model = resnet50(num_classes=CLASSES)
    images = torch.rand(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        model(images[:2])  # makes the weights of the lazy layers
    images, labels = images.to(device), torch.randint(0, CLASSES, (batch_size,), device=device)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    forward = torch.compile(model) if compiled else model

    def train() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                logits = forward(images)
            loss = nn.functional.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the GPU

    return Prepared(timed(train, steps * batch_size))
