"""Style of code and notebooks, and links that lead somewhere."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
import yaml
from conftest import ROOT

from helpers.run import cli


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(words):
    if not os.path.exists(f"{sys.prefix}/bin/ruff"):
        pytest.skip("needs the packages of tests/requirements.txt: start it with tests/run.sh")
    done = subprocess.run(
        [f"{sys.prefix}/bin/ruff", *words, "--quiet", ROOT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pre_commit_uses_the_same_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    pins = {pin for hook in hooks for pin in hook.get("additional_dependencies", [])}
    assert pins == set(
        re.findall(r"^ruff==\S+", (ROOT / "tests/requirements.txt").read_text(), re.M)
    )


def text_of(path):
    if path.suffix == ".md":
        return path.read_text()
    cells = nbformat.read(path, 4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def anchor(heading):
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", [ROOT / "README.md", *cli.notebooks()], ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(path))
    assert links
    for link in links:
        if "://" in link:
            continue
        file, _, place = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if place:
            headings = re.findall(r"^#+ (.+)$", text_of(target), re.M)
            assert place in map(anchor, headings), link


def test_the_map_of_notebooks_is_whole():
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(notebooks/(\w+)\.ipynb\) \|", readme, re.M)
    assert rows == [(path.stem, path.stem) for path in cli.notebooks()]
