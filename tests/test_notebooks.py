"""nbval over every notebook on quick settings, and the shape that all notebooks share."""

import ast
import importlib
import itertools
import re
import shutil
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import LONG, ROOT, nbval
from footers import footers

from helpers import benchmark, graphs
from helpers.run import cli

BOOKS = cli.notebooks()
BREATH = 3  # code cells in a row without prose
MANY = 30  # code cells, from which on a notebook begins with a list of its steps
SOLUTIONS = cli.NOTEBOOKS / "solutions"
GLOSSARY = ROOT / "docs" / "glossary.md"


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


def out_of_breath(book):
    """Runs of code cells with no prose between them that are longer than BREATH: their sources."""
    runs = itertools.groupby(book.cells, key=lambda cell: cell.cell_type)
    runs = [[cell.source for cell in cells] for kind, cells in runs if kind == "code"]
    return [run for run in runs if len(run) > BREATH]


def out_of_shape(book, footer):
    """What is wrong with the end of a notebook, from *Check yourself* to the footer: texts."""
    cells = book.cells
    heads = {
        re.match(r"## (.+)|", cell.source)[1]: index
        for index, cell in enumerate(cells)
        if cell.cell_type == "markdown"
    }
    ends = ["Check yourself", "Try it", "What to remember", "Next"]
    places = [heads.get(name, -1) for name in ends]
    if -1 in places or places != sorted(places):
        return [f"not there, or not in this order: {ends}"]
    check, _, remember, _ = places
    asked, _, answer = cells[check].source.partition("<details>")
    wrong = []
    if "?" not in asked or "</details>" not in answer:
        wrong.append("Check yourself asks nothing, or does not answer it")
    if cells[check + 1].cell_type != "code" or "assert " not in cells[check + 1].source:
        wrong.append("no asserts follow on Check yourself")
    if len(re.findall(r"^- ", cells[remember].source, re.M)) != 3:
        wrong.append("What to remember has not three points")
    if cells[-1].source != footer:
        wrong.append("the footer is not what tests/footers.py writes")
    return wrong


def not_in_the_list_of_steps(book):
    """Headings of a long notebook's steps that the list at its beginning does not link and mark."""
    if sum(cell.cell_type == "code" for cell in book.cells) <= MANY:
        return []
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    rows = re.findall(r"^\| .*\| (?:core|optional) \|$", texts[1], re.M)
    linked = {place for row in rows for place in re.findall(r"\]\(#([^)]+)\)", row)}
    steps = re.findall(r"^## (Step .+)$", "\n".join(texts), re.M)
    return [step for step in steps if step.replace(" ", "-") not in linked]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_it_reads_as_a_chapter(path):
    book = nbformat.read(path, 4)
    assert out_of_breath(book) == []
    assert out_of_shape(book, footers(BOOKS)[path]) == []
    assert not_in_the_list_of_steps(book) == []


def terms(page=GLOSSARY):
    """{anchor: spellings} of what the glossary explains."""
    entries = re.findall(r"^### (.+)\n\n(?:Also: ([^.]+)\.)?", page.read_text(), re.M)
    return {
        name.lower().replace(" ", "-"): [name, *filter(None, re.split(r",\s+", also))]
        for name, also in entries
    }


def marked(text):
    """Running text, with what is emphasised or linked to the glossary between \\x01 and \\x02.

    Code, formulas, headings, links to them and HTML are left out; of other links the text stays.
    """
    text = re.sub(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|<[^>]*>", " ", text, flags=re.S)
    text = re.sub(r"^#.*$|\[[^]]*\]\(#[^)]*\)", " ", text, flags=re.M)
    text = re.sub(r"\[([^]]*)\]\([^)]*glossary\.md#[^)]*\)", "\x01\\1\x02", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"(\*+)(?=\S)(.+?)(?<=\S)\1", "\x01\\2\x02", text, flags=re.S)


def first_use(texts, spellings):
    """(cell, whether it is emphasised or linked) of a term's first use; None where it has none."""
    words = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in spellings)
    for index, text in enumerate(texts):
        found = re.search(rf"\b(?:{words})s?\b", text, re.I)
        if found:
            before = text[: found.start()]
            return index, before.count("\x01") > before.count("\x02")
    return None


def unexplained(book):
    """Terms that a notebook neither emphasises (to explain them) nor links when it first uses them.

    The first cell may promise what is explained further down.
    """
    texts = [marked(cell.source) for cell in book.cells if cell.cell_type == "markdown"]
    missing = []
    for name, spellings in terms().items():
        use = first_use(texts, spellings)
        if use and not use[1] and use[0] == 0:
            use = first_use(texts[1:], spellings)
        if use and not use[1]:
            missing.append(name)
    return missing


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_terms_are_explained_or_linked_where_they_come_first(path):
    assert unexplained(nbformat.read(path, 4)) == []


def test_the_glossary_has_the_words_of_the_trade():
    words = "fp32 bf16 int8 scale zero-point qdq calibration sqnr vnni amx throughput latency p99"
    assert {*words.split(), "per-channel"} <= set(terms())
    assert "## Kernel names" in GLOSSARY.read_text()


def kernel_names():
    """The names of INT8 kernels in the stored outputs."""
    outputs = [
        out for path in BOOKS for c in nbformat.read(path, 4).cells for out in c.get("outputs", [])
    ]
    lines = "".join(str(out.get("text", "")) for out in outputs)
    return set(re.findall(r"^(?:.* weights )?s8 +([\w+]+:[\w+:]+)", lines, re.M))


def test_the_glossary_takes_every_kernel_name_apart_that_a_notebook_shows():
    table = GLOSSARY.read_text().partition("## Kernel names")[2]
    known = {word.strip(":") for word in re.findall(r"`([^`]+)`", table)}
    names = kernel_names()
    parts = {part for name in names for part in re.split("[:+]", name)}
    assert (
        names and {part for part in parts if re.sub("_(1x1|dw)$", "", part) not in known} == set()
    )


def between(book):
    """The number of a prose cell that stands between two runs which together are out of breath."""
    kinds = "".join("c" if cell.cell_type == "code" else "m" for cell in book.cells)
    return re.search(r"(?<=cc)m(?=cc)", kinds).start()


def planted(name):
    """A notebook with a fault, and the list in which it has to appear."""
    path = BOOKS[2]
    book, footer = nbformat.read(path, 4), footers(BOOKS)[path]
    texts = {re.match(r"(?:## (.+))?", cell.source)[1]: cell for cell in book.cells}
    if name == "rhythm":
        del book.cells[between(book)]
        return out_of_breath(book)
    if name == "recap":
        remember = texts["What to remember"]
        remember.source = remember.source.rpartition("\n- ")[0]
    elif name == "footer":
        footer = footers(BOOKS[:2] + BOOKS[3:])[BOOKS[1]]
    elif name == "question":
        texts["Check yourself"].source = "## Check yourself"
    elif name == "order":
        del texts["Next"]
        book.cells = [cell for cell in book.cells if not cell.source.startswith("## Next")]
    elif name == "term":
        book.cells.insert(1, nbformat.v4.new_markdown_cell("The *INT8* graph has a p99."))
        return unexplained(book)
    elif name == "steps":
        book.cells += 30 * [nbformat.v4.new_code_cell()]
        return not_in_the_list_of_steps(book)
    return out_of_shape(book, footer)


@pytest.mark.parametrize(
    "name", ["rhythm", "recap", "footer", "question", "order", "term", "steps"]
)
def test_a_planted_fault_in_a_chapter_is_seen(name):
    assert planted(name)


def exercises(path):
    """{number: function} of the exercises that a file of solutions solves, as syntax trees."""
    tree = ast.parse(path.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {int(f.name[9:]): f for f in functions if re.fullmatch(r"exercise_\d+", f.name)}


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_a_solution(path):
    """A function in notebooks/solutions, which says what the question is."""
    texts = [cell.source for cell in nbformat.read(path, 4).cells]
    text = next(text for text in texts if text.startswith("## Try it"))
    asked = [
        int(number) for number in re.findall(r"^(\d)\. ", text.partition("<details>")[0], re.M)
    ]
    solved = exercises(SOLUTIONS / f"{path.stem}.py")
    assert asked and asked == list(solved)
    assert all(ast.get_docstring(function) for function in solved.values())
    assert f"](solutions/{path.stem}.py)" in text


@pytest.fixture(scope="module")
def finished(whole):
    """The output folder of the whole headless run, once all is in it that solutions look for."""
    wanted = ["alexnet/inside/b/result.json", "own/result.json", "resnet50/result.json"]
    wanted += ["today/table.json"]
    end = time.monotonic() + 1200
    while whole.exists() and time.monotonic() < end:
        if all((whole / name).exists() for name in wanted):
            return whole
        time.sleep(1)
    pytest.skip("needs the whole run of test_headless.py")


def test_solutions_run(finished):
    """Those that take seconds, on the models of the whole run; the others are named only."""
    words = [sys.executable, SOLUTIONS / "exercises.py", "--output", finished]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ran = re.findall(r"^(\d\d_\w+), exercise (\d+)(, not run)?: ", done.stdout, re.M)
    known = [
        (path.stem, str(n)) for path in BOOKS for n in exercises(SOLUTIONS / f"{path.stem}.py")
    ]
    assert [(name, number) for name, number, _ in ran] == known
    assert sum(not skipped for *_, skipped in ran) >= 12


@pytest.fixture
def challenge(monkeypatch):
    """The module that judges what is handed in."""
    monkeypatch.syspath_prepend(SOLUTIONS)
    return importlib.import_module("challenge")


def judged(challenge, verdict="faster", lost=0.4, kernels=("s8", "f32")):
    """What the challenge says of a file that was measured so."""
    times = {"median": 1.5, "low": 1.4, "high": 1.6}
    accuracies = {"FP32": 0.98, "handed in": 0.98 - lost / 100}
    ran = {kind: {"count": 5} for kind in kernels}
    measured = {
        "candidates": [
            {"name": name, "accuracy": {"top1": share}, "kernels": ran}
            for name, share in accuracies.items()
        ],
        "ratios": [
            {
                "candidate": "handed in",
                "baseline": "FP32",
                "batch_size": challenge.BATCH,
                "throughput_times": times,
                "verdict": verdict,
            }
        ],
    }
    return challenge.verdicts(measured)


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        ({}, [True, True, True]),
        ({"lost": 1.0}, [True, True, True]),
        ({"lost": 1.01}, [False, True, True]),
        ({"kernels": ("f32",)}, [True, False, True]),
        ({"verdict": "slower"}, [True, True, False]),
        ({"verdict": "not resolved"}, [True, True, False]),
    ],
)
def test_the_challenge_judges_accuracy_kernels_and_speed(found, passed, challenge):
    sentences = judged(challenge, **found)
    assert [good for good, _ in sentences] == passed
    assert [text.split(":")[0] for _, text in sentences] == ["accuracy", "INT8", "speed"]


def test_what_notebook_08_makes_can_be_handed_in(finished, challenge, monkeypatch, tmp_path):
    """Measured against FP32 under ITEX alone, which takes one process less."""

    def two(fp32, int8, bf16):
        return benchmark.Candidate("FP32", fp32), None

    monkeypatch.setattr(challenge.benchmark, "candidates", two)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "models").symlink_to(finished / "own" / "models")
    measured = challenge.measure(finished / "own" / "models" / "int8.pb", tmp_path, limit=1)
    (accuracy, said), (kernels, ran), _ = challenge.verdicts(measured)
    assert accuracy and re.search(r"9\d\.\d\d % of the test images", said)
    assert kernels and "of 10 layers 10 ran" in ran
