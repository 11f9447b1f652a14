"""Which hooks are called, and what a hook that fails does."""

from types import SimpleNamespace

import pytest

from convoy.core.errors import UsageError
from convoy.trainer.callbacks.callback import HOOKS, Callback
from convoy.trainer.callbacks.callback_list import CallbackList


class Recorder(Callback):
    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def on_log(self, training, log):
        self.calls.append((self.name, log))


class OnEveryWorker(Recorder):
    every_worker = True


class Failing(Callback):
    def __init__(self):
        self.calls = []

    def on_log(self, training, log):
        self.calls.append(log)
        raise ValueError("the cause")

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


def test_a_failed_callback_is_named_and_not_called_again(training):
    calls, errors, failing = [], [], Failing()
    callbacks = callback_list([failing, Recorder(calls, "other")], errors=errors)
    for log in ("first", "second"):
        callbacks.emit("on_log", training, log)
    callbacks.emit("on_end", training, None)
    assert failing.calls == ["first", "end"]
    assert calls == [("other", "first"), ("other", "second")]
    (error,) = errors
    assert error.callback == "Failing"
    message = str(error)
    for part in ("Failing", "on_log", "step 7", "ValueError: the cause", __file__):
        assert part in message


def test_an_expected_error_ends_the_run_by_itself(training):
    class Refuses(Callback):
        def on_log(self, training, log):
            raise UsageError("no")

    errors = []
    with pytest.raises(UsageError):
        callback_list([Refuses()], errors=errors).emit("on_log", training, "log")
    assert errors == []
    assert training._calling == []


def test_states_belong_to_the_callbacks_in_their_order():
    states = callback_list([Counting(1), Callback(), Counting(2)]).states()
    first, second, third = Counting(0), Counting(0), Counting(0)
    callback_list([first, second, third]).restore(states)
    assert [callback.count for callback in (first, second, third)] == [1, 2, 0]


def test_every_hook_is_known():
    assert {"on_start", "on_log", "on_evaluation", "on_checkpoint", "on_stop", "on_end"} <= set(HOOKS)
