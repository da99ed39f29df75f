import ast
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from helpers.run import cli


@pytest.fixture
def checkout(tmp_path):
    """A copy of what run_all.sh needs, in a path with a space, sharing the environment."""
    copy = tmp_path / "a checkout"
    copy.mkdir()
    shutil.copytree(ROOT / "helpers", copy / "helpers")
    (copy / "notebooks").mkdir()
    return copy


def notebook(checkout, name, *cells):
    first = nbformat.v4.new_markdown_cell("# A title\n\n**Time**: about 1 minute")
    parameters = nbformat.v4.new_code_cell(
        "profile = 'full'\noutput = ''", metadata={"tags": ["parameters"]}
    )
    code = [nbformat.v4.new_code_cell(source) for source in cells]
    book = nbformat.v4.new_notebook(cells=[first, parameters, *code])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(book, checkout / "notebooks" / f"{name}.ipynb")


def run(checkout, *words, **options):
    return subprocess.run(
        [sys.executable, "-m", "helpers.run", *words],
        cwd=checkout,
        capture_output=True,
        text=True,
        **options,
    )


def test_list_and_help_name_every_notebook():
    for option in ("--list", "--help"):
        done = subprocess.run([ROOT / "run_all.sh", option], capture_output=True, text=True)
        assert done.returncode == 0
        for path in cli.notebooks():
            assert path.stem in done.stdout
            title, minutes = cli.about(path)
            assert title in done.stdout and "minute" in minutes


def test_parameters_reach_the_notebooks_that_have_them(checkout, tmp_path):
    notebook(checkout, "01_one", "print(profile)")
    notebook(checkout, "02_two", "print([size + 1 for size in sizes], name)")
    path = checkout / "notebooks" / "02_two.ipynb"
    path.write_text(path.read_text().replace("output = ''", "output = ''\\nsizes = []\\nname = ''"))
    words = ["--output", tmp_path / "out", "-p", "sizes", "[1, 8]", "-p", "name", "my file.keras"]
    done = run(checkout, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    executed = nbformat.read(tmp_path / "out" / "notebooks" / "02_two.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "[2, 9] my file.keras\n"


def test_a_path_is_from_the_folder_that_it_is_given_in(checkout, tmp_path):
    notebook(checkout, "01_one", "print([model, data])")
    path = checkout / "notebooks" / "01_one.ipynb"
    more = "output = ''\\nmodel = ''\\ndata = '-'"
    path.write_text(path.read_text().replace("output = ''", more))
    words = ["--output", tmp_path / "out", "-p", "model", "my.keras", "-p", "data", ""]
    done = run(checkout, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    executed = nbformat.read(tmp_path / "out" / "notebooks" / "01_one.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == f"{[str(checkout / 'my.keras'), '']}\n"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("siezs", "None of the notebooks has a parameter 'siezs'. They have: "),
        ("output", "The parameter 'output' has an option"),
    ],
)
def test_a_parameter_that_no_notebook_has_is_refused(name, sentence, checkout, tmp_path):
    notebook(checkout, "01_one", "print(profile)")
    done = run(checkout, "--output", tmp_path / "out", "-p", name, "1")
    assert done.returncode == 1 and f"Failed: {sentence}" in done.stdout
    assert "Traceback" not in done.stderr and not list((tmp_path / "out").glob("*.html"))


def test_the_folder_it_is_called_from_does_not_matter(tmp_path):
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("raise SystemExit('another helpers')")
    done = subprocess.run(
        [ROOT / "run_all.sh", "--list"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and cli.notebooks()[0].stem in done.stdout, done.stderr


def test_list_and_help_need_nothing_but_an_old_python():
    """No package, and no syntax newer than Python 3.8 in what is imported for them."""
    for option in ("--list", "--help"):
        done = subprocess.run(
            [sys.executable, "-S", "-m", "helpers.run", option],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and cli.notebooks()[0].stem in done.stdout, done.stderr
    code = "import sys, helpers.run.cli; print(*(m.__file__ for m in sys.modules.values() "
    code += "if m.__name__.startswith('helpers')), sep='\\n')"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True)
    imported = done.stdout.decode().split("\n")[:-1]
    assert len(imported) == 3
    for path in [*imported, ROOT / "helpers/run/__main__.py"]:
        ast.parse(Path(path).read_text(), feature_version=(3, 8))


def test_words_choose_notebooks():
    assert [path.stem for path in cli.notebooks(["05"])] == ["05_benchmark_resnet50"]
    assert len(cli.notebooks(["01", "resnet"])) == 2


def test_unknown_word_is_refused(checkout):
    notebook(checkout, "01_one", "1")
    done = run(checkout, "nonsense")
    assert done.returncode == 2 and "No notebook has 'nonsense'" in done.stdout


def test_success_writes_the_executed_copy(checkout, tmp_path):
    notebook(checkout, "01_one", "print(profile, 'seen')")
    out = tmp_path / "out"
    done = run(checkout, "--quick", "--output", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "01_one" in done.stdout and "done" in done.stdout
    assert "IPKernelApp" not in done.stderr, done.stderr  # the kernel's warnings are no news here
    assert "quick seen" in (out / "notebooks" / "01_one.ipynb").read_text()


def test_failure_names_notebook_cell_error_and_copy(checkout, tmp_path):
    notebook(checkout, "01_bad", "x = 1", "raise ValueError('first line\\nthe last line')", "y = 2")
    notebook(checkout, "02_never", "1")
    out = tmp_path / "out"
    done = run(checkout, "--output", str(out))
    assert done.returncode == 1
    assert "01_bad, cell " in done.stdout and "ValueError: the last line" in done.stdout
    copy = out / "notebooks" / "01_bad.ipynb"
    assert str(copy) in done.stdout and copy.exists()
    assert not (out / "notebooks" / "02_never.ipynb").exists()


def test_what_failed_or_was_killed_in_an_earlier_run_stands_so_on_the_page(checkout, tmp_path):
    notebook(checkout, "01_bad", "raise ValueError('no')")
    notebook(checkout, "02_killed", "import os; os.kill(os.getppid(), 9)")
    notebook(checkout, "03_good", "1")
    out = tmp_path / "out"
    assert run(checkout, "01", "--output", str(out)).returncode == 1
    assert run(checkout, "02", "--output", str(out)).returncode == -signal.SIGKILL
    assert run(checkout, "03", "--output", str(out)).returncode == 0
    page = (out / "index.html").read_text()
    states = re.findall(r'html">(\w+)</a>.*?<td[^>]*>([^<]+)</td>', page, re.S)
    assert states == [
        ("01_bad", "failed, in an earlier run"),
        ("02_killed", "not finished, in an earlier run"),
        ("03_good", "done"),
    ]


def test_a_folder_that_cannot_be_made_is_told(checkout, tmp_path):
    notebook(checkout, "01_one", "1")
    (tmp_path / "file").touch()
    done = run(checkout, "--output", str(tmp_path / "file"))
    assert done.returncode == 1 and "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_run_into_the_same_folder_is_refused(checkout, tmp_path):
    notebook(checkout, "01_one", "1")
    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = run(checkout, "--output", str(tmp_path))
    assert done.returncode != 0 and "choose --output" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_ends_the_kernel(checkout, tmp_path, number):
    mark = tmp_path / "pid"
    notebook(
        checkout,
        "01_long",
        f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(100)",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.run", "--output", str(tmp_path / "out")],
        cwd=checkout,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "Interrupted in 01_long" in out
    for _ in range(50):
        if not os.path.exists(f"/proc/{mark.read_text()}"):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the kernel outlived its run")


def test_only_a_job_in_a_checkout_runs(tmp_path):
    script = shutil.copy(ROOT / "run_all.sh", tmp_path / "slurm_script")
    done = subprocess.run(
        [script], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "submit this job from" in done.stderr
