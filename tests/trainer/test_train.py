"""Whole training runs: their files and output, resuming after a kill, and refused configurations."""

import json
import os
import re
import shutil
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from tests.trainer import user_models
from tests.trainer.run_files import (
    approximately,
    event_names,
    fingerprints,
    json_lines,
    measured,
    result_of,
    steps_evaluated,
    steps_logged,
)

QUALITY = {f"quality/{name}" for name in ("loss", "top1", "top5", "macro_f1", "ece")}
TRAIN_TAGS = QUALITY | {
    "optim/lr",
    "optim/grad_norm",
    "optim/weight_norm",
    "optim/loss_scale",
    "perf/images_per_s",
    "perf/images_per_s_per_replica",
    "perf/step_ms_p50",
    "perf/step_ms_p95",
    "perf/input_wait_pct",
    "perf/input_wait_ms",
    "perf/reduction_ms",
    "perf/compute_ms",
    "perf/memory_mb",
    "run/epoch",
}
VALIDATION_TAGS = QUALITY | {"gap/top1", "gap/loss", "run/epoch"}
LAST_STEP, EVALUATED, LOGGED = 40, [8, 16, 24, 32, 40], list(range(2, 41, 2))
# By optimizer, with which precision it is tested; `auto` depends on the machine.
OPTIMIZERS = {"adam": "float32", "adamw": "bfloat16", "sgd": "float16", "lamb": "auto", "lars": "auto"}
PRECISIONS = ("float32", "bfloat16", "float16")


class TestFinishedRun:
    def test_writes_all_files_and_leaves_no_partial_ones(self, finished_run):
        found = set(fingerprints(finished_run.workdir))
        expected = {
            "config.json",
            "command.txt",
            "environment.json",
            "metrics.jsonl",
            "results.csv",
            "result.json",
            "events.jsonl",
        }
        assert expected <= found
        assert not [name for name in found if "partial" in name or name.endswith(".tmp")]
        for split in ("train", "validation"):
            assert len(list((finished_run.workdir / "tensorboard" / split).glob("events.out.tfevents.*"))) == 1

    def test_result_json(self, finished_run):
        result = result_of(finished_run.workdir)
        assert (result["step"], result["images_seen"]) == (LAST_STEP, LAST_STEP * 16)
        assert result["epoch"] == pytest.approx(LAST_STEP * 16 / 82)
        assert (result["virtual_replicas"], result["replicas"]) == (4, 2)
        assert result["images_per_second"] > 0
        assert re.fullmatch("[0-9a-f]{64}", result["weights_sha256"])
        for split in ("train", "validation"):
            assert {f"quality/{name}" for name in result["metrics"][split]} == QUALITY

    def test_result_has_the_last_metrics(self, finished_run):
        result = result_of(finished_run.workdir)
        for line in json_lines(finished_run.workdir / "metrics.jsonl")[-2:]:
            assert line["step"] == LAST_STEP
            assert result["metrics"][line["split"]] == {
                tag.removeprefix("quality/"): line[tag] for tag in sorted(QUALITY, key=list(line).index)
            }

    def test_metrics_have_the_expected_tags_and_steps(self, finished_run):
        for line in json_lines(finished_run.workdir / "metrics.jsonl"):
            tags = line.keys() - {"step", "split"}
            assert tags == (TRAIN_TAGS if line["split"] == "train" else VALIDATION_TAGS)
        assert steps_logged(finished_run.workdir, "train") == LOGGED
        assert steps_logged(finished_run.workdir, "validation") == EVALUATED
        assert steps_evaluated(finished_run.workdir) == EVALUATED

    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_tensorboard_has_the_values_of_metrics_jsonl(self, finished_run, split):
        events = EventAccumulator(str(finished_run.workdir / "tensorboard" / split), size_guidance={"tensors": 0})
        events.Reload()
        lines = [line for line in json_lines(finished_run.workdir / "metrics.jsonl") if line["split"] == split]
        for tag in TRAIN_TAGS if split == "train" else VALIDATION_TAGS:
            shown = [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
            assert [step for step, _ in shown] == [line["step"] for line in lines]
            assert [value for _, value in shown] == pytest.approx([line[tag] for line in lines], rel=1e-6)

    def test_step_time_is_split_into_input_reduction_and_compute(self, finished_run):
        lines = [line for line in json_lines(finished_run.workdir / "metrics.jsonl") if line["split"] == "train"]
        for line in lines:
            split = [line[f"perf/{name}_ms"] for name in ("input_wait", "reduction", "compute")]
            assert min(split) >= 0.0
            assert line["perf/input_wait_ms"] == pytest.approx(sum(split) * line["perf/input_wait_pct"] / 100)
        assert lines[-1]["perf/reduction_ms"] > 0.0

    def test_result_and_console_report_the_bottleneck(self, finished_run):
        limits = result_of(finished_run.workdir)["limits"]
        assert limits["bound"] in ("input", "reduction", "compute")
        assert limits["step_ms"] == pytest.approx(
            sum(limits[f"{n}_ms"] for n in ("input_wait", "reduction", "compute"))
        )
        assert limits["step_ms_p50"] <= limits["step_ms_p95"]
        assert limits["images_per_second"] == pytest.approx(16e3 / limits["step_ms"])
        assert limits["sentence"] in finished_run.output

    def test_tensorboard_has_config_environment_dataset_and_command(self, finished_run):
        events = EventAccumulator(str(finished_run.workdir / "tensorboard" / "train"), size_guidance={"tensors": 0})
        events.Reload()
        for name, content in (("config", '"batch_size": 16'), ("dataset", '"1e3"'), ("command", "--config=smoke")):
            (event,) = events.Tensors(f"run/{name}")
            assert content in make_ndarray(event.tensor_proto).item().decode()
        assert events.Tensors("run/environment")
        assert "-bound: " in make_ndarray(events.Tensors("run/limits")[-1].tensor_proto).item().decode()

    def test_learning_rate_warms_up_and_decays(self, finished_run):
        lines = [line for line in json_lines(finished_run.workdir / "metrics.jsonl") if line["split"] == "train"]
        rates = [line["optim/lr"] for line in lines]
        assert rates[0] == pytest.approx(2e-3 * 2 / 5)
        assert max(rates) == pytest.approx(2e-3, rel=0.01)
        assert rates[-1] < 1e-5

    def test_header(self, finished_run, dataset):
        header = dict(
            re.split(r"\s{2,}", line, maxsplit=1)
            for line in finished_run.output.splitlines()
            if re.match(r"[A-Za-z ]+\S\s{2,}\S", line) and not line.startswith("step ")
        )
        assert header["model"] == f"{user_models.__file__}:normalized, 695 parameters"
        assert header["data"] == f"{dataset.data}: 7 classes, 9 validation images"
        assert header["length"] == "40 steps, 7.80 epochs of 82 images"
        assert header["devices"].startswith("CPU:0, CPU:1")
        assert header["replicas"] == "2, virtual replicas 4"
        assert header["batch"] == "16 global, 8 per device, 4 per virtual replica"
        assert "peak learning rate 0.002, scaled (sqrt) from 0.004 at batch 64" in header["optimizer"]
        assert header["precision"] == "float32, XLA off, deterministic"
        assert header["run directory"] == str(finished_run.workdir)
        # Never wrapped, so that it can be copied.
        assert header["TensorBoard"] == f"tensorboard --logdir {finished_run.workdir / 'tensorboard'}"

    def test_console_prints_one_line_per_log_and_per_evaluation(self, finished_run):
        lines = [line for line in finished_run.output.splitlines() if line.startswith("step ")]
        pattern = (
            r"step (\d+)/40  epoch [\d.]+  loss [\d.]+  top-1 +[\d.]+%  [\d,]+ images/s  \d+ ms/step  "
            r"input wait [\d.]+%( \(input-bound\))?  lr [\d.e-]+  ETA [\d:]+"
        )
        progress = [int(match[1]) for line in lines if (match := re.fullmatch(pattern, line))]
        evaluations = [int(line.split("/")[0].removeprefix("step ")) for line in lines if " validation: loss " in line]
        assert progress == LOGGED
        assert evaluations == EVALUATED
        assert len(lines) == len(LOGGED) + len(EVALUATED)
        assert finished_run.output.count("*best*") >= 1
        assert "\x1b" not in finished_run.output

    def test_console_has_no_tensorflow_logs(self, finished_run):
        noise = [line for line in finished_run.output.splitlines() if re.match(r"[IWEF]\d{4} |WARNING|20\d\d-", line)]
        assert not noise

    def test_events(self, finished_run):
        events = json_lines(finished_run.workdir / "events.jsonl")
        saved = [event["step"] for event in events if event["event"] == "checkpoint"]
        assert {6, 12, 18, 24, 30, 36, 40} <= set(saved)
        assert event_names(finished_run.workdir) == ["start", "first_step", "done"]
        times = [event["time"] for event in events]
        assert times == sorted(times)

    def test_config_is_stored_with_resolved_values(self, finished_run):
        config = json.loads((finished_run.workdir / "config.json").read_text())
        assert (config["batch_size"], config["steps"], config["virtual_replicas"]) == (16, LAST_STEP, 4)
        assert config["deterministic"] is True
        assert config["schedule"]["warmup_steps"] == 5
        assert "--config.precision=float32" in (finished_run.workdir / "command.txt").read_text()

    def test_keeps_the_latest_checkpoints_and_the_best(self, finished_run):
        store = CheckpointStore(finished_run.workdir / "checkpoints")
        result = result_of(finished_run.workdir)
        lines = json_lines(finished_run.workdir / "events.jsonl")
        saved = [line["step"] for line in lines if line["event"] == "checkpoint"]
        assert {30, 36, 40} <= set(saved)
        assert store.steps() == sorted({*saved[-3:], result["best"]["step"]})
        assert store.best() == result["best"]["step"]
        top1 = {
            line["step"]: line["quality/top1"]
            for line in json_lines(finished_run.workdir / "metrics.jsonl")
            if line["split"] == "validation"
        }
        assert result["best"]["top1"] == max(top1.values()) == top1[result["best"]["step"]]
        _, metadata = store.load(LAST_STEP)
        assert metadata["weights_sha256"] == result["weights_sha256"]


@pytest.fixture(scope="module")
def start_and_kill(convoy_started, wait_until, finished_run, dataset):
    """Returns a function that starts the finished run's command and kills it after the second checkpoint."""

    def is_past_second_checkpoint(workdir):
        steps = CheckpointStore(workdir / "checkpoints").steps()
        metrics = workdir / "metrics.jsonl"
        if len(steps) < 2 or not metrics.exists():
            return False
        return f'"step": {steps[-1] + 2},' in metrics.read_text()

    def run(workdir, devices):
        command = ("train", *finished_run.flags, f"--devices={devices}", f"--data={dataset.data}")
        with convoy_started(*command, f"--workdir={workdir}", output=workdir.with_suffix(".log")) as process:
            wait_until(
                lambda: is_past_second_checkpoint(workdir) or process.poll() is not None, "the second checkpoint"
            )
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, workdir.with_suffix(".log").read_text()
        assert not (workdir / "result.json").exists()
        return workdir

    return run


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory, start_and_kill):
    """A run on one device, killed in the middle of an epoch. Tests work on copies of it."""
    return start_and_kill(tmp_path_factory.mktemp("killed") / "run", "cpu:1")


@pytest.fixture
def killed_copy(killed_run, tmp_path):
    return shutil.copytree(killed_run, tmp_path / "run")


def assert_same_as_uninterrupted(workdir, finished_run):
    result, expected = result_of(workdir), result_of(finished_run.workdir)
    for name in ("weights_sha256", "step", "images_seen"):
        assert result[name] == expected[name], name
    assert result["best"]["step"] == expected["best"]["step"]
    assert measured(workdir, "train") == measured(finished_run.workdir, "train")
    assert measured(workdir, "validation") == approximately(measured(finished_run.workdir, "validation"))
    assert steps_evaluated(workdir) == EVALUATED
    assert not list(workdir.rglob("*partial*"))


@pytest.mark.slow
class TestKilledRun:
    def test_resumes_exactly_on_one_device_also_from_an_earlier_checkpoint(
        self, convoy, killed_run, finished_run, dataset, tmp_path
    ):
        plain, damaged = (shutil.copytree(killed_run, tmp_path / name) for name in ("plain", "damaged"))
        newest, before = sorted((damaged / "checkpoints").glob("step-*.npz"), reverse=True)[:2]
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
        steps = [int(path.stem.removeprefix("step-")) for path in (newest, before)]
        command = ["train", *finished_run.flags, "--devices=cpu:1", f"--data={dataset.data}"]
        resumed, without_newest = (convoy(*command, f"--workdir={folder}") for folder in (plain, damaged))

        assert resumed.returncode == 0, resumed.output
        assert f"Resumed at step {steps[0]} of {LAST_STEP}." in resumed.output
        assert_same_as_uninterrupted(plain, finished_run)
        assert event_names(plain) == ["start", "first_step", "restored", "first_step", "done"]

        # A truncated latest checkpoint is reported, and the previous one is used.
        assert without_newest.returncode == 0, without_newest.output
        assert f"{newest}: damaged" in without_newest.output
        assert f"Resumed at step {steps[1]} of {LAST_STEP}." in without_newest.output
        assert_same_as_uninterrupted(damaged, finished_run)

    def test_resumes_exactly_on_four_devices(self, convoy, killed_copy, finished_run, dataset):
        command = ("train", *finished_run.flags, "--devices=cpu:4", f"--data={dataset.data}")
        convoy(*command, f"--workdir={killed_copy}", check=True)
        assert result_of(killed_copy)["replicas"] == 4
        assert_same_as_uninterrupted(killed_copy, finished_run)

    def test_resumes_exactly_on_two_devices_after_two_devices(
        self, convoy, start_and_kill, finished_run, dataset, tmp_path
    ):
        workdir = start_and_kill(tmp_path / "run", "cpu:2")
        convoy(
            "train",
            *finished_run.flags,
            "--devices=cpu:2",
            f"--data={dataset.data}",
            f"--workdir={workdir}",
            check=True,
        )
        assert_same_as_uninterrupted(workdir, finished_run)

    def test_with_all_checkpoints_damaged_is_refused_and_unchanged(self, convoy, killed_copy, finished_run, dataset):
        for path in (killed_copy / "checkpoints").glob("step-*.npz"):
            path.write_bytes(path.read_bytes()[:100])
        before = fingerprints(killed_copy)
        result = convoy("train", *finished_run.flags, f"--data={dataset.data}", f"--workdir={killed_copy}")
        assert result.returncode == 3
        assert all(path.name in result.stderr for path in (killed_copy / "checkpoints").glob("step-*.npz"))
        assert "Traceback" not in result.stderr
        assert fingerprints(killed_copy) == before


@pytest.fixture(scope="module")
def short_runs(convoy, tmp_path_factory, finished_run, killed_run, dataset, dataset_without_validation):
    """Many short runs on two devices: {name: (result, workdir)}."""
    folder = tmp_path_factory.mktemp("short")
    model = f"--config.model.name={user_models.__file__}:normalized"
    short = ["--config=smoke", model, "--config.steps=3", "--config.eval_every_steps=3", "--config.log_every_steps=1"]
    data = f"--data={dataset.data}"
    runs = {
        f"optimizer {name}": [*short, f"--config.optimizer.name={name}", f"--config.precision={precision}", data]
        for name, precision in OPTIMIZERS.items()
    }
    runs["no validation"] = [*short, f"--data={dataset_without_validation}"]
    runs["diverging"] = [
        *short,
        "--config.precision=float32",
        "--config.optimizer.name=sgd",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.clip_norm=0",
        "--config.schedule.warmup_steps=0",
        "--config.checkpoint_every_steps=1",
        data,
    ]
    runs["batch"] = [*short, "--config.batch_size=63", data]
    runs["model"] = [*short, "--config.model.name=convnett", data]
    runs["optimizer"] = [*short, "--config.optimizer.name=adma", data]
    commands = {name: ["train", *flags, f"--workdir={folder / name}"] for name, flags in runs.items()}
    for name, flags in {
        "another config": ["--config.seed=7", "--config.optimizer.beta_1=0.8", data],
        "another dataset": [f"--data={dataset_without_validation}"],
    }.items():
        shutil.copytree(killed_run, folder / name)
        commands[name] = ["train", *finished_run.flags, *flags, f"--workdir={folder / name}"]
    shutil.copytree(finished_run.workdir, folder / "finished")
    commands["finished"] = ["train", *finished_run.flags, data, f"--workdir={folder / 'finished'}"]
    shutil.copytree(finished_run.workdir, folder / "no result")
    (folder / "no result" / "result.json").unlink()
    commands["no result"] = ["train", *finished_run.flags, data, f"--workdir={folder / 'no result'}"]
    return {name: (convoy(*command, "--devices=cpu:2"), folder / name) for name, command in commands.items()}


def last_line(completed):
    assert "Traceback" not in completed.output, completed.output
    return completed.output.splitlines()[-1]


@pytest.mark.slow
class TestShortRuns:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_every_optimizer_trains(self, short_runs, name):
        completed, workdir = short_runs[f"optimizer {name}"]
        assert completed.returncode == 0, completed.output
        norms = [line["optim/weight_norm"] for line in json_lines(workdir / "metrics.jsonl")[:3]]
        assert len(set(norms)) == 3
        assert all(norm > 0 for norm in norms)

    @pytest.mark.parametrize("name", PRECISIONS)
    def test_every_precision_trains_and_is_in_the_header(self, short_runs, name):
        (optimizer,) = [optimizer for optimizer, precision in OPTIMIZERS.items() if precision == name]
        completed, workdir = short_runs[f"optimizer {optimizer}"]
        assert completed.returncode == 0, completed.output
        assert re.search(rf"^precision +{name}, XLA off$", completed.output, re.MULTILINE)
        line = json_lines(workdir / "metrics.jsonl")[0]
        assert line["optim/loss_scale"] == (2.0**15 if name == "float16" else 1.0)
        assert line["quality/loss"] == pytest.approx(2.0, abs=0.7)  # about ln 7 with random weights

    def test_trains_without_a_validation_split(self, short_runs):
        completed, workdir = short_runs["no validation"]
        assert completed.returncode == 0, completed.output
        assert "no validation split" in completed.output
        result = result_of(workdir)
        assert result["metrics"].keys() == {"train"}
        assert result["best"] == {"step": None, "top1": None}

    def test_diverging_run_stops_with_a_fix_and_keeps_its_checkpoint(self, short_runs):
        completed, workdir = short_runs["diverging"]
        assert completed.returncode == 1
        error = last_line(completed)
        assert "step 2: " in error and "NaN" in error
        assert "step 1." in error  # the last checkpoint
        assert "config.optimizer.learning_rate=1e+30" in error
        assert "config.optimizer.clip_norm=1" in error
        assert not (workdir / "result.json").exists()
        values, _ = CheckpointStore(workdir / "checkpoints").load(1)
        assert values

    def test_another_config_is_refused_with_the_differences(self, short_runs, killed_run):
        completed, workdir = short_runs["another config"]
        assert completed.returncode == 2
        error = last_line(completed)
        assert "seed: 0 -> 7" in error
        assert "optimizer.beta_1: 0.9 -> 0.8" in error
        assert "--workdir" in error
        assert fingerprints(workdir) == fingerprints(killed_run)

    def test_another_dataset_is_refused_with_the_difference(self, short_runs, killed_run, dataset_without_validation):
        completed, workdir = short_runs["another dataset"]
        assert completed.returncode == 3
        error = last_line(completed)
        assert "train_images: 82 -> 91" in error
        assert str(dataset_without_validation) in error
        assert fingerprints(workdir) == fingerprints(killed_run)

    def test_finished_run_is_left_unchanged(self, short_runs, finished_run):
        completed, workdir = short_runs["finished"]
        assert completed.returncode == 0
        assert str(workdir) in last_line(completed) and str(LAST_STEP) in last_line(completed)
        assert fingerprints(workdir) == fingerprints(finished_run.workdir)

    def test_run_killed_after_its_last_checkpoint_gets_its_result(self, short_runs, finished_run):
        completed, workdir = short_runs["no result"]
        assert completed.returncode == 0, completed.output
        result, expected = result_of(workdir), result_of(finished_run.workdir)
        assert result["images_per_second"] == pytest.approx(expected.pop("images_per_second"), rel=0.5)
        assert {**expected, **{name: result[name] for name in ("images_per_second", "seconds")}} == result
        assert steps_evaluated(workdir) == EVALUATED

    def test_indivisible_batch_size_suggests_valid_ones(self, short_runs):
        completed, workdir = short_runs["batch"]
        assert completed.returncode == 2
        assert "config.batch_size=63" in last_line(completed)
        assert "62 or 64" in last_line(completed)
        assert not workdir.exists()

    @pytest.mark.parametrize(("name", "meant"), [("model", "convnet"), ("optimizer", "adam")])
    def test_unknown_model_or_optimizer_suggests_the_nearest(self, short_runs, name, meant):
        completed, workdir = short_runs[name]
        assert completed.returncode == 2
        assert f"(did you mean {meant!r}?)" in last_line(completed)
        assert not workdir.exists()


@pytest.mark.slow
def test_run_resumed_between_two_log_lines_logs_the_same_metrics(convoy, dataset, tmp_path):
    durations = ("--config.steps=8", "--config.checkpoint_every_steps=3", "--config.log_every_steps=4")
    model = f"--config.model.name={user_models.__file__}:normalized"
    command = ["train", "--config=smoke", model, "--deterministic", *durations, f"--data={dataset.data}"]
    command += ["--devices=cpu:1", f"--workdir={tmp_path / 'run'}"]
    first = convoy(*command)
    uninterrupted = measured(tmp_path / "run", "train")
    assert [line["step"] for line in uninterrupted] == [4, 8], first.output
    (tmp_path / "run" / "checkpoints" / "step-000000008.npz").unlink()
    (tmp_path / "run" / "result.json").unlink()
    second = convoy(*command)
    assert "Resumed at step 6 of 8." in second.output
    assert measured(tmp_path / "run", "train") == uninterrupted


@pytest.mark.slow
def test_corrupt_record_is_named_with_shard_offset_and_index(convoy, dataset, tmp_path):
    data = shutil.copytree(dataset.data, tmp_path / "data")
    shard = sorted(data.glob("*-train.tfrecord-*[0-9]"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0x10
    shard.write_bytes(content)
    result = convoy("train", "--config=smoke", f"--data={data}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 3
    (error,) = result.stderr.splitlines()
    assert re.match(rf"convoy: {re.escape(str(shard))}: record \d+ at offset \d+ ", error)


@pytest.mark.slow
def test_keras_applications_model_trains_on_two_devices(convoy, dataset, tmp_path):
    flags = ("--config=smoke", "--config.model.name=keras_applications:MobileNet", "--config.steps=2")
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", "--devices=cpu:2")
    result = convoy("train", *flags, *where, check=True)
    assert re.search("^model +keras_applications:MobileNet, ", result.stdout, re.MULTILINE)
    assert result_of(tmp_path / "run")["step"] == 2
    steps = [line["quality/loss"] for line in json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert all(loss > 0 for loss in steps)
