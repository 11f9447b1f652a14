"""Which hooks are called, and what a hook that fails does."""

from types import SimpleNamespace

import pytest

from convoy.core.errors import UsageError
from convoy.trainer.callbacks.callback import HOOKS, Callback
from convoy.trainer.callbacks.callback_list import CallbackList
from convoy.trainer.callbacks.named import find_callbacks


class Recorder(Callback):
    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def on_log(self, training, log):
        self.calls.append((self.name, log))


class OnEveryWorker(Recorder):
    every_worker = True


class Failing(Callback):
    def __init__(self, error):
        self.calls, self.error = [], error

    def on_log(self, training, log):
        self.calls.append(log)
        raise self.error("the cause")

    def on_end(self, training, result):
        self.calls.append("end")


class Counting(Callback):
    def __init__(self, start):
        self.count = start

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count = state["count"]


@pytest.fixture
def training():
    return SimpleNamespace(step=7, _calling=[])


def callback_list(callbacks, *, is_chief=True, errors=None):
    return CallbackList(callbacks, is_chief=is_chief, on_error=[].append if errors is None else errors.append)


@pytest.mark.parametrize(("is_chief", "called"), [(True, ["a", "b"]), (False, ["b"])])
def test_hooks_run_in_order_and_on_the_chief_unless_asked_for(training, is_chief, called):
    calls = []
    callbacks = callback_list([Recorder(calls, "a"), OnEveryWorker(calls, "b")], is_chief=is_chief)
    callbacks.emit("on_log", training, "log")
    callbacks.emit("on_step_end", training, "result")
    assert calls == [(name, "log") for name in called]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_a_failed_callback_is_named_and_not_called_again(training, kind):
    calls, errors, failing = [], [], Failing(kind)
    callbacks = callback_list([failing, Recorder(calls, "other")], errors=errors)
    for log in ("first", "second"):
        callbacks.emit("on_log", training, log)
    callbacks.emit("on_end", training, None)
    assert failing.calls == ["first", "end"]
    assert calls == [("other", "first"), ("other", "second")]
    (error,) = errors
    assert error.callback == "Failing"
    message = str(error)
    for part in ("Failing", "on_log", "step 7", f"{kind.__name__}: the cause", __file__):
        assert part in message


def test_an_expected_error_ends_the_run_by_itself(training):
    class Refuses(Callback):
        def on_start(self, training):
            raise UsageError("no")

        def on_log(self, training, log):
            raise UsageError("the run would not be saved")

    errors = []
    callbacks = callback_list([Refuses()], errors=errors)
    with pytest.raises(UsageError):
        callbacks.emit("on_start", training)
    assert errors == []
    assert training._calling == []
    callbacks.emit("on_log", training, "log")
    assert [error.callback for error in errors] == ["Refuses"]


class FailsLater(Counting):
    def state(self):
        state = super().state()
        self.count += 1
        if self.count > 2:
            raise ValueError("the cause")
        return state


@pytest.mark.parametrize("fails", [FailsLater(1), Counting(1)])
def test_a_state_that_fails_or_is_no_json_keeps_the_last_one(fails):
    errors = []
    callbacks = callback_list([fails, Counting(5)], errors=errors)
    first = callbacks.states(3)
    fails.count = fails.count if isinstance(fails, FailsLater) else {1}
    assert callbacks.states(7) == callbacks.states(8) == first
    assert [error.callback for error in errors] == [type(fails).__name__]
    for part in ("state", "step 7", "the cause" if isinstance(fails, FailsLater) else "{'count': {1}}"):
        assert part in str(errors[0])


def test_a_restore_that_fails_is_named_and_keeps_the_state(training):
    class Changed(Counting):
        def restore(self, state):
            self.count = state["counter"]

        def on_log(self, training, log):
            raise AssertionError("called without its state")

    errors = []
    callbacks = callback_list([Changed(0)], errors=errors)
    callbacks.restore({"Changed": {"count": 4}}, 7)
    callbacks.emit("on_log", training, "log")
    assert callbacks.states(8) == {"Changed": {"count": 4}}
    (error,) = errors
    for part in ("Changed", "restore", "step 7", "'counter'", __file__):
        assert part in str(error)


def test_states_belong_to_the_callbacks_in_their_order():
    states = callback_list([Counting(1), Callback(), Counting(2)]).states(7)
    first, second, third = Counting(0), Counting(0), Counting(0)
    callback_list([first, second, third]).restore(states, 7)
    assert [callback.count for callback in (first, second, third)] == [1, 2, 0]


def test_every_hook_is_known():
    assert {"on_start", "on_log", "on_evaluation", "on_checkpoint", "on_stop", "on_end"} <= set(HOOKS)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([Callback], r"callbacks=\[Callback\].*Callback\(\)"),
        ([3], r"callbacks=\[3\]"),
        ([lambda: Callback()], "callbacks="),
        ("wandb", "'wandb'.*list"),
        (Callback(), "Callback: pass a list"),
        (None, "None: pass a list"),
    ],
)
def test_what_is_no_callback_is_named(given, named):
    with pytest.raises(UsageError, match=named):
        find_callbacks(given)


def test_callbacks_are_taken_as_they_are():
    mine = Callback()
    assert find_callbacks((mine,)) == [mine]
