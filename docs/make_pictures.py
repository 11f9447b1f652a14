"""Makes the pictures of README and documentation from real runs on the sample set.

python -m docs.make_pictures                      # all of them
python -m docs.make_pictures console.png          # only this one

Needs the `test` extra and a browser. What the pictures show is made once in --workdir, in about three minutes on two
cores, and used again by later calls; with an empty --workdir it is made again.
"""

import argparse
import csv
import io
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path

from PIL import Image
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

from tests.browser import Browser
from tests.processes import REPOSITORY, process_environment
from tests.trainer.tensorboard_server import tensorboard

FOLDER = Path(__file__).parent / "pictures"
_TRAIN = (
    "train",
    "--config=convnet_fast",
    "--data=data",
    "--workdir=run",
    "--devices=cpu:2",
    "--config.epochs=28",
    "--config.eval_every_epochs=4",
)
_COLUMNS, _ROWS = 104, 40  # of the terminal
_CONTROLS = re.compile(r"(\r?\n|\r|\x1b\[\d*[AK]|\x1b\[\?\d+[hl])")  # all but colors that rich sends to a terminal


def console(workdir: Path, shot: Path) -> None:
    """The terminal shortly before the end of the training."""
    screens = list(_screens((workdir / "console.txt").read_bytes().decode()))
    progress = [re.search(r"step (\d+)/(\d+)", "\n".join(screen)) for screen in screens]
    late = [number for number, match in enumerate(progress) if match and int(match[1]) <= 0.98 * int(match[2])]
    lines = [Text.from_ansi(line) for line in screens[late[-1]]]
    terminal = Console(record=True, width=max(line.cell_len for line in lines), file=io.StringIO())
    for line in lines:
        terminal.print(line, soft_wrap=True)
    # Without fonts from other servers.
    template = re.sub(r"@font-face {{.*?}}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = terminal.export_svg(title=shlex.join(("convoy", *_TRAIN[:5])) + " ...", code_format=template)
    page = workdir / "console.html"
    page.write_text(f"<body style='margin: 0'>{svg.replace('<svg ', '<svg style=width:1280px;display:block ', 1)}")
    with Browser(workdir / "browser") as browser:
        browser.open(page.as_uri())
        browser.wait_until("!!document.querySelector('svg')")
        browser.emulate(1280, round(browser.value("document.querySelector('svg').getBoundingClientRect().height")))
        browser.screenshot(shot)


def report(workdir: Path, shot: Path) -> None:
    """The first screen of a report, and its confused pairs on a phone in the dark."""
    phone = shot.with_stem("phone")
    with Browser(workdir / "browser") as browser:
        browser.emulate(940, 1100)
        browser.open((workdir / "run" / "report.html").as_uri())
        browser.wait_for("Summary")
        browser.screenshot(shot)
        browser.emulate(320, 1100, dark=True)
        browser.open(f"{(workdir / 'run' / 'report.html').as_uri()}#confusion")
        browser.wait_until("document.readyState == 'complete'")
        # Scrolls at once: the page itself does so smoothly.
        browser.value("document.querySelector('#confusion').scrollIntoView({behavior: 'instant'})")
        browser.screenshot(phone)
    left, right = Image.open(shot), Image.open(phone)
    both = Image.new("RGB", (left.width + 20 + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 20, 0))
    both.save(shot)


def data_report(workdir: Path, shot: Path) -> None:
    """The first screen of the report on a dataset."""
    _page(workdir, workdir / "store" / "report.html", shot)


def augment(workdir: Path, shot: Path) -> None:
    """The page of augmented images."""
    _page(workdir, workdir / "augment.html", shot)


def custom_scalars(workdir: Path, shot: Path) -> None:
    """TensorBoard's curves of training and validation in the same charts."""
    matches = "texts.filter((text) => /Matches .[1-9]/.test(text.data))"
    _tensorboard(workdir, "custom_scalars", f"{matches}.length >= 4", shot)


def images(workdir: Path, shot: Path) -> None:
    """TensorBoard's confusion matrix, first batch and most confident errors."""
    _tensorboard(workdir, "images", "images.length >= 3", shot)


PICTURES: dict[str, Callable[[Path, Path], None]] = {
    "augment.png": augment,
    "console.png": console,
    "data-report.png": data_report,
    "report.png": report,
    "tensorboard-custom-scalars.png": custom_scalars,
    "tensorboard-images.png": images,
}


def main() -> None:
    """Makes the pictures that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", help="names; all of them by default")
    parser.add_argument("--workdir", type=Path, default=REPOSITORY / "build/pictures", help="for data and run")
    arguments = parser.parse_args()
    workdir = arguments.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    os.chdir(workdir)
    _run_all(workdir)
    for name in arguments.pictures or PICTURES:
        shot = workdir / name
        shutil.rmtree(workdir / "browser", ignore_errors=True)
        PICTURES[name](workdir, shot)
        palette = Image.open(shot).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        palette.save(FOLDER / name, optimize=True)
        print(f"{FOLDER / name}: {palette.width}x{palette.height}, {(FOLDER / name).stat().st_size / 1e3:.0f} kB")


def _run_all(workdir: Path) -> None:
    """Makes what is missing of images, datasets, run and pages."""
    for done, command in (
        ("photos", "sample --output=photos"),
        ("named", _name_folders),
        ("data", "convert --images=named/train --output=data"),
        ("data/index-test.npz", "convert --images=named/test --output=data --split=test"),
        ("damaged", _damage),
        ("store", "convert --images=damaged/train --output=store --max_bad_fraction=0.1"),
        ("store/index-test.npz", "convert --images=damaged/test --output=store --split=test"),
        ("run/result.json", _train),
        ("run/evaluation_test.json", "evaluate --workdir=run --split=test"),
        ("augment.html", "augment --data=data --config=convnet --output=augment.html"),
    ):
        if (workdir / done).exists():
            continue
        if isinstance(command, str):
            subprocess.run(_command(command.split()), cwd=workdir, env=process_environment(), check=True)
        else:
            command(workdir)


def _name_folders(workdir: Path) -> None:
    """Copies the images into folders with the names of the categories, for the pictures' sake."""
    with open(workdir / "photos" / "categories.csv", encoding="utf-8", newline="") as file:
        names = {row["category"]: row["name"] for row in csv.DictReader(file)}
    for split in ("train", "test"):
        for category, name in names.items():
            shutil.copytree(workdir / "photos" / split / category, workdir / "named" / split / name)


def _damage(workdir: Path) -> None:
    """Copies some categories with what data sets suffer from: leakage, wrong labels, few images, broken files."""
    folder = workdir / "damaged"
    for split in ("train", "test"):
        for source in sorted((workdir / "named" / split).iterdir())[:12]:
            shutil.copytree(source, folder / split / source.name)
    first, second, third, *_, last = sorted((folder / "train").iterdir())
    for image in sorted((folder / "test" / first.name).iterdir())[:4]:
        Image.open(image).save(first / f"leaked-{image.stem}.jpg", quality=80)
    for image in sorted(second.iterdir())[:3]:
        shutil.copy(image, third / f"again-{image.name}")
    for image in sorted(third.iterdir())[5:8]:
        image.write_bytes(image.read_bytes()[:300])
    for image in sorted(last.iterdir())[7:]:
        image.unlink()


def _train(workdir: Path) -> None:
    shutil.rmtree(workdir / "run", ignore_errors=True)  # the console of a resumed run differs
    (workdir / "console.txt").write_bytes(_in_terminal(list(_TRAIN), workdir))


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "convoy", *arguments]


def _in_terminal(arguments: list[str], workdir: Path) -> bytes:
    """Runs `convoy *arguments` in a terminal; returns what the terminal got, control sequences included."""
    controller, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    variables = process_environment(TERM="xterm-256color", COLORTERM="truecolor")
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = subprocess.Popen(_command(arguments), cwd=workdir, env=variables, **streams)
    os.close(terminal)
    output = b""
    try:
        while chunk := os.read(controller, 1 << 16):
            output += chunk
    except OSError:  # the end, on Linux
        pass
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, arguments, output.decode())
    return output


def _screens(output: str) -> Iterator[list[str]]:
    """Yields the lines on a terminal, colors included, each time before something is erased."""
    lines, row = [""], 0
    for piece in _CONTROLS.split(output):
        if piece.endswith("\n"):
            row += 1
            lines += [""] * (row == len(lines))
        elif piece.endswith("A") and piece.startswith("\x1b["):
            row -= int(piece[2:-1] or 1)
        elif piece.endswith("K") and piece.startswith("\x1b["):
            if row == len(lines) - 1:  # the first of those that are erased
                yield [line for line in lines if line]
            lines[row] = ""
        elif not _CONTROLS.fullmatch(piece):
            lines[row] += piece


def _page(workdir: Path, page: Path, shot: Path) -> None:
    with Browser(workdir / "browser") as browser:
        browser.emulate(1100, 1000)
        browser.open(page.as_uri())
        browser.wait_until("document.readyState == 'complete'")
        browser.screenshot(shot)


def _tensorboard(workdir: Path, page: str, is_drawn: str, shot: Path) -> None:
    (workdir / "browser").mkdir()
    log = workdir / "browser" / "tensorboard.log"
    with (
        tensorboard(Path("run/tensorboard"), log, fast=True) as server,  # the page shows this path
        Browser(workdir / "browser" / "window") as browser,
    ):
        browser.emulate(1280, 800)
        # Otherwise its charts are drawn with WebGL.
        browser.open(f"{server.url}?forceSVG=true#{page}")
        browser.wait_until(_IN_PAGE % f"return {is_drawn}")
        browser.screenshot(shot)


_IN_PAGE = """
(() => {
  const found = [];
  const walk = (node) => {
    found.push(node);
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  const texts = found.filter((node) => node.nodeName == '#text');
  const images = found.filter((node) => node.nodeName == 'IMG' && node.complete && node.naturalWidth > 100);
  %s;
})()
"""

if __name__ == "__main__":
    main()
