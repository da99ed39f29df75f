"""./run_all.sh as people run it: from elsewhere, offline, twice at once, cut short."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from html.parser import HTMLParser
from pathlib import Path

import conftest
import papermill
import psutil
import pytest
from conftest import LONG, ROOT, UNSHARE, may_unshare, needs, replayed

from helpers.run import cli


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout in a path with spaces and other letters, with an environment made there."""
    copy = tmp_path_factory.mktemp("workshop") / "un été à Köln"
    copy.mkdir()
    for name in ("run_all.sh", "set_env.sh", "requirements.txt"):
        shutil.copy(ROOT / name, copy)
    for name in ("environments", "helpers", "notebooks", "results"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    # from the Python behind the environment of the tests, wherever that came from
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [copy / "set_env.sh"], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    yield copy
    shutil.rmtree(copy / "env_intel_tf")  # pytest keeps what the last three runs have left


def isolated(checkout):
    """Words before a command that leave it no network and a checkout that cannot be written.

    No words where namespaces may not be made: the notebooks are run all the same.
    """
    if not (may_unshare() and shutil.which("ip")):
        warnings.warn("run with network, in a checkout that can be written", stacklevel=2)
        return []
    script = (
        'ip link set lo up && mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    )
    return [*UNSHARE, "--net", "bash", "-c", script, checkout]


def children(pid):
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def commands(pid):
    """The command lines of a process' children; of one that has just ended there is none."""
    for child in children(pid):
        with contextlib.suppress(psutil.Error):
            yield child.cmdline()


def interrupt(process, number=signal.SIGINT):
    """Send a signal; status and seconds it took until every process of the run had ended."""
    family = children(process.pid)
    start = time.monotonic()
    process.send_signal(number)
    status = process.wait(30)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, alive
    return status, time.monotonic() - start


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


def half_written(folder):
    return [path for path in folder.rglob("*") if path.suffix in (".part", ".tmp")]


class Page(HTMLParser):
    """What a test wants to know of an HTML page."""

    def __init__(self, path):
        super().__init__()
        self.images, self.links, self.text = [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes)
        if tag == "a":
            self.links.append(attributes.get("href", ""))
        source = attributes.get("src", "data:")
        assert tag not in ("script", "link") and source.startswith("data:"), "not self-contained"

    def handle_data(self, data):
        self.text += data


def test_the_whole_of_it(checkout, whole, tmp_path):
    """Every notebook, quick, offline, from another folder, out of a checkout nobody can write.

    Training is interrupted first, and the second call has to go on from there.
    """
    elsewhere, output = tmp_path / "elsewhere", whole
    elsewhere.mkdir()
    # what is compared are outputs, not times: measure shorter
    words = ["--quick", "-p", "limit", "10", "--output", output]
    command = [*isolated(checkout), checkout / "run_all.sh", *words]
    before = {path: path.stat().st_mtime for path in checkout.rglob("*.ipynb")}
    models = output / "alexnet" / "models"
    process = subprocess.Popen(command, cwd=elsewhere, stdout=subprocess.DEVNULL)
    wait_for(lambda: list(models.glob("**/checkpoint")), process)
    status, seconds = interrupt(process)
    assert status == 130 and seconds < 25
    assert not (models / "alexnet_fp32.pb").exists() and not half_written(output)

    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    training = output / "notebooks" / "02_train_alexnet.ipynb"
    assert "Going on after an interruption" in training.read_text()
    assert not list(models.glob("backup*")) and not half_written(output)
    assert not list(elsewhere.iterdir())
    assert before == {path: path.stat().st_mtime for path in checkout.rglob("*.ipynb")}
    for path in cli.notebooks():
        assert re.search(rf"^{path.stem} +done +\d+ s$", done.stdout, re.M)
    for model in ("alexnet", "own", "resnet50"):
        result = json.loads((output / model / "result.json").read_text())
        assert result["profile"] == "quick"
        for kind in ("absolute", "times"):
            assert str(output / model / f"fp32_int8_{kind}.png") in done.stdout

    page = Page(output / "index.html")
    assert str(output / "index.html") in done.stdout
    assert len(page.images) == 6
    assert all(image["alt"] and image["src"].startswith("data:image/png") for image in page.images)
    assert page.links == [f"notebooks/{path.stem}.html" for path in cli.notebooks()]
    assert all((output / link).stat().st_size > 10_000 for link in page.links)
    assert result["machine"]["cpu"] in page.text and result["software"]["tensorflow"] in page.text
    assert "INT8 gives" in page.text and "54 of 54" in page.text


@pytest.mark.parametrize("name", LONG)
def test_the_outputs_of_the_whole_run_are_those_stored(name, whole, tmp_path):
    executed = whole / "notebooks" / f"{name}.ipynb"
    if not executed.exists():
        pytest.skip("needs the whole run above")
    done = replayed(ROOT / "notebooks" / executed.name, executed, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "old", "new", "caught"),
    [
        (
            "05_benchmark_resnet50",
            "INT8: layers executed: 54 s8",
            "INT8: layers executed: 53 s8",
            "layers executed",
        ),
        ("06_tune_inference", "needs 7.7 billion", "needs 8.7 billion", "graphs.operations("),
        ("07_inside_int8", "channel     mended        broken", "channel     mended", "words ="),
        ("07_inside_int8", "lost > 10", "lost > 1", "lost > 10"),  # another cell was executed
    ],
)
def test_a_difference_in_a_long_notebook_is_seen(name, old, new, caught, tmp_path):
    """What a notebook itself stores, with one line changed, fails at that line and nowhere else."""
    stored, changed = ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "executed.ipynb"
    parameters = {"profile": "quick", "output": str(tmp_path)}
    papermill.execute_notebook(stored, changed, parameters, prepare_only=True)
    text = changed.read_text()
    assert old in text
    changed.write_text(text.replace(old, new, 1))
    done = replayed(stored, changed, tmp_path)
    assert done.returncode == 1 and re.search(r"\b1 failed", done.stdout), done.stdout[-3000:]
    assert caught in done.stdout.partition("Input:")[2].partition("Traceback:")[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_measuring(number, checkout, resnet50):
    """The processes that measure end with the run, and no result is left behind."""
    process = subprocess.Popen(
        [checkout / "run_all.sh", "--quick", "--output", resnet50, "05"], stdout=subprocess.PIPE
    )

    def measuring():
        return sum("helpers.benchmark.worker" in words for words in commands(process.pid)) >= 2

    wait_for(measuring, process)
    time.sleep(3)
    status, seconds = interrupt(process, number)
    assert status == 130 and seconds < 25
    assert b"Interrupted in 05_benchmark_resnet50" in process.stdout.read()
    assert not (resnet50 / "resnet50" / "result.json").exists() and not half_written(resnet50)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_commands_of_the_environment_work_in_any_path(locale, checkout):
    """Where a path has a space, pip writes scripts that start Python in another way."""
    script = 'source "$0/env_intel_tf/bin/activate" && jupyter lab --version && papermill --version'
    done = subprocess.run(
        ["bash", "-c", script, checkout],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LC_ALL": locale},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and str(checkout / "env_intel_tf") in done.stdout, done.stderr


def test_where_namespaces_are_forbidden_tests_are_skipped_or_not_isolated(monkeypatch, tmp_path):
    fake = tmp_path / "unshare"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(conftest, "may_unshare", may_unshare.__wrapped__)
    monkeypatch.setattr(sys.modules[__name__], "may_unshare", may_unshare.__wrapped__)
    mark = needs("unshare")
    assert mark.args == (True,) and "may not make namespaces" in mark.kwargs["reason"]
    with pytest.warns(UserWarning, match="with network"):
        assert isolated(tmp_path) == []


def test_two_at_the_same_time_from_one_checkout(checkout, tmp_path):
    """Called from a folder that has a helpers/ of its own, as another checkout would be."""
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("raise SystemExit('another helpers')")
    runs = [
        subprocess.Popen(
            [checkout / "run_all.sh", "--output", tmp_path / name, "01"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for run, name in zip(runs, ("one", "two")):
        out, _ = run.communicate(timeout=120)
        assert run.returncode == 0 and str(tmp_path / name / "notebooks") in out
        assert (tmp_path / name / "machine.json").exists()


def test_a_failing_notebook_is_on_the_page_and_in_the_status(checkout, tmp_path):
    """Notebook 03 without the model of 02."""
    done = subprocess.run(
        [checkout / "run_all.sh", "--quick", "--output", tmp_path, "03", "05"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.search(
        r"^Failed: 03_quantize_alexnet, cell \d+: UserError: There is no .*", done.stdout, re.M
    )
    assert f"Executed so far: {tmp_path / 'notebooks' / '03_quantize_alexnet.ipynb'}" in done.stdout
    assert "[2/2]" not in done.stdout
    page = Page(tmp_path / "index.html")
    assert "failed" in page.text and "Run notebook 02_train_alexnet first" in page.text


@needs("unshare")
def test_a_full_disk_is_told(checkout, tmp_path):
    """A file system of its own that is too small for the executed copy and the page."""
    script = 'mount -t tmpfs -o size=300k none "$0" && exec "$@"'
    done = subprocess.run(
        [*UNSHARE, "bash", "-c", script, tmp_path, checkout / "run_all.sh"]
        + ["--quick", "--output", tmp_path / "out", "01"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "disk is full" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
