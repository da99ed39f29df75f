"""Style of code and notebooks, and links that lead somewhere."""

import ast
import os
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from conftest import ROOT

import helpers
from helpers.run import cli

SCREEN = 50  # lines


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


def test_every_function_fits_on_a_screen():
    found = {}
    for path in sorted((ROOT / "helpers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                found[f"{path.name}: {node.name}"] = node.end_lineno - node.lineno + 1
    assert len(found) > 200 and [name for name, lines in found.items() if lines > SCREEN] == []


def test_colours_have_names():
    """In notebooks and helpers, but for the module that names them and the style file."""
    for path in [*cli.notebooks(), *(ROOT / "helpers").rglob("*.py")]:
        if path.name != "figures.py":
            text = path.read_text() if path.suffix == ".py" else code_of(path)
            assert not re.findall(r"[\"']#[0-9A-Fa-f]{6}\b", text), path


def code_of(path):
    cells = nbformat.read(path, 4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def text_of(path):
    if path.suffix == ".md":
        return path.read_text()
    cells = nbformat.read(path, 4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def anchor(heading, path):
    """The name that GitHub gives a heading of a page, Jupyter and nbconvert one of a notebook."""
    if path.suffix == ".ipynb":
        return heading.replace(" ", "-")
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


PAGES = [
    *(path for where in ("", "docs/", "results/") for path in sorted(ROOT.glob(f"{where}*.md")))
]
PAGES += cli.notebooks()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(path))
    assert links or path.suffix == ".md"
    for link in links:
        if "://" in link:
            continue
        file, _, place = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if place:
            headings = re.findall(r"^#+ (.+)$", text_of(target), re.M)
            assert place in [anchor(heading, target) for heading in headings], link


def test_every_page_is_linked_from_the_first():
    linked = set(re.findall(r"\]\(([^)\s]+\.md)\)", (ROOT / "README.md").read_text()))
    pages = {str(path.relative_to(ROOT)) for path in PAGES if path.suffix == ".md"}
    assert linked == pages - {"README.md"}


def test_files_that_pages_name_exist():
    """In code style, of a form that only a file in the checkout has."""
    form = r"`((?:(?:notebooks|helpers|tests|environments|docs)/[\w./]*|\w+\.(?:in|sh|toml)))`"
    for path in PAGES:
        # these two name what is gone, too
        if path.suffix == ".md" and path.stem not in ("CHANGELOG", "from-the-old-samples"):
            for name in re.findall(form, path.read_text()):
                assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_rules_name_tests_that_exist():
    rows = re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)[1:]
    assert len(rows) > 15
    for rule, held in rows:
        pairs = re.findall(r"`(test_\w+\.py)`(?:: `(test_\w+)`)?", held)
        assert pairs or (ROOT / held.strip("`")).exists(), rule
        for file, name in pairs:
            assert (
                f"def {name}(" in (ROOT / "tests" / file).read_text()
                if name
                else (ROOT / "tests" / file).exists()
            ), rule


def test_the_version_is_said_once():
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changes = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert helpers.__version__ == stated == changes[0]


def test_the_first_page_is_short_and_begins_with_three_commands():
    text = (ROOT / "README.md").read_text()
    commands = re.search(r"```bash\n(.*?)```", text, re.S)[1].splitlines()
    assert [line.split("#")[1].split(":")[0].split(" ")[1] for line in commands] == [
        "run",
        "read",
        "test",
    ]
    assert len(text.splitlines()) < 100 and text.index("```bash") < 60
    for model in ("resnet50", "alexnet"):  # tests/refresh.py writes between them
        assert re.search(rf"<!-- {model} -->\n.+\n<!-- /{model} -->", text, re.S)


def test_the_map_of_notebooks_is_whole():
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(notebooks/(\w+)\.ipynb\) \|", readme, re.M)
    assert rows == [(path.stem, path.stem) for path in cli.notebooks()]
