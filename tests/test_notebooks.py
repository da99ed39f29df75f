"""nbval over every notebook on quick settings, and the shape that all notebooks share."""

import os
import re
import subprocess
import sys

import nbformat
import papermill
import pytest
from conftest import ROOT

from helpers import cli

BOOKS = cli.notebooks()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_outputs_are_reproduced(path, outputs, tmp_path):
    """Notebooks run in reading order into one output folder, as run_all.sh does."""
    copy = tmp_path / path.name
    parameters = {"profile": "quick", "output": str(outputs)}
    papermill.execute_notebook(path, copy, parameters, prepare_only=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider"]
        + ["--nbval-sanitize-with", ROOT / "tests" / "nbval_sanitize.cfg"]
        + ["--nbval-cell-timeout", "900", "--rootdir", tmp_path, "-c", "/dev/null", copy],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_shape_and_stored_outputs(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    for words in ("**You will learn**", "**You need**", "**Time**"):
        assert words in texts[0]
    whole = "\n".join(texts)
    for heading in ("## Check yourself", "## Try it", "<details>", "## Next"):
        assert heading in whole, heading
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    for cell in code:
        lines = cell.source.splitlines()
        assert len(lines) <= 15 and max(map(len, lines)) <= 88, cell.source
        assert cell.execution_count is not None, f"never run: {cell.source}"
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source
            assert not re.search(r"/(home|root|tmp|work)/", str(output.get("text", "")))
            for image in output.get("metadata", {}).values():
                assert image.get("alt"), "a figure without alt text"
