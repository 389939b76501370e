# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""The notebook is well formed and holds its results; `make notebook` runs it from beginning to end."""

import base64
import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install -e '.[notebook]'")

PATH = Path(__file__).parents[1] / "examples" / "exptest.ipynb"
# What a path on the machine that ran the notebook begins with.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|Users|usr|work|mnt|opt|var)/|[A-Z]:\\|site-packages")


def results(notebook):
    """
    What the code cells of a notebook give.

    Returns:
        printed (`str`): all texts, and tables as HTML.
        figures (`list[bytes]`): PNG files.
    """
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    shown = [output.get("data", {}) for output in outputs]
    texts = [output.get("text", "") for output in outputs]
    texts += [text for data in shown for kind, text in data.items() if kind.startswith("text/")]
    return "\n".join(texts), [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]


def assert_tells_of_a_run(notebook):
    printed, figures = results(notebook)
    (rate,) = re.findall(r"^found (\S+) in \d+ steps$", printed, re.MULTILINE)
    assert 1e-6 < float(rate) < 1e-2
    (before, after) = map(float, re.findall(r"(\S+)% before training, (\S+)% after", printed)[0])
    # Of 500 texts in two classes: one standard error is 2.2 before and 1.9 after.
    assert before < 60
    assert after > 70
    assert re.search(r"learning rate", printed)
    assert [figure[:4] for figure in figures] == [b"\x89PNG"] * 2
    assert not MACHINE_PATH.search(printed)


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def test_the_notebook_is_valid_and_small(notebook):
    nbformat.validate(notebook)
    assert PATH.stat().st_size < 300_000
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_notebook_compiles(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(re.sub(r"^%.*", "", cell.source, flags=re.MULTILINE), str(PATH), "exec")


def test_the_notebook_holds_its_results(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # In order, in a kernel of its own.
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert_tells_of_a_run(notebook)


@pytest.mark.notebook
def test_the_notebook_runs(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    # IPython keeps a history beside its settings.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # The kernel draws where the tests do not.
    monkeypatch.delenv("MPLBACKEND")
    before = set(os.listdir(PATH.parent))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert_tells_of_a_run(notebook)
    assert (tmp_path / "notebook-output" / "exptest.json").exists()
    assert set(os.listdir(PATH.parent)) == before
