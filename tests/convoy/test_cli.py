import re
import sys

import pytest

from convoy.cli import COMMANDS, main
from convoy.trainer import config as configs

BENCHMARKS = ("step", "input")

# Runs the command line; the last line of output is the exit code and the slow libraries that were imported.
_REPORT_IMPORTS = """
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
def run(capsys):
    """Runs a command line in this process; returns exit code, standard output and standard error."""

    def run_command(*arguments):
        code = main(["convoy", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


@pytest.fixture
def refuses(run):
    """Asserts a usage error: exit code, no standard output, one or two lines on standard error, which it returns."""

    def run_command(*arguments, code=2):
        found, out, error = run(*arguments)
        assert (found, out) == (code, "")
        assert error.startswith("convoy: ")
        assert 1 <= len(error.splitlines()) <= 2
        return error

    return run_command


class TestOverview:
    @pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
    def test_lists_every_command_with_summary_and_example(self, run, arguments):
        code, out, error = run(*arguments)
        assert (code, error) == (0, "")
        for name, command in COMMANDS.items():
            assert f"  {name:<8}  {command.summary}\n" in out
            assert f" {command.example}\n" in out

    @pytest.mark.parametrize("name", COMMANDS)
    def test_examples_use_their_own_command(self, name):
        assert COMMANDS[name].example.startswith(f"convoy {name} ")

    def test_version(self, run):
        code, out, _ = run("--version")
        assert code == 0
        assert out.startswith("convoy 0.")

    def test_unknown_command_suggests_the_nearest(self, refuses):
        error = refuses("trian")
        assert "'trian'" in error and "'train'" in error


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    @pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
    def test_shows_example_and_required_flags(self, run, name, flag):
        code, out, error = run(name, *["local"] * (name == "launch"), flag)
        assert (code, error) == (0, "")
        assert f"convoy {name}: {COMMANDS[name].summary}.\n" in out
        assert COMMANDS[name].example in out
        for argument in COMMANDS[name].example.split(" -- ")[0].split():
            if argument.startswith("--"):
                assert f"  {argument.split('=')[0]}\n" in out

    def test_train_lists_the_shipped_recipes(self, run):
        _, out, _ = run("train", "--help")
        assert ", ".join(configs.shipped_recipes()) in out

    def test_help_works_with_an_invalid_config(self, run, tmp_path):
        code, out, _ = run("train", "--help", "--config.batch_size=abc")
        assert code == 0
        assert "--workdir" in out


class TestWithoutTensorFlow:
    """Usage errors are reported before slow libraries are imported."""

    @pytest.mark.parametrize("name", COMMANDS)
    def test_help(self, python, name):
        result = python("-c", _REPORT_IMPORTS, name, "--help")
        assert result.stdout.splitlines()[-1] == "0", result.stderr

    @pytest.mark.parametrize("name", COMMANDS)
    def test_unknown_flag(self, python, name):
        result = python("-c", _REPORT_IMPORTS, name, "--no_such_flag=1")
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
    def test_checks_of_flags_and_config(self, python, arguments):
        result = python("-c", _REPORT_IMPORTS, *arguments)
        assert result.stdout.splitlines()[-1] in ("0", "2"), result.stderr


class TestFlags:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_unknown_flag_is_named(self, refuses, name):
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
    def test_nearest_flag_is_suggested(self, refuses, name, typed, meant):
        assert re.search(rf"Did you mean: {meant}[,?]", refuses(name, typed))

    @pytest.mark.parametrize(
        ("arguments", "missing"),
        [
            (("sample",), ["--output"]),
            (("convert",), ["--output"]),
            (("train",), ["--data", "--workdir"]),
            (("train", "--data=d", "--workdir="), ["--workdir"]),
            (("evaluate",), ["--workdir", "--split"]),
            (("evaluate", "--workdir=w"), ["--split"]),
            (("predict", "--workdir=w"), ["--images"]),
            (("export", "--workdir=w"), ["--format", "--output"]),
        ],
        ids=" ".join,
    )
    def test_missing_required_flags_are_named(self, refuses, arguments, missing):
        assert re.findall(r"--\w+", refuses(*arguments).partition(" must ")[0]) == missing

    def test_positional_argument_is_refused_with_an_example(self, refuses):
        error = refuses("train", "data", "--workdir=w", "--data=d")
        assert "'data'" in error
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
    def test_value_of_the_wrong_type_is_named(self, refuses, arguments):
        flag, value = arguments[-1].split("=")
        error = refuses(*arguments)
        assert flag.lstrip("-") in error
        assert value in error

    @pytest.mark.parametrize("formats", ["tflite", "onnx,", "ONNX"])
    def test_unknown_format_lists_the_known_ones(self, refuses, formats):
        error = refuses("export", "--workdir=w", "--output=o", f"--format={formats}")
        assert all(name in error for name in ("saved_model", "keras", "litert", "onnx"))

    def test_missing_extra_is_named_with_the_install_command(self, refuses, monkeypatch):
        monkeypatch.setitem(sys.modules, "tf2onnx", None)
        error = refuses("export", "--workdir=w", "--output=o", "--format=onnx")
        assert "tf2onnx" in error and "pip install 'convoy-train[onnx]'" in error

    @pytest.mark.slow  # imports TensorFlow
    def test_missing_extra_of_one_format_is_named_before_the_others_are_exported(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "tf2onnx", None)
        code = main(["convoy", "export", "--workdir=no-such-run", "--output=o", "--format=keras,onnx"])
        first, second = capsys.readouterr().err.splitlines()
        assert "tf2onnx" in first and "no-such-run" in second
        assert code == 3

    def test_unknown_benchmark_suggests_the_nearest(self, refuses):
        error = refuses("bench", "stepp")
        assert "'stepp'" in error and "'step'" in error

    def test_bench_without_a_name_lists_the_benchmarks(self, refuses):
        error = refuses("bench")
        assert all(name in error for name in BENCHMARKS)


class TestConfig:
    def test_unknown_field_suggests_the_nearest_with_its_value(self, refuses):
        error = refuses("train", "--config=smoke", "--config.bach_size=3")
        assert all(text in error for text in ("'bach_size'", "config.batch_size", "16"))

    def test_last_part_of_a_field_name_counts_most(self, refuses):
        error = refuses("train", "--config=smoke", "--config.lr_schedule.warmup_steps=3")
        assert "config.schedule.warmup_steps" in error

    @pytest.mark.parametrize(
        "flag", ["--config.optimizer=sgd", "--config.nothing_like_it=1", "--noconfig.measure_peek", "-config.seeed=1"]
    )
    def test_unknown_field_is_refused_in_every_spelling(self, refuses, flag):
        field = flag.lstrip("-").removeprefix("no").removeprefix("config.").split("=")[0]
        assert field in refuses("train", flag)

    def test_unknown_recipe_suggests_the_nearest_and_lists_all(self, refuses):
        error = refuses("train", "--config=smoek", "--data=d", "--workdir=w")
        assert "--config=smoek" in error
        assert "'smoke'" in error
        assert ", ".join(configs.shipped_recipes()) in error

    @pytest.mark.parametrize(
        ("flag", "allowed"),
        [
            ("--devices=cpu:x", "cpu:N"),
            ("--devices=cpu:0", "64"),
            ("--devices=gpu:0,0", "GPU"),
            ("--config.batch_size=abc", "integer"),
            ("--config.batch_size=0", "at least 1"),
            ("--config.precision=fp8", "auto, float32, bfloat16, float16"),
            ("--config.precision=float23", "'float32'"),
            ("--config.xla=yes", "auto, on, off"),
            ("--config.epochs=inf", "finite"),
            ("--config.log_every=0.5", "integer"),
            ("--config.deterministic=perhaps", "true or false"),
            ("--config.steps=9999999999999999999", "64-bit"),
            ("--config.schedule.boundaries={0.5: 1}", "0.5,0.75"),
            ("--config.schedule.boundaries=" + "-" * 900 + "1", "0.5,0.75"),
            ("--config.schedule.boundaries=", "0.5,0.75"),
        ],
    )
    def test_invalid_value_is_named_with_what_is_allowed(self, refuses, flag, allowed):
        error = refuses("train", "--data=d", "--workdir=w", flag)
        assert flag.lstrip("-") in error
        assert allowed in error

    def test_missing_dataset_exits_with_3_and_creates_no_run_directory(self, convoy, tmp_path):
        result = convoy("train", f"--data={tmp_path / 'dta'}", f"--workdir={tmp_path / 'run'}")
        assert result.returncode == 3
        assert str(tmp_path / "dta") in result.stderr
        assert len(result.stderr.splitlines()) <= 2
        assert not (tmp_path / "run").exists()


def printed_fields(out):
    lines = [line.removeprefix("config.").split(" = ", 1) for line in out.splitlines() if line.startswith("config.")]
    return dict(lines)


class TestPrintConfig:
    def test_prints_every_field_and_value(self, run):
        code, out, _ = run("train", "--config=baseline_cnn", "--print_config")
        assert code == 0
        assert printed_fields(out) == {
            name: repr(value) for name, value in configs.fields(configs.load_recipe("baseline_cnn"))
        }
        assert "--data=DATA" in out

    def test_default_recipe(self, run):
        assert run("train", "--print_config") == run("train", "--print_config", "--config=convnet")

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
    def test_field_before_or_after_the_recipe(self, run, arguments):
        code, out, _ = run("train", *arguments, "--print_config")
        fields = printed_fields(out)
        assert (code, fields["steps"], fields["image_size"]) == (0, "7", "32")

    def test_fields_of_every_type(self, run):
        _, out, _ = run(
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

    def test_duration_in_another_unit_overrides_the_recipe(self, run):
        given = ("--config.eval_every_images=900", "--config.schedule.warmup_steps=7")
        code, out, _ = run("train", "--config=convnet", "--print_config", *given)
        fields = printed_fields(out)
        assert (code, fields["eval_every_images"], fields["schedule.warmup_steps"]) == (0, "900", "7")
        assert (float(fields["eval_every_epochs"]), float(fields["schedule.warmup_epochs"])) == (0, 0)

    def test_a_value_may_follow_its_field(self, run):
        given = ("--config.eval_every", "0", "--config.order", "windowed", "--config.progressive.sizes", "()")
        _, out, _ = run("train", "--config=convnet", "--print_config", *given)
        fields = printed_fields(out)
        assert float(fields["eval_every_epochs"]) > 0
        assert (fields["shuffle"], fields["progressive.sizes"]) == ("'striped'", "()")

    def test_recipe_name_and_file_work_from_any_folder(self, convoy, tmp_path):
        shipped = convoy("train", "--config=smoke", "--print_config", cwd=tmp_path, check=True)
        (tmp_path / "mine.py").write_text(
            "from convoy.configs.smoke import get_config as smoke\n\n\n"
            "def get_config():\n    config = smoke()\n    config.steps = 9\n    return config\n"
        )
        mine = convoy("train", "--config=mine.py", "--print_config", cwd=tmp_path, check=True)
        assert printed_fields(mine.stdout) == {**printed_fields(shipped.stdout), "steps": "9"}

    @pytest.mark.slow
    def test_with_a_dataset_prints_the_plan_and_does_not_train(self, convoy, dataset, tmp_path):
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
    def test_tensorflow_logs_on_request(self, python, dataset):  # that it is quiet otherwise: test_train.py
        command = ("train", "--config=smoke", "--print_config", f"--data={dataset.data}")
        result = python("-m", "convoy", *command, "--verbosity=0")
        assert result.returncode == 0 and "I0000 " in result.stderr


class TestSlipsOfBeginners:
    def test_a_config_field_as_a_flag_of_its_own_is_told_how_to_write_it(self, refuses):
        assert "--config.batch_size=2" in refuses("train", "--batch_size=2")
        assert "--config.optimizer.learning_rate=1" in refuses("train", "--learning_rate=1")
        assert "--config.steps=5" in refuses("train", "--steps=5")

    def test_virtual_replicas_of_a_resumed_run_and_of_the_config_are_told_apart(self, refuses):
        for flag in ("--print_config", "--find_lr", "--find_batch_size"):
            assert "--config.virtual_replicas=8" in refuses("train", "--virtual_replicas=8", flag)
        assert "virtual_replicas" in refuses("train", "--virtual_replicas=0")

    def test_the_length_that_was_typed_replaces_the_recipes_in_another_unit(self, convoy):
        result = convoy("train", "--config=smoke", "--config.epochs=3", "--print_config", check=True)
        fields = printed_fields(result.stdout)
        assert (fields["steps"], float(fields["epochs"])) == ("0", 3.0)

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            (("--config.epochs=3", "--config.steps=9"), "--config.steps=9 and --config.epochs=3"),
            (("--config.steps=0",), "--config.steps=0"),
            (("--config.steps=-0x0",), "--config.steps=-0x0"),
        ],
    )
    def test_two_lengths_or_none_are_refused(self, refuses, flags, named):
        assert named in refuses("train", "--config=smoke", *flags)

    def test_a_flag_without_field_or_value_is_refused(self, refuses):
        assert "no field ''" in refuses("train", "--config.=3")
        assert "--config.model.name" in refuses("train", "--config.model.name", "--config.model.weights=w", "--data=d")

    @pytest.mark.parametrize(
        ("name", "meant"), [("fit", "train"), ("eval", "evaluate"), ("trian", "train"), ("nosuch", "")]
    )
    def test_an_unknown_command_is_answered_by_its_meaning_and_the_list(self, refuses, name, meant):
        error = refuses(name)
        assert ("did you mean" in error) == bool(meant)
        assert f"'{meant}'" in error or not meant
        assert all(command in error for command in COMMANDS)

    def test_the_home_folder_is_known_in_flags(self, refuses, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert f"{tmp_path}/none" in refuses("verify", "--data=~/none", code=3)
        assert f"{tmp_path}/a.jpg" not in refuses("verify", "--data=a~/a.jpg", code=3)


def test_plotting_backend_of_a_notebook_in_another_environment_is_replaced(python, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://not_installed_here.backend_inline")
    program = """
import atexit, os, sys
sys.argv = ["convoy", "--version"]
atexit.register(lambda: print(os.environ["MPLBACKEND"]))
from convoy.cli import entry_point
entry_point()
"""
    assert python("-c", program).stdout.splitlines()[-1] == "agg"
