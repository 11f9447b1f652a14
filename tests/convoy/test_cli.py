import re
import sys

import pytest

from convoy.cli import COMMANDS, main
from convoy.trainer import config as configs

BENCHMARKS = ("step", "input")

# Runs the command line and says on its last line which of the slow libraries it brought in.
_WHAT_IS_IMPORTED = """
import sys
from convoy.cli import main
try:
    code = main(["convoy", *sys.argv[1:]])
except SystemExit as exit:
    code = exit.code
slow = [name for name in ("tensorflow", "keras", "matplotlib", "torch", "tensorflow_datasets") if name in sys.modules]
print(code, *slow)
"""


@pytest.fixture
def says(capsys):
    """Runs a command line in this process; returns exit code, standard output and standard error."""

    def run(*arguments):
        code = main(["convoy", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refuses(says):
    """Demands that a command line is refused: exit code, nothing on standard output, one or two lines of error."""

    def run(*arguments, code=2):
        found, out, error = says(*arguments)
        assert (found, out) == (code, "")
        assert error.startswith("convoy: ")
        assert 1 <= len(error.splitlines()) <= 2
        return error

    return run


class TestOverview:
    @pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
    def test_lists_every_command_with_a_line_and_an_example(self, says, arguments):
        code, out, error = says(*arguments)
        assert (code, error) == (0, "")
        for name, command in COMMANDS.items():
            assert f"  {name:<8}  {command.summary}\n" in out
            assert f" {command.example}\n" in out

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_example_is_of_its_own_command(self, name):
        assert COMMANDS[name].example.startswith(f"convoy {name} ")

    def test_the_version_is_told(self, says):
        code, out, _ = says("--version")
        assert code == 0
        assert out.startswith("convoy 0.")

    def test_an_unknown_command_names_the_nearest(self, refuses):
        assert refuses("trian") == (
            "convoy: unknown command 'trian' (did you mean 'train'?). `convoy` alone lists the commands.\n"
        )


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    @pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
    def test_shows_an_example_and_every_required_flag(self, says, name, flag):
        code, out, error = says(name, *["local"] * (name == "launch"), flag)
        assert (code, error) == (0, "")
        assert f"convoy {name}: {COMMANDS[name].summary}.\n" in out
        assert COMMANDS[name].example in out
        for argument in COMMANDS[name].example.split(" -- ")[0].split():
            if argument.startswith("--"):
                assert f"  {argument.split('=')[0]}\n" in out

    def test_train_lists_the_shipped_recipes(self, says):
        _, out, _ = says("train", "--help")
        assert ", ".join(configs.shipped_recipes()) in out

    def test_a_broken_config_does_not_keep_help_from_showing(self, says, tmp_path):
        code, out, _ = says("train", "--help", "--config.batch_size=abc")
        assert code == 0
        assert "--workdir" in out


class TestWithoutTensorFlow:
    """What a person types wrong is answered before a second's worth of imports."""

    @pytest.mark.parametrize("name", COMMANDS)
    def test_help_imports_no_slow_library(self, python, name):
        result = python("-c", _WHAT_IS_IMPORTED, name, "--help")
        assert result.stdout.splitlines()[-1] == "0", result.stderr

    @pytest.mark.parametrize("name", COMMANDS)
    def test_a_mistyped_flag_imports_no_slow_library(self, python, name):
        result = python("-c", _WHAT_IS_IMPORTED, name, "--no_such_flag=1")
        assert result.stdout == "2\n", result.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ("train", "--print_config"),
            ("train", "--config.batch_size=abc"),
            ("train", "--config.bach_size=3"),
            ("train", "--config.precision=fp8"),
            ("train", "--devices=cpu:x", "--data=d", "--workdir=w"),
            ("evaluate", "--workdir=w", "--split=test", "--devices=tpu"),
            ("predict", "--workdir=w"),
            ("predict", "--images=i", "--output=o"),
            ("predict", "--images=i", "--output=o", "--workdir=w", "--export=e"),
            ("export", "--workdir=w", "--output=o", "--format=tflite"),
        ],
        ids=" ".join,
    )
    def test_neither_does_what_follows_from_flags_and_config_alone(self, python, arguments):
        result = python("-c", _WHAT_IS_IMPORTED, *arguments)
        assert result.stdout.splitlines()[-1] in ("0", "2"), result.stderr


class TestFlags:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_one_that_is_unknown_is_named(self, refuses, name):
        arguments = ("step",) if name == "bench" else ()
        assert "'zzzz'" in refuses(name, *arguments, "--zzzz=1")

    @pytest.mark.parametrize(
        ("name", "typed", "meant"),
        [
            ("train", "--workdr=w", "workdir"),
            ("convert", "--imgaes=w", "images"),
            ("sample", "--catgories=3", "categories"),
            ("evaluate", "--splt=test", "split"),
            ("predict", "--probabilites", "probabilities"),
        ],
    )
    def test_the_nearest_is_named(self, refuses, name, typed, meant):
        assert re.search(rf"Did you mean: {meant}[,?]", refuses(name, typed))

    @pytest.mark.parametrize(
        ("arguments", "missing"),
        [
            (("sample",), "--output"),
            (("convert",), "--output"),
            (("train",), "--data and --workdir"),
            (("train", "--data=d", "--workdir="), "--workdir"),
            (("evaluate",), "--workdir and --split"),
            (("evaluate", "--workdir=w"), "--split"),
            (("predict", "--workdir=w"), "--images and --output"),
            (("export", "--workdir=w"), "--format and --output"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
    )
    def test_those_that_must_be_given_are_named(self, refuses, arguments, missing):
        assert refuses(*arguments).startswith(f"convoy: {missing} must be given.")

    def test_a_word_without_dashes_is_named_with_an_example(self, refuses):
        error = refuses("train", "data", "--workdir=w", "--data=d")
        assert "unexpected argument 'data'" in error
        assert "convoy train --data=data --workdir=run" in error

    @pytest.mark.parametrize(
        "arguments",
        [
            ("sample", "--output=o", "--categories=many"),
            ("train", "--strategy=mirored"),
            ("predict", "--top_k=0"),
            ("train", "--deterministic=perhaps"),
        ],
        ids=" ".join,
    )
    def test_a_value_of_the_wrong_kind_is_named(self, refuses, arguments):
        flag, value = arguments[-1].split("=")
        error = refuses(*arguments)
        assert flag.lstrip("-") in error
        assert value in error

    @pytest.mark.parametrize("formats", ["tflite", "onnx,", "ONNX"])
    def test_a_format_that_is_unknown_is_named_with_all_there_are(self, refuses, formats):
        error = refuses("export", "--workdir=w", "--output=o", f"--format={formats}")
        assert "give one or more of saved_model, keras, litert, onnx" in error

    def test_an_extra_that_is_missing_is_named_with_the_line_that_brings_it(self, refuses, monkeypatch):
        monkeypatch.setitem(sys.modules, "tf2onnx", None)
        error = refuses("export", "--workdir=w", "--output=o", "--format=keras,onnx")
        assert "--format=onnx needs tf2onnx: `pip install 'convoy-train[onnx]'` brings it." in error

    def test_a_benchmark_that_is_unknown_names_the_nearest(self, refuses):
        assert "unknown benchmark 'stepp' (did you mean 'step'?)" in refuses("bench", "stepp")

    def test_a_benchmark_must_be_named(self, refuses):
        error = refuses("bench")
        assert all(name in error for name in BENCHMARKS)


class TestConfig:
    def test_an_unknown_field_names_the_nearest_and_its_present_value(self, refuses):
        error = refuses("train", "--config=smoke", "--config.bach_size=3")
        assert "no field 'bach_size'. Nearest: config.batch_size, now 16." in error

    def test_the_last_part_of_a_name_counts_most(self, refuses):
        error = refuses("train", "--config=smoke", "--config.lr_schedule.warmup_steps=3")
        assert "Nearest: config.schedule.warmup_steps, now 5." in error

    @pytest.mark.parametrize(
        "flag", ["--config.optimizer=sgd", "--config.nothing_like_it=1", "--noconfig.measure_peek", "-config.seeed=1"]
    )
    def test_names_that_are_no_fields_are_refused_however_they_are_written(self, refuses, flag):
        assert "config has no field" in refuses("train", flag)

    def test_an_unknown_recipe_names_the_nearest_and_all_there_are(self, refuses):
        error = refuses("train", "--config=smoek", "--data=d", "--workdir=w")
        assert "--config=smoek" in error
        assert "did you mean 'smoke'?" in error
        assert ", ".join(configs.shipped_recipes()) in error

    @pytest.mark.parametrize(
        ("flag", "mend"),
        [
            ("--devices=cpu:x", "cpu:N"),
            ("--devices=cpu:0", "1 to 64"),
            ("--devices=gpu:0,0", "named twice"),
            ("--config.batch_size=abc", "'abc' is no whole number"),
            ("--config.batch_size=0", "give 1 or more"),
            ("--config.precision=fp8", "give one of auto, float32, bfloat16, float16"),
            ("--config.precision=float23", "did you mean 'float32'?"),
            ("--config.xla=yes", "give one of auto, on, off"),
            ("--config.epochs=inf", "give a number above 0"),
            ("--config.log_every=0.5", "'0.5' is no whole number"),
        ],
    )
    def test_a_bad_value_is_named_with_its_mend(self, refuses, flag, fix):
        error = refuses("train", "--data=d", "--workdir=w", flag)
        assert flag.lstrip("-") in error
        assert fix in error

    def test_a_missing_dataset_is_exit_3_and_makes_no_run_directory(self, convoy, tmp_path):
        result = convoy("train", f"--data={tmp_path / 'dta'}", f"--workdir={tmp_path / 'run'}")
        assert result.returncode == 3
        assert result.stderr.startswith(f"convoy: dataset folder {tmp_path / 'dta'} does not exist.")
        assert len(result.stderr.splitlines()) <= 2
        assert not (tmp_path / "run").exists()


def printed_fields(out):
    lines = [line.removeprefix("config.").split(" = ", 1) for line in out.splitlines() if line.startswith("config.")]
    return dict(lines)


class TestPrintConfig:
    def test_shows_every_field_and_its_value(self, says):
        code, out, _ = says("train", "--config=baseline_cnn", "--print_config")
        assert code == 0
        assert printed_fields(out) == {
            name: repr(value) for name, value in configs.fields(configs.load_recipe("baseline_cnn"))
        }
        assert "With --data=DATA" in out

    def test_without_config_it_shows_the_default_recipe(self, says):
        assert says("train", "--print_config") == says("train", "--print_config", "--config=convnet")

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--config.steps=7", "--config=smoke"),
            ("--config=smoke", "--config.steps=7"),
            ("--config.steps", "7", "--config", "smoke"),
            ("-config.steps=7", "-config=smoke"),
            ("--config=baseline_cnn", "--config.steps=7", "--config=smoke"),
        ],
        ids=" ".join,
    )
    def test_a_field_may_stand_before_or_after_the_recipe(self, says, arguments):
        code, out, _ = says("train", *arguments, "--print_config")
        fields = printed_fields(out)
        assert (code, fields["steps"], fields["image_size"]) == (0, "7", "32")

    def test_flags_and_fields_of_every_kind_arrive(self, says):
        _, out, _ = says(
            "train",
            "--print_config",
            "--deterministic",
            "--noconfig.measure_peak",
            "--config.augment.ops=crop(scale=0.5..1) | flip",
            "--config.optimizer.learning_rate=3e-2",
            "--config.model.name=keras_applications:MobileNetV2",
            "--config.schedule.boundaries=(0.3, 0.6, 0.9)",
        )
        fields = printed_fields(out)
        assert fields["deterministic"] == "True"
        assert fields["measure_peak"] == "False"
        assert fields["augment.ops"] == "'crop(scale=0.5..1) | flip'"
        assert fields["optimizer.learning_rate"] == "0.03"
        assert fields["model.name"] == "'keras_applications:MobileNetV2'"
        assert fields["schedule.boundaries"] == "(0.3, 0.6, 0.9)"

    def test_a_duration_in_another_unit_takes_the_place_of_the_recipes(self, says):
        given = ("--config.eval_every_images=900", "--config.schedule.warmup_steps=7")
        code, out, _ = says("train", "--config=convnet", "--print_config", *given)
        fields = printed_fields(out)
        assert (code, fields["eval_every_images"], fields["schedule.warmup_steps"]) == (0, "900", "7")
        assert (float(fields["eval_every_epochs"]), float(fields["schedule.warmup_epochs"])) == (0, 0)

    def test_a_bare_recipe_name_and_a_file_work_from_any_folder(self, convoy, tmp_path):
        shipped = convoy("train", "--config=smoke", "--print_config", cwd=tmp_path, check=True)
        (tmp_path / "mine.py").write_text(
            "from convoy.configs.smoke import get_config as smoke\n\n\n"
            "def get_config():\n    config = smoke()\n    config.steps = 9\n    return config\n"
        )
        mine = convoy("train", "--config=mine.py", "--print_config", cwd=tmp_path, check=True)
        assert printed_fields(mine.stdout) == {**printed_fields(shipped.stdout), "steps": "9"}

    @pytest.mark.slow
    def test_with_a_dataset_it_shows_what_follows_and_trains_nothing(self, convoy, dataset, tmp_path):
        result = convoy(
            "train",
            "--config=smoke",
            f"--data={dataset.data}",
            "--devices=cpu:2",
            f"--workdir={tmp_path / 'run'}",
            "--print_config",
            check=True,
        )
        derived = dict(line.split(" = ") for line in result.stdout.split("\n\n")[1].splitlines())
        assert derived["num_images"] == "82"
        assert (derived["replicas"], derived["virtual_replicas"], derived["replica_batch_size"]) == ("2", "2", "8")
        assert derived["total_steps"] == "20"
        assert float(derived["peak_learning_rate"]) == 2e-3
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
class TestVerbosity:
    def test_tensorflow_speaks_when_it_is_asked_to(self, convoy, dataset):  # else it is quiet: test_train.py
        command = ("train", "--config=smoke", "--print_config", f"--data={dataset.data}")
        assert "I0000 " in convoy(*command, "--verbosity=0", check=True).stderr


class TestSlipsOfBeginners:
    def test_a_config_field_as_a_flag_of_its_own_is_told_how_to_write_it(self, refuses):
        assert "write --config.batch_size=2" in refuses("train", "--batch_size=2")
        assert "write --config.optimizer.learning_rate=1" in refuses("train", "--learning_rate=1")

    def test_epochs_that_a_recipes_steps_would_hide_are_refused(self, refuses):
        error = refuses("train", "--config=smoke", "--config.epochs=3")
        assert "config.steps=20 in recipe smoke: add --config.steps=0" in error
