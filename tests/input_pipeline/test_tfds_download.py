"""`convoy convert --tfds=NAME --download`: TFDS downloads from a local server and prepares the dataset."""

import hashlib
import http.server
import io
import itertools
import signal
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from convoy import cli
from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert import tfds_download
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import open_dataset
from tests import processes
from tests.input_pipeline.conversions import contents
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import pixels


def archive(numbers):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for number in numbers:
            file.writestr(f"{('cup', 'jar')[number % 2]}/{number}.png", encode(pixels(number, 8), "png"))
    return buffer.getvalue()


class Server:
    """Serves train.zip and test.zip.

    Attributes:
      files: their content, by path.
      wrong: what is wrong: "", "cut", "missing", or "endless", where `asked` is set and `released` is waited for.
      requests: number of requests.
    """

    def __init__(self):
        self.files = {"/train.zip": archive(range(12)), "/test.zip": archive(range(20, 26))}
        self.wrong, self.requests = "", 0
        self.asked, self.released = threading.Event(), threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                server.requests += 1
                if server.wrong == "missing":
                    return self.send_error(404)
                content = server.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                if server.wrong == "endless":
                    self.wfile.flush()
                    server.asked.set()
                    server.released.wait()
                elif server.wrong != "cut":
                    self.wfile.write(content[len(content) // 2 :])

            def log_message(self, *_):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self):
        self.released.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch):
    """A server that a process of TFDS downloads from."""
    server = Server()
    monkeypatch.setenv("PHOTO_SERVER", server.address)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.stop()


class Builders:
    """A copy of photo_builder.py, with class names of its own: TFDS registers each name once in a process."""

    _numbers = itertools.count()

    def __init__(self, folder):
        folder.mkdir()
        number = next(self._numbers)
        code = Path(__file__).with_name("photo_builder.py").read_text()
        for name in ("PhotoSet", "ByHand", "Poems"):
            code = code.replace(name, f"{name}{number}")
        self.file = folder / f"photos_{number}.py"
        self.file.write_text(code)
        self.name = f"{self.file}:PhotoSet{number}"
        self.set = f"photo_set{number}"

    def register(self, server, path, content):
        line = f"{server.address}{path}\t{len(content)}\t{hashlib.sha256(content).hexdigest()}\t{path[1:]}\n"
        self.file.with_name("checksums.tsv").write_text(line)


@pytest.fixture
def builders(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    return Builders(tmp_path / "builders")


def prepare_here(name, folder):
    """Prepares in this process; returns the directory."""
    return tfds_download._prepared(str(name), folder, RecordFormat(), False, lambda note: None)


def downloads(folder):
    return [path for path in (folder / "downloads").rglob("*") if path.is_file() and "extracted" not in path.parts]


@pytest.mark.slow
def test_a_set_is_downloaded_once_and_converted_with_its_splits(tmp_path, server, builders, convoy):
    builders.register(server, "/train.zip", server.files["/train.zip"])
    folder, output = tmp_path / "tfds", tmp_path / "data"
    flags = ("--workers=1", f"--tfds_dir={folder}", f"--output={output}")
    refused = convoy("convert", f"--tfds={builders.set}", *flags)
    assert refused.returncode == 2 and "--download" in refused.stderr
    finished = convoy("convert", f"--tfds={builders.name}", "--download", *flags)
    assert finished.returncode == 0, finished.stderr
    dataset = open_dataset(output)
    assert dataset.class_names == ("cup", "jar")
    assert {split: dataset.split(split).num_images for split in dataset.splits} == {"train": 12, "test": 6}
    before = contents(folder), server.requests
    assert f"{builders.set}/1.0.0/{builders.set}-train.tfrecord-00000-of-00001" in before[0]
    again = [*flags[:2], f"--output={tmp_path / 'again'}", "--download", f"--tfds={builders.set}"]
    without_tfds = "import sys; sys.modules['tensorflow_datasets'] = None; from convoy import cli; sys.exit(cli.main())"
    finished = processes.run([sys.executable, "-c", without_tfds, "convert", *again])
    assert finished.returncode == 0, finished.stderr
    assert (contents(folder), server.requests) == before


@pytest.mark.parametrize("flag", ["--download", "--nodownload"])
def test_the_prepared_set_of_a_builder_is_found_also_in_a_dry_run(tmp_path, server, builders, capsys, flag):
    folder, output = tmp_path / "tfds", tmp_path / "data"
    flags = (f"--tfds={builders.name}", f"--tfds_dir={folder}", f"--output={output}", "--dry_run", "--workers=1", flag)
    assert cli.main(["convoy", "convert", *flags]) == 2
    assert ("Omit --dry_run" in capsys.readouterr().err) == (flag == "--download") and not folder.exists()
    prepare_here(builders.name, folder)
    assert cli.main(["convoy", "convert", *flags]) == 0
    assert "18 images would be converted" in capsys.readouterr().out and not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_preparation_is_repeated(tmp_path, server, builders, convoy, convoy_started, number):
    server.wrong = "endless"
    folder = tmp_path / "tfds"
    flags = ("convert", f"--tfds={builders.name}", "--download", f"--tfds_dir={folder}", "--workers=1")
    flags += (f"--output={tmp_path / 'data'}",)
    with convoy_started(*flags, output=tmp_path / "log") as process:
        assert server.asked.wait(120)
        process.send_signal(number)
        code = process.wait(60)
    assert code == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert downloads(folder) == [] and list(folder.glob("photo_set*/**/*.json")) == []
    server.wrong = ""
    server.released.set()
    finished = convoy(*flags)
    assert finished.returncode == 0, finished.stderr
    assert open_dataset(tmp_path / "data").split("train").num_images == 12


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("checksum", "train.zip"),
        ("cut", "broke off"),
        ("missing", "404"),
        ("down", "cannot be reached"),
        ("damaged", "delete it"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_no_part(tmp_path, server, builders, monkeypatch, wrong, named):
    monkeypatch.setattr(tfds_download, "_RETRIES", 1)
    server.wrong = wrong
    if wrong == "checksum":
        builders.register(server, "/train.zip", b"another file")
    if wrong == "down":
        server.stop()
    if wrong == "damaged":
        server.files["/train.zip"] = b"not a zip"
    with pytest.raises(DataError) as caught:
        prepare_here(builders.name, tmp_path / "tfds")
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "tfds" / builders.set).exists()
    assert not list((tmp_path / "tfds" / "downloads").rglob("*.tmp.*"))


@pytest.mark.parametrize(
    ("name", "error", "named"),
    [
        ("minst", UsageError, "'mnist'"),
        ("mnist_corrupted/identiti", UsageError, "'identity'"),
        ("mnist:0.0.1", UsageError, "0.0.1"),
        ("{file}:PhotoSat", UsageError, "'PhotoSet"),
        ("{file}:not_a_builder", UsageError, "not_a_builder"),
        ("{file}x.py:PhotoSet", UsageError, "does not exist"),
        ("{file}:Poems{number}", DataError, "no Image feature"),
        ("{file}:ByHand{number}", DataError, "downloads/manual: Register at example.org, and put photos.tar there."),
    ],
)
def test_what_cannot_be_prepared_is_named(tmp_path, server, builders, name, error, named):
    with pytest.raises(error) as caught:
        prepare_here(name.format(file=builders.file, number=builders.set[len("photo_set") :]), tmp_path / "tfds")
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert server.requests == 0


def test_an_unfinished_directory_is_not_taken_for_the_set(tmp_path, capsys):
    directory = tmp_path / "photos" / "incomplete.AB12CD_1.0.0"
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text("{}")
    flags = ["--tfds=photos", f"--tfds_dir={tmp_path}", f"--output={tmp_path / 'data'}"]
    assert cli.main(["convoy", "convert", *flags]) == 2
    assert "--download" in capsys.readouterr().err


def test_a_dry_run_downloads_nothing(tmp_path, capsys):
    flags = ["--tfds=mnist", f"--tfds_dir={tmp_path}", f"--output={tmp_path / 'data'}", "--download", "--dry_run"]
    assert cli.main(["convoy", "convert", *flags]) == 2
    assert "--dry_run" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_download_is_for_tfds(tmp_path, capsys):
    assert cli.main(["convoy", "convert", f"--images={tmp_path}", "--download", f"--output={tmp_path}/data"]) == 2
    assert "--download" in capsys.readouterr().err
