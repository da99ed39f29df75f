"""Run notebooks with their default settings and store the outputs in them.

    python tests/refresh.py [words]      (in the activated environment; all notebooks without words)
"""

import os
import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import cli, files


def clean(notebook):
    """Leave only what a reader sees: of a progress bar its end, no papermill or timing metadata."""
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
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


if __name__ == "__main__":
    os.environ.pop("ONEDNN_MAX_CPU_ISA", None)
    for notebook in cli.notebooks(sys.argv[1:]):
        print(notebook.name)
        refresh(notebook)
