"""The reference pages are those of the code, and a real run and dataset contain what the pages describe."""

import csv
import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event

from convoy.api.training import TrainingResult
from convoy.core import exit_codes, run_contents
from convoy.core.run_layout import RunLayout, attempt_number
from convoy.input_pipeline.convert.quarantine import LeftOut
from convoy.input_pipeline.dataset import contents
from convoy.input_pipeline.dataset.examples import from_file, read_features
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.records import HEADER_BYTES, walk
from convoy.launch.run_files import AttemptFiles
from convoy.trainer import config as configs
from convoy.trainer.callbacks.tensorboard import tags
from convoy.trainer.config.differences import differences
from convoy.trainer.config.schema import meanings
from convoy.trainer.evaluation import predictions, results
from convoy.trainer.run.task import SINGLE_LABEL
from docs import make_reference

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return make_reference.pages()


def described(name: str, patterns: Iterable[str], anything: str = "[^/]+") -> bool:
    """Returns whether a name is one of the patterns, in which `{x}` is anything; those of folders cover their files."""
    regexes = (re.sub(r"\\{\w+\\}", anything, re.escape(p)) + ".+" * p.endswith("/") for p in patterns)
    return any(re.fullmatch(regex, name) for regex in regexes)


def files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pages_are_up_to_date(pages):
    written = {path.name: path.read_text("utf-8") for path in make_reference.FOLDER.glob("*.md")}
    stale = [name for name in written.keys() | pages.keys() if written.get(name) != pages.get(name)]
    assert not stale, f"docs/reference is stale ({', '.join(stale)}). Run `{make_reference.COMMAND}`."


class TestConfig:
    def test_every_field_has_a_meaning(self):
        assert meanings().keys() == dict(configs.fields(configs.default_config())).keys()
        assert all(meanings().values())

    def test_free_fields_are_those_that_a_resumed_run_may_change(self, pages):
        before = configs.to_json(configs.default_config())
        for name in meanings():
            after = configs.to_json(configs.default_config())
            section, _, last = name.rpartition(".")
            (after[section] if section else after)[last] = "another"
            row = next(line for line in pages["config.md"].splitlines() if line.startswith(f"| `{name}` |"))
            assert row.endswith(" free |") == (not differences(before, after)), name


class TestExitCodes:
    def test_every_code_is_listed(self, pages):
        codes = {value for name, value in vars(exit_codes).items() if name.isupper() and name != "SIGNAL_BASE"}
        assert set(map(int, re.findall(r"^\| (\d+) \|", pages["exit-codes.md"], re.M))) == codes


class TestRunDirectory:
    def test_page_has_the_files_of_the_layout_and_no_others(self):
        layout = RunLayout("RUN")
        paths = {path for name, path in vars(layout).items() if name != "path"}
        paths |= {layout.predictions("{split}"), layout.evaluation("{split}"), layout.heat_maps("{split}")}
        paths |= {layout.tracker("{name}"), layout.fold("{number}"), layout.fraction("{name}")}
        known = {path.relative_to(layout.path).parts[0] for path in paths}
        assert {name.split("/")[0] for name in run_contents.FILES} == known

    def test_files_of_attempts(self):
        layout = RunLayout("RUN")
        files = AttemptFiles(1, layout.attempt(1))
        for path in (files.log(0), files.error_file(0), files.end_file(0)):
            assert described(path.relative_to(layout.path).as_posix(), run_contents.FILES)
        listed = {name.split("/")[1] for name in run_contents.FILES if name.startswith("logs/attempt-")}
        assert [attempt_number(name.replace("{number}", "1")) for name in listed] == [1]

    def test_every_file_of_a_run_is_on_the_page(self, finished_run):
        found = files_in(finished_run.workdir)
        assert "checkpoints/step-000000040.npz" in found
        assert not [name for name in found if not described(name, run_contents.FILES)]

    def test_result(self, finished_run):
        result = json.loads((finished_run.workdir / "result.json").read_text())
        conditional = {"workdir", "thresholds"}  # the latter with several labels per image
        assert make_reference.attributes(TrainingResult).keys() - conditional == result.keys()
        assert TrainingResult.__annotations__.keys() - conditional == result.keys()

    def test_saved_evaluation(self):
        named = {field.name for field in fields(predictions.Evaluation)}
        assert make_reference.attributes(predictions.Evaluation).keys() == named

    def test_events_are_those_of_the_code(self, finished_run):
        sources = (path.read_text("utf-8") for path in (REPOSITORY / "trainer").rglob("*.py"))
        written = {name for source in sources for name in re.findall(r'\.event\("(\w+)"', source)}
        assert run_contents.EVENTS.keys() == written | {"substituted", "restart"}
        for event in json_lines(finished_run.workdir / "events.jsonl"):
            _, details = run_contents.EVENTS[event["event"]]
            assert event.keys() <= {"event", "time", *details.split(", ")}

    def test_results_table(self, finished_run):
        with open(finished_run.workdir / "results.csv", newline="") as file:
            assert tuple(next(csv.reader(file))) == (*results.COLUMNS, *SINGLE_LABEL.metrics)

    def test_checkpoint(self, finished_run):
        with zipfile.ZipFile(finished_run.workdir / "checkpoints/step-000000040.npz") as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            metadata = json.loads(archive.read("metadata.json"))
        assert not [name for name in names if not described(name, run_contents.CHECKPOINT, ".+")]
        assert metadata.keys() == run_contents.CHECKPOINT_METADATA.keys()


class TestTensorBoardTags:
    # What a run has only with other metrics, several workers or labels, histograms, many classes or a known peak.
    CONDITIONAL = {
        *("quality/{metric}", "perf/model_flops_utilization", "media/class_numbers", "weights/{path}"),
        *("perf/workers/own_step_ms/{rank}", "perf/workers/input_wait_pct/{rank}", "quality/micro_f1"),
        *(f"{group}/mean_average_precision" for group in ("quality", "gap", "best")),
    }

    def test_tags_of_a_run_are_on_the_page_and_all_others_exist(self, finished_run):
        found = set()
        folder = finished_run.workdir / "tensorboard"
        for path in folder.rglob("*tfevents*"):
            content = path.read_bytes()
            for offset, length, _ in walk(path):
                event = Event.FromString(content[offset + HEADER_BYTES :][:length])
                found |= {(path.parent.relative_to(folder).as_posix(), value.tag) for value in event.summary.value}
        listed = {**tags.SCALARS, **tags.OTHERS}

        def is_listed(run: str, tag: str) -> bool:
            return any(described(tag, [name], ".+") and run in listed[name].runs.split(", ") for name in listed)

        assert ("validation", "quality/top1") in found
        assert not [(run, tag) for run, tag in found if not is_listed(run, tag)]
        names = {tag for _, tag in found}
        assert {name for name in listed if not any(described(tag, [name]) for tag in names)} <= self.CONDITIONAL

    def test_metrics_file_has_the_scalars(self, finished_run):
        for line in json_lines(finished_run.workdir / "metrics.jsonl"):
            unknown = [tag for tag in line if tag not in ("step", "split") and tag not in tags.SCALARS]
            assert not unknown


class TestDatasetDirectory:
    def test_every_file_is_on_the_page_and_all_others_exist(self, dataset):
        found = files_in(dataset.data)
        assert not [name for name in found if not described(name, contents.FILES)]
        assert not [pattern for pattern in contents.FILES if not any(described(name, [pattern]) for name in found)]

    def test_manifest(self, dataset):
        manifest = json.loads((dataset.data / "manifest.json").read_text())
        assert manifest.keys() == contents.MANIFEST.keys() - {"multi_label", "label_delimiter"}
        for split in manifest["splits"].values():
            assert split.keys() == contents.SPLIT.keys() - {"grouped", "labels_per_image"}

    def test_record(self, dataset):
        split = open_dataset(dataset.data).split("train")
        with open(split.shard_paths[split.shard[0]], "rb") as file:
            start, length = int(split.offset[0]) + HEADER_BYTES, int(split.length[0])
            record = read_features(from_file(file.fileno(), start, length), length)
        assert record.keys() == contents.RECORD.keys()
        for name, (kind, _) in contents.RECORD.items():
            assert isinstance(record[name][0], int if kind == "integer" else bytes), name

    def test_arrays(self, dataset):
        for file, about in (("index-train", contents.INDEX), ("images-train", contents.IMAGES)):
            with np.load(dataset.data / f"{file}.npz") as archive:
                assert archive.files == [name for name in about if name != "num_labels"]

    def test_quarantine(self):
        assert [field.name for field in fields(LeftOut)] == list(contents.QUARANTINE)
