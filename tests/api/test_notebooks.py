"""The API in a real Jupyter kernel: the tutorial, and a training that is interrupted and started again."""

import contextlib
import json
from pathlib import Path

import pytest

from tests.processes import REPOSITORY, process_environment

nbclient = pytest.importorskip("nbclient")
jupyter_client = pytest.importorskip("jupyter_client")
nbformat = pytest.importorskip("nbformat")

pytestmark = pytest.mark.slow
_SECONDS = 240


@contextlib.contextmanager
def kernel(folder: Path):
    """Starts a kernel in a folder; yields its manager, and a client that is connected to it."""
    manager = jupyter_client.KernelManager()
    manager.start_kernel(cwd=str(folder), env=process_environment())
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=_SECONDS)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def executed(client, code: str) -> dict:
    """Runs a cell to its end; returns the content of the reply."""
    return client.execute_interactive(code, timeout=_SECONDS, output_hook=lambda message: None)["content"]


@pytest.mark.parametrize("notebook", sorted((REPOSITORY / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(notebook, tmp_path, monkeypatch):
    for name, value in process_environment().items():
        monkeypatch.setenv(name, value)
    content = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in content.cells)
    nbclient.NotebookClient(content, timeout=_SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    html = [output.data for cell in content.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("text/html" in data for data in html) >= 5
    assert (tmp_path / "exported" / "model.keras").is_file()


def test_interrupted_training_resumes_when_the_cell_runs_again(reference_run, dataset, tmp_path, wait_until):
    """With the weights of a run that was not interrupted."""
    run = tmp_path / "run"
    cell = (
        f"import convoy\nconfig = convoy.open_run({str(reference_run.workdir)!r}).config\n"
        f"convoy.train(config, data={str(dataset.data)!r}, workdir={str(run)!r}, devices='cpu:1')"
    )
    with kernel(tmp_path) as (manager, client):
        message = client.execute(cell, stop_on_error=False)  # else the kernel may refuse the next cell for a moment
        wait_until(lambda: any(run.glob("checkpoints/step-*.npz")), "a checkpoint")
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=_SECONDS))["parent_header"]["msg_id"] != message:
            pass  # of the requests that waited for the kernel
        assert reply["content"]["ename"] == "KeyboardInterrupt", reply["content"]
        for _ in range(2):  # the second time nothing is left to train, and the run is not locked
            reply = executed(client, cell)
            assert reply["status"] == "ok", reply
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] in ("start", "restored", "done")] == [
        "start",
        "restored",
        "done",
    ]
    result, expected = (json.loads((folder / "result.json").read_text()) for folder in (run, reference_run.workdir))
    assert result["weights_sha256"] == expected["weights_sha256"]
