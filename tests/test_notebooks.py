"""nbval over every notebook on quick settings, and the shape that all notebooks share."""

import re
import shutil

import nbformat
import pytest
from conftest import LONG, nbval

from helpers import graphs
from helpers.run import cli

BOOKS = cli.notebooks()


@pytest.mark.parametrize(
    "path", [path for path in BOOKS if path.stem not in LONG], ids=lambda path: path.stem
)
def test_outputs_are_reproduced(path, outputs, tmp_path):
    """Notebooks run in reading order into one output folder, as run_all.sh does.

    For the long ones test_headless.py compares the outputs of its whole run.
    """
    done = nbval(path, outputs, tmp_path)
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
    models = tmp_path / "alexnet" / "models"
    models.mkdir(parents=True)
    shutil.copy(outputs / "alexnet" / "models" / "alexnet_fp32.pb", models)
    (models / "alexnet_int8.pb").write_text("of an earlier run")
    assert "UserError: No attempt stays within -5 points" in run("03", tmp_path, tolerance=-5)
    assert not (models / "alexnet_int8.pb").exists()
    for number in (0, 1, 2):  # the careful attempts really leave layers in FP32
        path = models / "trials" / f"per_channel_{number}_float.pb"
        layers = graphs.layers(graphs.read_graph(path))
        assert len(layers) == 7 and sum(layer.int8 for layer in layers) == 7 - number


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


def test_most_printing_cells_are_compared():
    cells = [cell for path in BOOKS for cell in nbformat.read(path, 4).cells if cell.get("outputs")]
    ignored = [cell for cell in cells if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(cells) > 50 and len(ignored) <= len(cells) / 3
