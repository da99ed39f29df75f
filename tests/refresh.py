"""Run notebooks with their default settings and store the outputs in them.

python tests/refresh.py [words]      (in the activated environment; all notebooks without words)
"""

import json
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import files, machines
from helpers.benchmark import report
from helpers.machines import table
from helpers.run import cli


def clean(notebook):
    """Leave only what a reader sees: no papermill or timing metadata."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
    return notebook


def refresh(path):
    with files.whole(path) as part:
        executed = part.with_suffix(".ipynb")
        try:
            cli.run_notebook(path, executed)
            nbformat.write(clean(nbformat.read(executed, 4)), part)
        finally:
            executed.unlink(missing_ok=True)


def publish(model):
    """Copy the figures of a result for README.md and write what it says below them."""
    folder = cli.ROOT / "outputs" / model
    result = json.loads((folder / "result.json").read_text())
    for kind in ("absolute", "times"):
        figure = cli.NOTEBOOKS / "figures" / f"{model}_{kind}.png"
        figure.parent.mkdir(exist_ok=True)
        shutil.copy(folder / f"fp32_int8_{kind}.png", figure)
    fill(model, textwrap.fill(report.conclusion(result), 110))


def fill(mark, text):
    """Put a text between the two comments in README.md that have this name."""
    readme = cli.ROOT / "README.md"
    marks = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    readme.write_text(re.sub(marks, rf"\g<1>{text}\n\g<2>", readme.read_text(), flags=re.S))


def kinds_of_cpu():
    """The table of README.md: ResNet50 on the kinds of CPU that results/ has."""
    return table.headline(machines.read([cli.ROOT / "results"]).entries, "resnet50")


if __name__ == "__main__":
    os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    for notebook in cli.notebooks(sys.argv[1:]):
        print(notebook.name)
        refresh(notebook)
        if "_benchmark_" in notebook.stem:
            publish(notebook.stem.split("_")[-1])
    fill("machines", kinds_of_cpu())
