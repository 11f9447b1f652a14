"""Whole runs: what they leave behind, what a kill does to them, and what they refuse."""

import json
import os
import re
import shutil
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from tests.trainer.run_files import (
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
OPTIMIZERS = ("adam", "adamw", "sgd", "lamb", "lars")
PRECISIONS = ("float32", "bfloat16", "float16")


class TestAFinishedRun:
    def test_leaves_every_file_of_the_contract_and_nothing_half_written(self, finished_run):
        found = set(fingerprints(finished_run.workdir))
        contract = {
            "config.json",
            "command.txt",
            "environment.json",
            "metrics.jsonl",
            "results.csv",
            "result.json",
            "events.jsonl",
        }
        assert contract <= found
        assert not [name for name in found if "partial" in name or name.endswith(".tmp")]
        for split in ("train", "validation"):
            assert len(list((finished_run.workdir / "tensorboard" / split).glob("events.out.tfevents.*"))) == 1

    def test_result_says_what_was_reached(self, finished_run):
        result = result_of(finished_run.workdir)
        assert (result["step"], result["images_seen"]) == (LAST_STEP, LAST_STEP * 16)
        assert result["epoch"] == pytest.approx(LAST_STEP * 16 / 82)
        assert (result["virtual_replicas"], result["replicas"]) == (4, 2)
        assert result["images_per_second"] > 0
        assert re.fullmatch("[0-9a-f]{64}", result["weights_sha256"])
        for split in ("train", "validation"):
            assert {f"quality/{name}" for name in result["metrics"][split]} == QUALITY

    def test_results_metrics_are_the_last_that_were_measured(self, finished_run):
        result = result_of(finished_run.workdir)
        for line in json_lines(finished_run.workdir / "metrics.jsonl")[-2:]:
            assert line["step"] == LAST_STEP
            assert result["metrics"][line["split"]] == {
                tag.removeprefix("quality/"): line[tag] for tag in sorted(QUALITY, key=list(line).index)
            }

    def test_metrics_hold_the_contracts_tags_alike_for_train_and_validation(self, finished_run):
        for line in json_lines(finished_run.workdir / "metrics.jsonl"):
            tags = line.keys() - {"step", "split"}
            assert tags == (TRAIN_TAGS if line["split"] == "train" else VALIDATION_TAGS)
        assert steps_logged(finished_run.workdir, "train") == LOGGED
        assert steps_logged(finished_run.workdir, "validation") == EVALUATED
        assert steps_evaluated(finished_run.workdir) == EVALUATED

    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_tensorboard_shows_the_numbers_of_metrics_jsonl(self, finished_run, split):
        events = EventAccumulator(str(finished_run.workdir / "tensorboard" / split), size_guidance={"tensors": 0})
        events.Reload()
        lines = [line for line in json_lines(finished_run.workdir / "metrics.jsonl") if line["split"] == split]
        for tag in TRAIN_TAGS if split == "train" else VALIDATION_TAGS:
            shown = [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
            assert [step for step, _ in shown] == [line["step"] for line in lines]
            assert [value for _, value in shown] == pytest.approx([line[tag] for line in lines], rel=1e-6)

    def test_a_lines_step_is_split_into_waiting_reducing_and_computing(self, finished_run):
        lines = [line for line in json_lines(finished_run.workdir / "metrics.jsonl") if line["split"] == "train"]
        for line in lines:
            split = [line[f"perf/{name}_ms"] for name in ("input_wait", "reduction", "compute")]
            assert min(split) >= 0.0
            assert line["perf/input_wait_ms"] == pytest.approx(sum(split) * line["perf/input_wait_pct"] / 100)
        assert lines[-1]["perf/reduction_ms"] > 0.0

    def test_result_says_what_limited_the_run_and_so_does_the_console(self, finished_run):
        limits = result_of(finished_run.workdir)["limits"]
        assert limits["bound"] in ("input", "reduction", "compute")
        assert limits["step_ms"] == pytest.approx(
            sum(limits[f"{n}_ms"] for n in ("input_wait", "reduction", "compute"))
        )
        assert limits["step_ms_p50"] <= limits["step_ms_p95"]
        assert limits["images_per_second"] == pytest.approx(16e3 / limits["step_ms"])
        assert f"\nLimits: {limits['sentence']}.\n" in finished_run.output

    def test_tensorboard_shows_config_environment_dataset_and_command(self, finished_run):
        events = EventAccumulator(str(finished_run.workdir / "tensorboard" / "train"), size_guidance={"tensors": 0})
        events.Reload()
        for name, content in (("config", '"batch_size": 16'), ("dataset", '"1e3"'), ("command", "--config=smoke")):
            (event,) = events.Tensors(f"run/{name}")
            assert content in make_ndarray(event.tensor_proto).item().decode()
        assert events.Tensors("run/environment")
        assert "-bound: " in make_ndarray(events.Tensors("run/limits")[-1].tensor_proto).item().decode()

    def test_the_learning_rate_warms_up_and_falls_to_nearly_nothing(self, finished_run):
        lines = [line for line in json_lines(finished_run.workdir / "metrics.jsonl") if line["split"] == "train"]
        rates = [line["optim/lr"] for line in lines]
        assert rates[0] == pytest.approx(2e-3 * 2 / 5)
        assert max(rates) == pytest.approx(2e-3, rel=0.01)
        assert rates[-1] < 1e-5

    def test_the_header_says_what_runs_where(self, finished_run, dataset):
        header = dict(
            re.split(r"\s{2,}", line, maxsplit=1)
            for line in finished_run.output.splitlines()
            if re.match(r"[A-Za-z ]+\S\s{2,}\S", line) and not line.startswith("step ")
        )
        assert header["model"] == "convnet, 1,176,743 parameters"
        assert header["data"] == f"{dataset.data}: 7 classes, 9 validation images"
        assert header["length"] == "40 steps, 7.80 epochs of 82 images"
        assert header["devices"].startswith("CPU:0, CPU:1")
        assert header["replicas"] == "2, virtual replicas 4"
        assert header["batch"] == "16 global, 8 a device, 4 a virtual replica"
        assert "peak learning rate 0.002, scaled (sqrt) from 0.004 at batch 64" in header["optimizer"]
        assert header["precision"] == "float32, XLA off, deterministic"
        assert header["run directory"] == str(finished_run.workdir)
        # In one line however long, so that it can be copied.
        assert header["TensorBoard"] == f"tensorboard --logdir {finished_run.workdir / 'tensorboard'}"

    def test_progress_is_a_plain_line_every_log_every_steps_and_one_an_evaluation(self, finished_run):
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

    def test_nothing_of_tensorflows_is_on_the_screen(self, finished_run):
        noise = [line for line in finished_run.output.splitlines() if re.match(r"[IWEF]\d{4} |WARNING|20\d\d-", line)]
        assert not noise

    def test_events_tell_the_runs_story(self, finished_run):
        events = json_lines(finished_run.workdir / "events.jsonl")
        saved = [event["step"] for event in events if event["event"] == "checkpoint"]
        assert {6, 12, 18, 24, 30, 36, 40} <= set(saved)
        story = [event["event"] for event in events if event["event"] != "checkpoint"]
        assert story == ["start", "first_step", "done"]
        times = [event["time"] for event in events]
        assert times == sorted(times)

    def test_the_config_is_stored_with_what_was_chosen(self, finished_run):
        config = json.loads((finished_run.workdir / "config.json").read_text())
        assert (config["batch_size"], config["steps"], config["virtual_replicas"]) == (16, LAST_STEP, 4)
        assert config["deterministic"] is True
        assert config["schedule"]["warmup_steps"] == 5
        assert "--config.precision=float32" in (finished_run.workdir / "command.txt").read_text()

    def test_the_newest_checkpoints_and_the_best_are_there(self, finished_run):
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
    """Starts the finished run's command anew and kills it with SIGKILL behind its second checkpoint."""

    def has_gone_past_a_checkpoint(workdir):
        steps = CheckpointStore(workdir / "checkpoints").steps()
        metrics = workdir / "metrics.jsonl"
        if len(steps) < 2 or not metrics.exists():
            return False
        return f'"step": {steps[-1] + 2},' in metrics.read_text()

    def run(workdir, devices):
        command = ("train", *finished_run.flags, f"--devices={devices}", f"--data={dataset.data}")
        with convoy_started(*command, f"--workdir={workdir}", output=workdir.with_suffix(".log")) as process:
            wait_until(
                lambda: has_gone_past_a_checkpoint(workdir) or process.poll() is not None, "the second checkpoint"
            )
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, workdir.with_suffix(".log").read_text()
        assert not (workdir / "result.json").exists()
        return workdir

    return run


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory, start_and_kill):
    """A run on one device that was killed in the middle of an epoch. Tests work on copies of it."""
    return start_and_kill(tmp_path_factory.mktemp("killed") / "run", "cpu:1")


@pytest.fixture
def killed_copy(killed_run, tmp_path):
    return shutil.copytree(killed_run, tmp_path / "run")


def assert_as_undisturbed(workdir, finished_run):
    result, expected = result_of(workdir), result_of(finished_run.workdir)
    for name in ("weights_sha256", "step", "images_seen"):
        assert result[name] == expected[name], name
    assert result["best"]["step"] == expected["best"]["step"]
    assert measured(workdir, "train") == measured(finished_run.workdir, "train")
    # How many images a device evaluates at a time depends on the devices, and the last digits on that.
    validation = zip(measured(workdir, "validation"), measured(finished_run.workdir, "validation"), strict=True)
    for line, expected_line in validation:
        measures = [tag for tag in expected_line if tag.startswith(("quality/", "gap/"))]
        assert line == {**expected_line, **{tag: pytest.approx(expected_line[tag], rel=1e-4) for tag in measures}}
    assert steps_evaluated(workdir) == EVALUATED
    assert not list(workdir.rglob("*partial*"))


@pytest.mark.slow
class TestAKilledRun:
    def test_ends_with_the_same_weights_after_the_same_command_on_one_device(
        self, convoy_together, killed_run, finished_run, dataset, tmp_path
    ):
        plain, damaged = (shutil.copytree(killed_run, tmp_path / name) for name in ("plain", "damaged"))
        newest, before = sorted((damaged / "checkpoints").glob("step-*.npz"), reverse=True)[:2]
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
        steps = [int(path.stem.removeprefix("step-")) for path in (newest, before)]
        command = ["train", *finished_run.flags, "--devices=cpu:1", f"--data={dataset.data}"]
        resumed, without_newest = convoy_together([*command, f"--workdir={plain}"], [*command, f"--workdir={damaged}"])

        assert resumed.returncode == 0, resumed.output
        assert f"Resumed at step {steps[0]} of {LAST_STEP}." in resumed.output
        assert_as_undisturbed(plain, finished_run)
        events = [event["event"] for event in json_lines(plain / "events.jsonl") if event["event"] != "checkpoint"]
        assert events == ["start", "first_step", "restored", "first_step", "done"]

        # A newest checkpoint that was cut short: it is named, and the one before is used.
        assert without_newest.returncode == 0, without_newest.output
        assert f"{newest} is damaged" in without_newest.output
        assert f"Resumed at step {steps[1]} of {LAST_STEP}." in without_newest.output
        assert_as_undisturbed(damaged, finished_run)

    def test_ends_with_the_same_weights_on_four_devices(self, convoy, killed_copy, finished_run, dataset):
        command = ("train", *finished_run.flags, "--devices=cpu:4", f"--data={dataset.data}")
        convoy(*command, f"--workdir={killed_copy}", check=True)
        assert result_of(killed_copy)["replicas"] == 4
        assert_as_undisturbed(killed_copy, finished_run)

    def test_ends_with_the_same_weights_when_it_ran_on_two_devices(
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
        assert_as_undisturbed(workdir, finished_run)

    def test_with_every_checkpoint_damaged_is_refused_and_nothing_is_touched(
        self, convoy, killed_copy, finished_run, dataset
    ):
        for path in (killed_copy / "checkpoints").glob("step-*.npz"):
            path.write_bytes(path.read_bytes()[:100])
        before = fingerprints(killed_copy)
        result = convoy("train", *finished_run.flags, f"--data={dataset.data}", f"--workdir={killed_copy}")
        assert result.returncode == 3
        assert "is damaged" in result.stderr
        assert "Traceback" not in result.stderr
        assert fingerprints(killed_copy) == before


@pytest.fixture(scope="module")
def short_runs(convoy_together, tmp_path_factory, finished_run, killed_run, dataset, dataset_without_validation):
    """Many short runs on two devices, in one process: {name: (answer, workdir)}.

    All train the same model, since TensorFlow's collectives keep the shapes of a process's first run.
    """
    folder = tmp_path_factory.mktemp("short")
    short = ["--config=smoke", "--config.steps=3", "--config.eval_every_steps=3", "--config.log_every_steps=1"]
    data = f"--data={dataset.data}"
    runs = {f"optimizer {name}": [*short, f"--config.optimizer.name={name}", data] for name in OPTIMIZERS}
    runs |= {f"precision {name}": [*short, f"--config.precision={name}", data] for name in PRECISIONS}
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
    answers = {}
    for deterministic in (False, True):  # which a process is from its first run on
        together = {
            name: command for name, command in commands.items() if ("--deterministic" in command) == deterministic
        }
        told = convoy_together(*([*command, "--devices=cpu:2"] for command in together.values()), timeout=600)
        answers |= {name: (answer, folder / name) for name, answer in zip(together, told, strict=True)}
    return answers


def last_line(answer):
    assert "Traceback" not in answer.output, answer.output
    return answer.output.splitlines()[-1]


@pytest.mark.slow
class TestShortRuns:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_every_optimizer_trains(self, short_runs, name):
        answer, workdir = short_runs[f"optimizer {name}"]
        assert answer.returncode == 0, answer.output
        norms = [line["optim/weight_norm"] for line in json_lines(workdir / "metrics.jsonl")[:3]]
        assert len(set(norms)) == 3
        assert all(norm > 0 for norm in norms)

    @pytest.mark.parametrize("name", PRECISIONS)
    def test_every_precision_trains_and_is_told(self, short_runs, name):
        answer, workdir = short_runs[f"precision {name}"]
        assert answer.returncode == 0, answer.output
        assert re.search(rf"^precision +{name}, XLA off$", answer.output, re.MULTILINE)
        line = json_lines(workdir / "metrics.jsonl")[0]
        assert line["optim/loss_scale"] == (2.0**15 if name == "float16" else 1.0)
        assert line["quality/loss"] == pytest.approx(2.0, abs=0.7)  # ln 7, nearly, from random weights

    def test_without_a_validation_split_it_trains_and_says_so(self, short_runs):
        answer, workdir = short_runs["no validation"]
        assert answer.returncode == 0, answer.output
        assert "no validation split: nothing is evaluated while training" in answer.output
        result = result_of(workdir)
        assert result["metrics"].keys() == {"train"}
        assert result["best"] == {"step": None, "top1": None}

    def test_a_diverging_run_stops_with_step_and_mend_and_leaves_its_checkpoint(self, short_runs):
        answer, workdir = short_runs["diverging"]
        assert answer.returncode == 1
        error = last_line(answer)
        assert "the gradient of step 2 is NaN or infinite" in error
        assert "Last checkpoint: step 1" in error
        assert "config.optimizer.learning_rate=1e+30" in error
        assert "config.optimizer.clip_norm=1" in error
        assert not (workdir / "result.json").exists()
        values, _ = CheckpointStore(workdir / "checkpoints").load(1)
        assert values

    def test_another_config_is_refused_with_the_differences_and_nothing_changes(self, short_runs, killed_run):
        answer, workdir = short_runs["another config"]
        assert answer.returncode == 2
        error = last_line(answer)
        assert "seed: 0 -> 7" in error
        assert "optimizer.beta_1: 0.9 -> 0.8" in error
        assert "another --workdir" in error
        assert fingerprints(workdir) == fingerprints(killed_run)

    def test_another_dataset_is_refused_with_the_difference_and_nothing_changes(
        self, short_runs, killed_run, dataset_without_validation
    ):
        answer, workdir = short_runs["another dataset"]
        assert answer.returncode == 3
        error = last_line(answer)
        assert "train_images: 82 -> 91" in error
        assert str(dataset_without_validation) in error
        assert fingerprints(workdir) == fingerprints(killed_run)

    def test_a_finished_run_says_so_and_nothing_changes(self, short_runs, finished_run):
        answer, workdir = short_runs["finished"]
        assert answer.returncode == 0
        assert last_line(answer) == f"Nothing left to train: {workdir} is at its last step, {LAST_STEP}."
        assert fingerprints(workdir) == fingerprints(finished_run.workdir)

    def test_a_run_killed_after_its_last_checkpoint_still_gets_its_result(self, short_runs, finished_run):
        answer, workdir = short_runs["no result"]
        assert answer.returncode == 0, answer.output
        result, expected = result_of(workdir), result_of(finished_run.workdir)
        assert result["images_per_second"] == pytest.approx(expected.pop("images_per_second"), rel=0.5)
        assert {**expected, **{name: result[name] for name in ("images_per_second", "seconds")}} == result
        assert steps_evaluated(workdir) == EVALUATED

    def test_a_batch_that_does_not_divide_names_those_that_do(self, short_runs):
        answer, workdir = short_runs["batch"]
        assert answer.returncode == 2
        assert last_line(answer).startswith("convoy: config.batch_size=63 ")
        assert "use 62 or 64" in last_line(answer)
        assert not workdir.exists()

    @pytest.mark.parametrize(("name", "meant"), [("model", "convnet"), ("optimizer", "adam")])
    def test_an_unknown_model_or_optimizer_names_the_nearest(self, short_runs, name, meant):
        answer, workdir = short_runs[name]
        assert answer.returncode == 2
        assert f"(did you mean {meant!r}?)" in last_line(answer)
        assert not workdir.exists()


@pytest.mark.slow
def test_a_run_that_goes_on_between_two_lines_of_metrics_measures_the_same(convoy_together, dataset, tmp_path):
    durations = ("--config.steps=8", "--config.checkpoint_every_steps=3", "--config.log_every_steps=4")
    command = ["train", "--config=smoke", "--deterministic", *durations, f"--data={dataset.data}"]
    command += ["--devices=cpu:1", f"--workdir={tmp_path / 'run'}"]
    (first,) = convoy_together(command)
    undisturbed = measured(tmp_path / "run", "train")
    assert [line["step"] for line in undisturbed] == [4, 8], first.output
    (tmp_path / "run" / "checkpoints" / "step-000000008.npz").unlink()
    (tmp_path / "run" / "result.json").unlink()
    (second,) = convoy_together(command)
    assert "Resumed at step 6 of 8." in second.output
    assert measured(tmp_path / "run", "train") == undisturbed


@pytest.mark.slow
def test_a_corrupt_record_is_named_with_shard_offset_and_index(convoy, dataset, tmp_path):
    data = shutil.copytree(dataset.data, tmp_path / "data")
    shard = sorted(data.glob("*-train.tfrecord-*[0-9]"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0x10
    shard.write_bytes(content)
    result = convoy("train", "--config=smoke", f"--data={data}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 3
    (error,) = result.stderr.splitlines()
    assert re.match(rf"convoy: {re.escape(str(shard))}: record \d+ at offset \d+ ", error)
    assert "convert again, or restore the file" in error


@pytest.mark.slow
def test_a_model_of_keras_applications_trains_on_two_devices(convoy, dataset, tmp_path):
    flags = ("--config=smoke", "--config.model.name=keras_applications:MobileNetV2", "--config.steps=2")
    where = (f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", "--devices=cpu:2")
    result = convoy("train", *flags, *where, check=True)
    assert re.search("^model +keras_applications:MobileNetV2, ", result.stdout, re.MULTILINE)
    assert result_of(tmp_path / "run")["step"] == 2
    steps = [line["quality/loss"] for line in json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert all(loss > 0 for loss in steps)
