"""TensorBoard on a run of two devices that was killed and resumed: its pages in a browser, its data over HTTP."""

import csv
import os
import shutil
import signal
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.config import load_recipe
from tests.browser import Browser, missing_browser
from tests.trainer import user_models
from tests.trainer.run_files import events_of, json_lines
from tests.trainer.tensorboard_server import Server, tensorboard

pytestmark = pytest.mark.slow

NAMES = ("<script>alert(1)</script>", "../x", "=1+1", "\N{SOCKS} socks", r"$\frac{a$", "micro", "[a](javascript:b)")
STEPS, LOG_EVERY, EVAL_EVERY, HISTOGRAM_EVERY = 40, 4, 2, 20
READERS = ("true", "false")  # values of --load_fast: the data server, or TensorBoard's Python loader
FLAGS = (
    f"--config.model.name={user_models.__file__}:normalized",
    *("--config=smoke", "--devices=cpu:2", "--config.precision=float32", f"--config.steps={STEPS}"),
    "--config.image_size=20",
    *(f"--config.eval_every_steps={EVAL_EVERY}", "--config.checkpoint_every_steps=1000"),
    *(f"--config.log_every_steps={LOG_EVERY}", f"--config.histogram_every_steps={HISTOGRAM_EVERY}"),
)
QUALITY = {f"quality/{name}" for name in ("loss", "top1", "top5", "macro_f1", "ece")}


@dataclass(frozen=True)
class Resumed:
    """A run that was killed after a checkpoint and resumed.

    Attributes:
      workdir: run directory.
      restored: step from which it resumed.
      killed: last step logged before, in training and in validation.
      boards: by reader, a TensorBoard that was open all the time.
      seen: by reader, run and tag, the curves that it shows at the end.
    """

    workdir: Path
    restored: int
    killed: dict[str, int]
    boards: dict[str, Server]
    seen: dict[str, dict[tuple[str, str], list[tuple[int, float]]]]


@pytest.fixture(scope="module")
def odd_data(dataset, tmp_path_factory, convoy):
    """The small dataset with class names that contain markup and formulas."""
    folder = tmp_path_factory.mktemp("odd")
    rows = dataset.rows("train")
    name_of = dict(zip(sorted({category for _, category in rows}), NAMES, strict=True))
    with open(folder / "train.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filename", "category"), *((name, name_of[code]) for name, code in rows)])
    images = (f"--images={dataset.photos / 'train'}", f"--manifest={folder / 'train.csv'}")
    convoy("convert", *images, f"--output={folder / 'data'}", "--workers=1", check=True)
    return folder / "data"


def last_steps(workdir):
    return {line["split"]: line["step"] for line in json_lines(workdir / "metrics.jsonl")}


def curve(workdir, split, tag):
    """Returns steps and values in metrics.jsonl."""
    lines = json_lines(workdir / "metrics.jsonl")
    return [(line["step"], line[tag]) for line in lines if line["split"] == split and line.get(tag) is not None]


def close(shown, expected):
    return [step for step, _ in shown] == [step for step, _ in expected] and np.allclose(
        [value for _, value in shown], [value for _, value in expected], rtol=1e-6
    )


@pytest.fixture(scope="module")
def resumed(odd_data, tmp_path_factory, convoy, convoy_started, wait_until):
    folder = tmp_path_factory.mktemp("resumed")
    workdir = folder / "runs" / "first"
    command = ("train", *FLAGS, f"--data={odd_data}", f"--workdir={workdir}")

    def is_past_a_checkpoint():
        steps = [event["step"] for event in events_of(workdir, "checkpoint")]
        last = last_steps(workdir)
        return len(steps) > 1 and min(last.get("train", 0), last["validation"]) >= steps[-1] + LOG_EVERY

    with convoy_started(*command, output=folder / "first.log") as process:
        wait_until(lambda: is_past_a_checkpoint() or process.poll() is not None, "a point past a checkpoint")
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (folder / "first.log").read_text()
    killed = last_steps(workdir)
    board = workdir / "tensorboard"
    with ExitStack() as stack:
        servers = {
            fast: stack.enter_context(
                tensorboard(board, folder / f"live-{fast}.log", "--reload_interval=1", fast=fast == "true")
            )
            for fast in READERS
        }
        checkpoint = CheckpointStore(workdir / "checkpoints").latest()
        for server in servers.values():  # points that will be trained again are shown before
            wait_until(
                lambda server=server: all(
                    "quality/loss" in server.tags("scalars").get(split, ())
                    and server.scalars(split, "quality/loss")[-1][0] > checkpoint
                    for split in killed
                ),
                "points past the checkpoint",
            )
        convoy(*command, check=True)

        def seen(server):
            tags = [(run, tag) for run, tags in server.tags("scalars").items() for tag in tags]
            return {(run, tag): server.scalars(run, tag) for run, tag in tags}

        for server in servers.values():
            wait_until(
                lambda server=server: all(points[-1][0] == STEPS for points in seen(server).values()), "the last points"
            )
        watched = {fast: seen(server) for fast, server in servers.items()}
        (restored,) = events_of(workdir, "restored")
        shutil.copytree(workdir, workdir.with_name("second"))
        yield Resumed(workdir, restored["step"], killed, servers, watched)


@pytest.fixture(scope="module", params=READERS)
def server(resumed, request, tmp_path_factory):
    """A TensorBoard that is started after training, on a folder of two runs."""
    log = tmp_path_factory.mktemp("server") / "log"
    with tensorboard(resumed.workdir.parent, log, fast=request.param == "true") as server:
        yield server


class TestResumedRun:
    def test_was_killed_past_the_checkpoint_it_resumed_from(self, resumed):
        assert all(step > resumed.restored for step in resumed.killed.values())

    @pytest.mark.parametrize("fast", READERS)
    def test_open_tensorboard_shows_the_resumed_curves(self, resumed, fast):
        for (run, tag), points in resumed.seen[fast].items():
            if run != ".":
                assert close(points, curve(resumed.workdir, run, tag)), (run, tag)

    def test_every_step_is_shown_once(self, resumed, server):
        for split, every in (("train", LOG_EVERY), ("validation", EVAL_EVERY)):
            for tag in server.tags("scalars")[f"first/tensorboard/{split}"]:
                points = server.scalars(f"first/tensorboard/{split}", tag)
                assert [step for step, _ in points][-3:] == [STEPS - 2 * every, STEPS - every, STEPS]
                assert close(points, curve(resumed.workdir, split, tag)), tag
        best = server.scalars("first/tensorboard", "best/top1")
        assert [step for step, _ in best] == list(range(EVAL_EVERY, STEPS + 1, EVAL_EVERY))
        top1 = [value for _, value in curve(resumed.workdir, "validation", "quality/top1")]
        assert [value for _, value in best] == pytest.approx(np.maximum.accumulate(top1))


class TestData:
    def test_train_and_validation_share_tags(self, server):
        tags = server.tags("scalars")
        train, validation = (tags[f"first/tensorboard/{split}"] for split in ("train", "validation"))
        assert train & validation >= QUALITY
        assert validation - train == {"gap/top1", "gap/loss"}

    def test_every_tag_has_a_custom_scalars_chart(self, server):
        layout = server.ask("custom_scalars/layout")
        assert [category["title"] for category in layout["category"]] == [
            "Generalization",
            "Optimization",
            "Performance",
        ]
        drawn = {}
        for category in layout["category"]:
            for chart in category["chart"]:
                for tag in chart["multiline"]["tag"]:
                    for run in ("", "/train", "/validation"):
                        response = server.ask("custom_scalars/scalars", run=f"first/tensorboard{run}", tag=tag)
                        for found in response["tag_to_events"]:
                            drawn.setdefault(found, set()).add(run)
        assert drawn["quality/loss"] == {"/train", "/validation"}
        every_tag = {tag for run, tags in server.tags("scalars").items() if run.startswith("first") for tag in tags}
        assert every_tag - drawn.keys() == {"run/epoch"}, drawn

    def test_images_are_shown_for_ten_evaluations_and_the_first_batch(self, server):
        assert server.tags("images").keys() == {f"{run}/tensorboard/media" for run in ("first", "second")}
        steps = {}
        for tag in server.tags("images")["first/tensorboard/media"]:
            found = server.ask("images/images", run="first/tensorboard/media", tag=tag, sample=0)
            steps[tag] = [picture["step"] for picture in found]
        tenths = list(range(STEPS // 10, STEPS + 1, STEPS // 10))
        assert steps.pop("media/train_batch") == [0]
        assert steps == dict.fromkeys(("media/confusion_matrix", "media/grad_cam", "media/worst"), tenths)

    def test_hparams_have_config_and_best_top1_of_every_run(self, server, resumed):
        experiment = server.hparams("experiment", experimentName="")
        names = [info["name"] for info in experiment["hparamInfos"]]
        metrics = [info["name"] for info in experiment["metricInfos"]]
        assert [metric["tag"] for metric in metrics] == ["best/top1"]
        statuses = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
        groups = server.hparams(
            "session_groups",
            experimentName="",
            allowedStatuses=statuses,
            colParams=[{"hparam": name} for name in names] + [{"metric": name} for name in metrics],
            startIndex=0,
            sliceSize=10,
        )["sessionGroups"]
        assert sorted(group["name"] for group in groups) == ["first/tensorboard", "second/tensorboard"]
        best = max(value for _, value in curve(resumed.workdir, "validation", "quality/top1"))
        for group in groups:
            assert {name: group["hparams"][name] for name in ("optimizer.name", "batch_size", "augment.ops")} == {
                "optimizer.name": "adamw",
                "batch_size": 16,
                "augment.ops": load_recipe("smoke").augment.ops,
            }
            assert all(group["hparams"].get(name) is not None for name in names)
            assert [metric["value"] for metric in group["metricValues"]] == [pytest.approx(best)]
            assert [session["status"] for session in group["sessions"]] == ["STATUS_SUCCESS"]

    def test_precision_recall_curves_of_all_and_single_classes(self, server):
        run = "first/tensorboard/validation"
        tags = server.tags("pr_curves")[run]
        assert "pr/micro" in tags
        assert {tag.removeprefix("pr_of_class/") for tag in tags - {"pr/micro"}} <= set(NAMES)
        assert len(tags) > 5
        for tag in tags:
            for entry in server.ask("pr_curves/pr_curves", run=run, tag=tag)[run]:
                assert entry["recall"][0] == 1
                assert entry["true_positives"] == sorted(entry["true_positives"], reverse=True)

    def test_texts_are_written_once_and_escaped(self, server):
        run = "first/tensorboard/train"
        assert server.ask("text/tags")[run]
        for name, expected in (
            ("config", "batch_size"),
            ("environment", "tensorflow"),
            ("dataset", "&lt;script&gt;alert(1)&lt;/script&gt;"),
            ("command", "--config=smoke"),
        ):
            (text,) = server.ask("text/text", run=run, tag=f"run/{name}")
            assert expected in text["text"]
            assert text["text"].strip().startswith("<pre>")
            assert "<script" not in text["text"]
            assert "<a " not in text["text"]

    def test_graphs_have_layers_and_edges(self, server):
        for query in ({}, {"tag": "keras", "conceptual": "true"}):
            url = f"{server.url}data/plugin/graphs/graph?run=first/tensorboard/train"
            url += "".join(f"&{name}={value}" for name, value in query.items())
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=60) as answer:
                graph = answer.read().decode()
            assert f'name: "{"normalized/" if query else ""}logits"' in graph
            assert graph.count("input:") >= graph.count("node {") - 1

    def test_histograms_of_every_weight_at_the_configured_steps(self, server):
        tags = server.tags("histograms")["first/tensorboard/train"]
        assert "weights/logits/kernel" in tags
        for tag in tags:
            found = server.ask("histograms/histograms", run="first/tensorboard/train", tag=tag)
            assert [step for _, step, _ in found] == [HISTOGRAM_EVERY, STEPS]


@pytest.mark.skipif(missing_browser() is not None, reason=str(missing_browser()))
class TestPages:
    def test_every_page_shows_its_data_and_runs_no_injected_script(self, resumed, tmp_path):
        pages = {
            "timeseries": ("best", "gap", "Settings"),
            "scalars": ("best/top1", "gap/loss", "quality"),
            "custom_scalars": ("Generalization", "Performance", "loss, train and validation", "Matches (2)"),
            "images": ("media/confusion_matrix", "media/train_batch", "media/worst"),
            "histograms": ("weights/",),
            "distributions": ("weights/",),
            "text": ("run/config", "run/command", "run/dataset", "run/environment", NAMES[0]),
            "pr_curves": ("pr/micro", "pr_of_class/"),
            "graphs": ("left_out", "logits"),
            "hparams": ("best/top1", "optimizer.name", "adamw"),
        }
        with Browser(tmp_path / "browser") as browser:
            for page, expected in pages.items():
                browser.open(f"{resumed.boards['true'].url}#{page}")
                browser.wait_for(*expected)
                assert not browser.problems, page
                if folder := os.environ.get("SCREENSHOTS"):
                    browser.screenshot(Path(folder) / f"{page}.png")
