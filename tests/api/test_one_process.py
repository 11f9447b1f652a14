"""The API in one process that has used TensorFlow before, compared with the commands; and the docstrings' examples."""

import json

import pytest


@pytest.fixture(scope="module")
def facts(forks, finished_run, dataset, tmp_path_factory):
    """What `one_process_program` found."""
    folder = tmp_path_factory.mktemp("one_process")
    arguments = (finished_run.workdir, dataset.data, dataset.photos / "test", folder)
    return forks.run("tests.api.one_process_program", *arguments).report()


@pytest.mark.slow
class TestOneProcess:
    def test_training_has_the_weights_of_the_command(self, facts, finished_run):
        """Also on one device instead of two."""
        result = json.loads((finished_run.workdir / "result.json").read_text())
        assert facts["hash"] == result["weights_sha256"]

    def test_evaluation_has_the_metrics_of_the_training(self, facts, finished_run):
        result = json.loads((finished_run.workdir / "result.json").read_text())
        validation = {name: facts["validation"][name] for name in ("top1", "top5", "macro_f1")}
        assert validation == pytest.approx(
            {name: result["metrics"]["validation"][name] for name in validation}, abs=1e-6
        )

    def test_runs_do_not_disturb_each_other(self, facts):
        assert facts["again"] == facts["validation"]
        assert facts["other"] != facts["validation"]

    def test_global_state_is_left_as_it_was_found(self, facts):
        assert facts["state_kept"] == [True, True]

    def test_callback_sees_the_run(self, facts):
        assert facts["seen_by_callback"] == 2

    def test_nothing_is_printed(self, facts):
        assert facts["printed"] == ""

    def test_files_pictures_and_arrays_have_the_same_predictions(self, facts):
        assert all(labels == facts["labels"][0] for labels in facts["labels"])
        assert max(facts["differences"]) < 0.02  # Pillow and TensorFlow decode JPEG a little differently
        assert facts["names"] and facts["one"] == [1, 1, 1]

    def test_devices_and_threads_that_tensorflow_does_not_have_any_more_are_refused(self, facts):
        devices, threads = facts["refused"]
        assert devices.startswith("devices=cpu:2") and threads.startswith("config.deterministic_threads=3")
        assert not facts["left_behind"]

    def test_what_is_not_an_image_is_refused(self, facts):
        assert len(facts["not_an_image"]) == 4
        assert "float64" in facts["not_an_image"][0] and "[4, 4]" in facts["not_an_image"][1]


@pytest.mark.slow
def test_script_without_a_guard_of_its_main_module_runs_once(python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import convoy\n"
        "print('running')\n"
        "convoy.sample('photos', categories=2, per_category=4, size=16, workers=2)\n"
        "print(convoy.convert('photos/train', output='data', workers=2).splits[0].images)\n"
    )
    result = python(script, cwd=tmp_path)
    assert (result.returncode, result.stdout.split()) == (0, ["running", "7"]), result.stderr


@pytest.mark.slow
def test_examples_of_all_docstrings_run(forks, tmp_path):
    assert forks.run("tests.api.examples_program", cwd=tmp_path).report() == []
