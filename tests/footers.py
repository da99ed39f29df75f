"""Write the line with which every notebook ends: ← previous · contents · next →.

python tests/footers.py      (after a notebook was added, renamed or taken away)
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import files
from helpers.run import cli

CONTENTS = "[contents](../README.md#the-map)"


def footers(paths):
    """{notebook: its footer} of notebooks in reading order."""
    before, after = [None, *paths[:-1]], [*paths[1:], None]
    return {
        path: " · ".join(
            [
                *([f"[← {back.stem}]({back.name})"] if back else []),
                CONTENTS,
                *([f"[{on.stem} →]({on.name})"] if on else []),
            ]
        )
        for path, back, on in zip(paths, before, after)
    }


def write(path, text):
    """Make `text` the last cell of a notebook, in the place of the footer that it has."""
    book = json.loads(path.read_text())
    if book["cells"][-1].get("id") != "footer":
        book["cells"].append({"cell_type": "markdown", "id": "footer", "metadata": {}})
    book["cells"][-1]["source"] = [text]
    with files.whole(path) as part:
        part.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for notebook, footer in footers(cli.notebooks()).items():
        write(notebook, footer)
