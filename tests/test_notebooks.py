"""nbval over every notebook on quick settings, and the shape that all notebooks share."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from conftest import ROOT

from helpers import cli, quantization
from helpers.models import read_graph

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


def run(name, folder, **parameters):
    """Execute one notebook on quick settings; the error text, or None when it ended well."""
    path = next(path for path in BOOKS if path.stem.startswith(name))
    return cli.execute(
        path, folder / "copy.ipynb", {"profile": "quick", "output": str(folder), **parameters}
    )


@pytest.mark.parametrize(("name", "first"), [("03", "02_train"), ("04", "02_train")])
def test_a_missing_model_names_the_notebook_to_run(name, first, tmp_path):
    assert f"Run notebook {first}_alexnet first" in run(name, tmp_path)


def test_an_impossible_tolerance_is_admitted(outputs, tmp_path):
    """On the AlexNet that the test above has trained."""
    trained = outputs / "alexnet" / "models" / "alexnet_fp32.pb"
    if not trained.exists():
        pytest.skip("needs the run of notebook 02 above")
    models = tmp_path / "alexnet" / "models"
    models.mkdir(parents=True)
    shutil.copy(trained, models)
    (models / "alexnet_int8.pb").write_text("of an earlier run")
    assert "UserError: No attempt stays within -5 points" in run("03", tmp_path, tolerance=-5)
    assert not (models / "alexnet_int8.pb").exists()
    for number in (0, 1, 2):  # the careful attempts really leave layers in FP32
        path = models / "trials" / f"per_channel_{number}_float.pb"
        layers = quantization.layers(read_graph(path))
        assert len(layers) == 7 and sum(layer.int8 for layer in layers) == 7 - number


def test_interrupted_training_goes_on(tmp_path):
    command = [sys.executable, "-m", "helpers.cli", "--quick", "--output", tmp_path, "02"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    models = tmp_path / "alexnet" / "models"
    end = time.monotonic() + 300
    while not list(models.glob("**/checkpoint")) and time.monotonic() < end:
        assert process.poll() is None, "ended before the first checkpoint"
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not (models / "alexnet_fp32.pb").exists()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    copy = tmp_path / "notebooks" / "02_train_alexnet.ipynb"
    assert "Going on after an interruption" in copy.read_text()
    assert (models / "alexnet_fp32.pb").exists() and not list(models.glob("backup*"))


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
