"""Every command and every program in README and tutorials runs, from top to bottom; and the runner of their blocks."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import RUN, SHOWN, BlockError, Runner, pages_with_tested_blocks, read_page
from tests.docs.convoy_command import with_added_flags
from tests.processes import REPOSITORY, is_gone

PAGES = [pytest.param(path, id=path.relative_to(REPOSITORY).as_posix()) for path in pages_with_tested_blocks()]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES)
def test_page_runs(path, tmp_path, forks):
    page = read_page(path)
    with Runner(tmp_path / "page", forks) as runner:
        for block in page.blocks:
            runner.run(block)


@pytest.mark.parametrize("path", PAGES)
def test_every_block_is_run_or_says_why_not(path):
    page = read_page(path)
    unknown = [f"{path}:{block.line}: {block.language}" for block in page.blocks if not _is_known(block)]
    assert (page.mistakes, unknown) == ([], [])
    installed = [f"{path}:{block.line}" for block in page.blocks if block.is_run and "pip install" in block.text]
    assert installed == [], "these would change the environment of the tests; mark them `<!-- not tested: ... -->`"


def _is_known(block):
    return bool(block.language and block.title) or block.language in (*RUN, *SHOWN) or block.skipped


@pytest.fixture
def run_page(tmp_path, forks):
    """Runs the blocks of a page with this text; returns the folder in which they ran."""

    def run(text):
        path = tmp_path / "page.md"
        path.write_text(text)
        page = read_page(path)
        with Runner(tmp_path / "runner", forks) as runner:
            for block in page.blocks:
                runner.run(block)
        return runner.folder

    return run


def test_blocks_share_a_folder_variables_and_names(run_page):
    folder = run_page("""
```sh
export NAME=here
mkdir inner && cd inner
```

- in a list:

    ```python title="inner/program.py"
    print("written")
    ```

<!-- not tested: needs a cluster -->
```sh
exit 1
```

```sh
python program.py > "$NAME"
```

```text
$ false
```

```python
kept = 1
```

```python
open("python", "w").write(str(kept + 1))
```
""")
    assert (folder / "inner" / "here").read_text() == "written\n"
    assert (folder / "python").read_text() == "2"


def test_convoy_gets_input_output_and_the_flags_of_the_page(run_page):
    folder = run_page("""
<!-- in CI: train --config.steps=7 -->
```sh
convoy train --config=smoke --print_config > printed 2> errors
python -m convoy train --config=smoke --print_config | grep -q 'steps = 7'
code=0
convoy evaluate --workdir=missing --split=test 2> message || code=$?
echo $code > code
convoy --version & wait $!
```

<!-- in CI: train --config.steps=8 --config.log_every_steps=2 -->
```sh
convoy train --config=smoke --print_config | grep -q 'config.steps = 8'
```

<!-- in CI: train -->
```sh
convoy train --config=smoke --print_config | grep -q 'config.steps = 20'
```
""")
    assert re.search(r"config\.steps = 7\b", (folder / "printed").read_text())
    assert (folder / "code").read_text() == "3\n"
    assert "missing" in (folder / "message").read_text()


def test_flags_are_added_to_the_command_that_a_launcher_starts():
    added = {"train": ["--config.steps=7"]}
    launch = ["launch", "local", "--", "train", "--data=data"]
    assert with_added_flags(launch, added) == [*launch, "--config.steps=7"]
    assert with_added_flags(["evaluate", "--workdir=train"], added) == ["evaluate", "--workdir=train"]


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("\n```sh\ntrue\necho printed\nls missing | cat\n```\n", 5, ("ls missing | cat", "printed", "No such file")),
        ("```sh\nconvoy \\\n  evalute\n```\n", 2, ("convoy \\\n  evalute", "evaluate")),
        ("\n```sh\necho $undefined\n```\n", 2, ("echo $undefined", "unbound")),
        ("\n```python\nx = 1\nprint('printed')\nx.y\n```\n", 2, ("line 5", "x.y", "AttributeError", "printed")),
        ("\n```python\nimport os\nos._exit(3)\n```\n", 2, ("exit code 3",)),
    ],
    ids=["pipe", "convoy", "bash", "python", "python exits"],
)
def test_a_failure_names_line_command_and_output(run_page, tmp_path, text, line, expected):
    with pytest.raises(BlockError) as failure:
        run_page(text)
    message = str(failure.value)
    assert message.startswith(f"{tmp_path / 'page.md'}:{line}:")
    assert [part for part in expected if part not in message] == []


def test_background_processes_end_with_the_page(run_page, wait_until):
    folder = run_page("```sh\nsleep 1000 & echo $! > pid\nsh -c 'exec sleep 1000' & echo $! >> pid\n```\n")
    pids = [int(pid) for pid in (folder / "pid").read_text().split()]
    wait_until(lambda: all(map(is_gone, pids)), "the end of both")


def test_a_signal_ends_convoy(run_page):
    folder = run_page("""
```sh
convoy sample --output=photos --per_category=10000 --size=256 & shell=$!
until [ -s "$PAGE_PROCESSES" ]; do :; done
kill -TERM $shell
code=0; wait $shell || code=$?
! kill -0 $(cat "$PAGE_PROCESSES")
echo $code > code
```
""")
    assert (folder / "code").read_text() == "143\n"


@pytest.mark.parametrize(
    "comment",
    [
        "<!-- not tested: -->",
        "<!-- not tested -->",
        "<!-- in CI: --config.steps=3 -->",
        "<!-- in CI: train config.steps=3 -->",
    ],
)
def test_comments_without_effect_are_found(tmp_path, comment):
    path = tmp_path / "page.md"
    path.write_text(f"{comment}\n```sh\ntrue\n```\n")
    assert len(read_page(path).mistakes) == 1


def test_a_reason_without_a_block_is_found(tmp_path):
    path: Path = tmp_path / "page.md"
    path.write_text("<!-- not tested: why -->\n## Next\n```sh\ntrue\n```\n<!-- not tested: why -->\n")
    page = read_page(path)
    assert len(page.mistakes) == 2 and page.blocks[0].is_run
