"""Imports run one way: down the levels that CONTRIBUTING.md draws, and never in a circle.

An import counts wherever it stands, also in a function, and so does a module that is started by
its name ("-m", "helpers.benchmark.worker") or imported by code in a string.
"""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

HELPERS = ROOT / "helpers"
# what the runner may use of the measuring tool
RUN_USES = {"helpers.benchmark", "helpers.benchmark.report"}


def levels():
    """{module or package: its level}, 0 at the top, from the drawing in CONTRIBUTING.md."""
    drawing = re.search(r"```imports\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
    lines = [line.partition("  #")[0].split() for line in drawing.splitlines() if line.strip()]
    return {f"helpers.{name}": level for level, names in enumerate(lines) for name in names}


def name_of(path, root):
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root=HELPERS):
    """{name: path} of all modules."""
    return {name_of(path, root): path for path in sorted(root.rglob("*.py"))}


def mentions(tree):
    """Dotted names that a module imports, starts by name, or imports in a string of code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"helpers(\.\w+)+", node.value):
                yield node.value
            for module, names in re.findall(
                r"(?:from|import) (helpers[\w.]*)(?: import ([\w, ]+))?", node.value
            ):
                yield module
                yield from (f"{module}.{name}" for name in names.replace(",", " ").split())


def arrows(root=HELPERS):
    """{module: modules of ours that it uses}, without the packages that it lies in itself."""
    known, uses = modules(root), {}
    for name, path in known.items():
        used = {other for other in mentions(ast.parse(path.read_text())) if other in known}
        uses[name] = {other for other in used if not f"{name}.".startswith(f"{other}.")}
    return uses


def circle(uses):
    """The names on some circle of arrows; None where there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :] + [name]
        if name in done:
            return None
        path.append(name)
        ring = next(filter(None, map(visit, sorted(uses[name]))), None)
        path.pop()
        done.add(name)
        return ring

    return next(filter(None, map(visit, uses)), None)


def part(name):
    """The module at the top of helpers/, or the package, that a module is or belongs to."""
    return ".".join(name.split(".")[:2])


def against_the_drawing(uses, level):
    """Arrows between parts that do not lead down to a lower level, as texts."""
    return [
        f"{name} -> {other}"
        for name, used in uses.items()
        for other in sorted(used - {"helpers"})
        if part(name) != part(other) and level[part(name)] >= level[part(other)]
    ]


def test_every_module_is_in_the_drawing():
    """And nothing else is; of a package its name."""
    assert {part(name) for name in modules()} - {"helpers"} == set(levels())


def test_imports_lead_down():
    assert against_the_drawing(arrows(), levels()) == []


def test_there_is_no_circle():
    assert circle(arrows()) is None


def test_the_runner_uses_the_report_only():
    uses = arrows()
    used = {other for name in uses if name.startswith("helpers.run") for other in uses[name]}
    assert {other for other in used if other.startswith("helpers.benchmark")} <= RUN_USES


@pytest.mark.parametrize(
    "line",
    [
        "from helpers import up",
        "def later():\n    from helpers.up import go",
        "import subprocess\nsubprocess.run(['python', '-m', 'helpers.up'])",
        "CODE = 'import sys; from helpers import UserError, up'",
    ],
    ids=["import", "in a function", "started by name", "in a string of code"],
)
def test_a_planted_circle_is_seen(line, tmp_path):
    """Of two modules, of which the lower one uses the upper one in some way."""
    root = tmp_path / "helpers"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "up.py").write_text("from helpers import down\n")
    level = {"helpers.up": 0, "helpers.down": 1}
    (root / "down.py").write_text("from helpers import UserError\n")
    assert circle(arrows(root)) is None and not against_the_drawing(arrows(root), level)
    (root / "down.py").write_text(line + "\n")
    assert set(circle(arrows(root))) == {"helpers.up", "helpers.down"}
    assert against_the_drawing(arrows(root), level) == ["helpers.down -> helpers.up"]


def test_the_thin_layer_does_not_import_tensorflow():
    thin = [name for name, path in modules().items() if path.parent == HELPERS]
    code = f"import sys, {', '.join(thin)}; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
