"""A prepared room: whole or told as unfinished, without network, and learners kept apart in it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import ROOT
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from helpers import UserError, machine
from helpers.run import room
from helpers.topology import Core

# The packages of the tests' environment for that of the room, which has nearly none of its own
BORROWED = {
    "PYTHONPATH": sysconfig.get_paths()["purelib"],
    "JUPYTER_PATH": f"{sys.prefix}/share/jupyter",
    "PIP_NO_INDEX": "1",
}
TRAIN = """from pathlib import Path
models = Path(output, "alexnet", "models")
models.mkdir(parents=True, exist_ok=True)
(models / "alexnet_fp32.pb").write_bytes(b"weights")
(models / "record.json").write_text("{}")
Path(output, "alexnet", "result.json").write_text("{}")
print("trained", profile)"""
USE = """import json, os, time
from pathlib import Path
assert not Path(output, "stop").exists(), "stopped"
time.sleep(100 if Path(output, "wait").exists() else 0)
assert Path(output, "alexnet", "models", "alexnet_fp32.pb").read_bytes() == b"weights"
time.sleep(1)
seen = {"cores": len(os.sched_getaffinity(0)), "pid": os.getpid()}
Path(output, "machine.json").write_text(json.dumps(seen))"""


def notebook(folder, name, code):
    cells = [nbformat.v4.new_markdown_cell("# A title\n\n**Time**: about 1 minute")]
    parameters = 'profile = "full"\noutput = ""'
    cells += [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    book = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(book, folder / f"{name}.ipynb")


def wheel(folder, text="VALUE = 1\n"):
    """A package of one module; gives its line in a lock."""
    path, about = folder / "tinyroom-1.0-py3-none-any.whl", "tinyroom-1.0.dist-info"
    contents = {
        "tinyroom.py": text,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: tinyroom\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "tinyroom.py,,\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return f"tinyroom==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkout with two small notebooks and a lock of one package, and an index with it."""
    base = tmp_path_factory.mktemp("a room")
    checkout, index = base / "checkout", base / "index"
    for folder in (checkout / "notebooks", index):
        folder.mkdir(parents=True)
    for name in ("run_all.sh", "set_env.sh"):
        shutil.copy(ROOT / name, checkout / name)
    for name in ("helpers", "environments"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    (checkout / "requirements.txt").write_text(wheel(index))
    (checkout / "env_intel_tf").symlink_to(sys.prefix)
    notebook(checkout / "notebooks", "02_train", TRAIN)
    notebook(checkout / "notebooks", "03_use", USE)
    return base


def preparing(base, *words, index="index"):
    """--prepare from the checkout, whose environment is the tests' own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "helpers.run", "--prepare", base / "room", *words],
        env={**os.environ, **BORROWED, "PIP_FIND_LINKS": (base / index).as_uri()}
        | {"PYTHONPATH": f"{base / 'checkout'}:{BORROWED['PYTHONPATH']}"},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def prepare(base, *words, index="index"):
    process = preparing(base, *words, index=index)
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def interrupted(base):
    """--prepare, sent SIGTERM while 03 runs: (status, what it said, processes left)."""
    (base / "room/outputs/wait").touch()
    process = preparing(base, "--quick")
    end = time.monotonic() + 120
    while not (base / "room/outputs/notebooks/states.json").exists() or "03_use" not in states(
        base
    ):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    out, _ = process.communicate(timeout=30)
    _, left = psutil.wait_procs(family, timeout=10)
    (base / "room/outputs/wait").unlink()
    return process.returncode, out, left


def in_room(base, *words, wait=True):
    process = subprocess.Popen(
        [base / "room" / "run_all.sh", *map(str, words)],
        env={**os.environ, **BORROWED},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if not wait:
        return process
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def states(base):
    known = json.loads((base / "room/outputs/notebooks/states.json").read_text())
    return {name: entry["state"] for name, entry in known.items()}


@pytest.fixture(scope="module")
def unfinished(base):
    """The room after four calls: no package, SIGTERM, a notebook that fails, all done."""
    said = [prepare(base, "--quick", index="nowhere")]
    (base / "room/outputs").mkdir()
    said.append(interrupted(base))
    (base / "room/outputs/stop").touch()
    said.append(prepare(base, "--quick", index="nowhere"))
    assert (base / "room/run_all.sh").exists(), said[-1].stdout
    said.append(in_room(base, "--copy", base / "early"))
    (base / "room/outputs/stop").unlink()
    said += [states(base), prepare(base, "--quick", index="nowhere")]
    return said


@pytest.fixture
def prepared(base, unfinished):
    return base


def test_what_is_not_prepared_to_the_end_is_told_and_goes_on(base, unfinished):
    without_packages, ended, with_failure, early, known, last = unfinished
    assert without_packages.returncode == 1 and "Traceback" not in without_packages.stderr
    assert "of requirements.txt could not all be fetched" in without_packages.stdout
    assert ended[0] == 130 and "Interrupted; call --prepare again" in ended[1] and not ended[2]
    assert "Interrupted in 03_use" in ended[1]
    assert with_failure.returncode == 1 and "AssertionError: stopped" in with_failure.stdout
    assert f"so {base / 'room'} is unfinished" in with_failure.stdout
    assert early[0] == 1 and "is no prepared room (or not to its end)" in early[1]
    assert known == {"02_train": "done", "03_use": "failed"}
    assert last.returncode == 0, last.stdout + last.stderr
    assert "Fetching" not in last.stdout and "02_train" not in last.stdout
    assert states(base) == {"02_train": "done", "03_use": "done"}
    assert "trained quick" in (base / "room/outputs/notebooks/02_train.ipynb").read_text()
    assert (base / "room/outputs/index.html").exists()


def test_a_room_that_is_whole_is_left_as_it_is(prepared):
    before = (prepared / "room/room.json").stat().st_mtime_ns
    done = prepare(prepared, "--quick", index="nowhere")
    assert done.returncode == 0 and "is prepared already, and whole" in done.stdout
    assert (prepared / "room/room.json").stat().st_mtime_ns == before


def test_other_folders_are_not_taken_for_a_room(prepared, tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "mine").touch()
    (tmp_path / "checkout").symlink_to(prepared / "checkout")
    done = prepare(tmp_path)
    assert done.returncode == 1 and "is not empty, and no room" in done.stdout
    assert [path.name for path in (tmp_path / "room").iterdir()] == ["mine"]


def set_up(folder, wheels):
    """set_env.sh in a bare folder, with no index to ask."""
    env = {**os.environ, "WHEELS": str(wheels), "PIP_INDEX_URL": "http://127.0.0.1:9"}
    return subprocess.run(
        ["bash", folder / "set_env.sh"], env=env, capture_output=True, text=True, timeout=100
    )


def test_the_room_s_environment_was_made_from_its_wheels(prepared):
    command = [prepared / "room/env_intel_tf/bin/python", "-c", "import tinyroom as t; print(t)"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert str(prepared / "room/env_intel_tf/lib") in done.stdout, done.stderr


def test_a_bare_checkout_takes_wheels_of_its_lock_only(prepared, tmp_path):
    bare, other = tmp_path / "bare", tmp_path / "other wheels"
    (bare / "environments").mkdir(parents=True)
    for name in ("set_env.sh", "environments/uv.txt"):
        shutil.copy(ROOT / name, bare / name)
    lock = (prepared / "checkout/requirements.txt").read_text()
    (bare / "requirements.txt").write_text(f"# changed\n{lock}")
    done = set_up(bare, prepared / "room/wheels")
    assert done.returncode == 1 and "does not hold all packages of requirements" in done.stderr
    assert not (bare / "env_intel_tf").exists()
    (bare / "requirements.txt").write_text(lock)
    shutil.copytree(prepared / "room/wheels", other)
    wheel(other, "VALUE = 2\n")
    done = set_up(bare, other)
    assert done.returncode == 1 and "env_intel_tf/ is not finished" in done.stderr, done.stderr
    assert "without network" in done.stderr and "DO NOT MATCH THE HASHES" in done.stderr


def test_three_at_once_have_folders_of_their_own(prepared):
    """Without --output, as the same user; each finds the model, and none trains."""
    runs = [in_room(prepared, "--quick", "03", wait=False) for _ in range(2)]
    runs.append(in_room(prepared, "--quick", "--seat", "1/2", "03", wait=False))
    said = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    folders = [Path(re.search(r"^Executed notebooks: (.+)/notebooks$", s, re.M)[1]) for s in said]
    assert len(set(folders)) == 3 and folders[2].parent.name == "seat_1"
    seen = [json.loads((folder / "machine.json").read_text()) for folder in folders]
    assert len({entry["pid"] for entry in seen}) == 3
    cores = len(machine.cores())
    assert seen[2]["cores"] == max(1, cores // 2) and "Seat 1 of 2" in said[2]
    master = prepared / "room/outputs"
    for folder in folders:
        assert folder.parent.parent == prepared / "room" / "learners"
        model = folder / "alexnet/models/alexnet_fp32.pb"
        assert model.samefile(master / "alexnet/models/alexnet_fp32.pb")
        assert not (folder / "alexnet/result.json").exists()  # nobody's own result


def test_a_copy_is_one_s_own_and_reset_as_at_the_beginning(prepared, tmp_path):
    folder = tmp_path / "my lab"
    status, said = in_room(prepared, "--copy", folder)
    assert status == 0 and f"cd '{folder}/notebooks' && source '{prepared}/room/env_" in said, said
    book = folder / "notebooks/03_use.ipynb"
    assert r"profile = \"quick\"" in book.read_text()
    record = folder / "outputs/alexnet/models/record.json"
    assert not record.samefile(prepared / "room/outputs/alexnet/models/record.json")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, '..'); import helpers.machine"],
        cwd=folder / "notebooks",
    )
    assert done.returncode == 0
    status, said = in_room(prepared, "--copy", folder)
    assert status == 1 and "is there and not empty" in said and "--reset" in said
    book.write_text("ruined")
    record.write_text("ruined")
    (folder / "outputs/alexnet/models/alexnet_fp32.pb").unlink()
    status, said = in_room(prepared, "--reset", folder)
    assert status == 0 and "what was in notebooks/ is in notebooks_1/" in said, said
    assert "import json" in book.read_text() and record.read_text() == "{}"
    assert (folder / "notebooks_1/03_use.ipynb").read_text() == "ruined"
    assert (folder / "outputs/alexnet/models/alexnet_fp32.pb").read_bytes() == b"weights"


def test_a_copy_is_opened_on_the_cores_of_its_seat_and_without_ports(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", "/run/me")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 4})
    end = "jupyter lab --no-browser --KernelManager.transport=ipc"
    assert room.opening(tmp_path, ROOT)[2] == end
    monkeypatch.setattr(machine, "describe", lambda: {"memory_gib": 256})
    kept = f'SEAT_MEMORY="$$ 8.5" taskset -c 4,5 {end}'
    assert room.opening(tmp_path, ROOT, "3/30")[2] == kept
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", f"/run/{60 * 'x'}")
    assert room.opening(tmp_path, ROOT)[2] == "jupyter lab --no-browser"


def test_what_is_no_copy_is_not_reset(prepared, tmp_path):
    (tmp_path / "notebooks").mkdir()
    status, said = in_room(prepared, "--reset", tmp_path)
    assert status == 1 and "is no copy that --copy made: nothing was changed" in said
    with pytest.raises(UserError, match="is no prepared room"):
        room.serve(None, tmp_path)


def test_a_copy_in_use_is_not_reset(prepared, tmp_path):
    known = room.record(prepared / "room")
    room.copy(tmp_path / "lab", known, prepared / "room")
    with room.hold(tmp_path / "lab/outputs"), pytest.raises(UserError, match="wait for it"):
        room.reset(tmp_path / "lab", known, prepared / "room")
    assert (tmp_path / "lab/notebooks/03_use.ipynb").exists()


def test_a_copy_that_is_cut_short_leaves_nothing(prepared, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "books", full)
    with pytest.raises(UserError, match=r"was not written \(No space left on device\)"):
        room.copy(tmp_path / "lab", room.record(prepared / "room"), prepared / "room")
    assert not list(tmp_path.iterdir())


def test_models_are_whole_or_absent(prepared, tmp_path, monkeypatch):
    known, models = room.record(prepared / "room"), tmp_path / "alexnet/models"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(room, "link_or_copy", stop)
        room.fill(tmp_path, known, prepared / "room")
    assert not list((tmp_path / "alexnet").iterdir())
    models.with_name(".models.1.part").mkdir()  # as of a run that was killed
    room.fill(tmp_path, known, prepared / "room")
    assert [path.name for path in (tmp_path / "alexnet").iterdir()] == ["models"]


def test_models_of_one_s_own_are_left_alone(prepared, tmp_path):
    own = tmp_path / "alexnet/models/alexnet_fp32.pb"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    room.fill(tmp_path, room.record(prepared / "room"), prepared / "room")
    assert own.read_bytes() == b"mine" and [path.name for path in own.parent.iterdir()] == [
        own.name
    ]


def test_a_changed_model_is_told_and_made_anew(prepared, tmp_path):
    """The last test here: it runs all notebooks again."""
    model = prepared / "room/outputs/alexnet/models/alexnet_fp32.pb"
    model.unlink()
    model.write_bytes(b"another")
    status, said = in_room(prepared, "--copy", tmp_path / "lab")
    assert status == 1 and f"{model} is not as it was prepared" in said
    assert not list(tmp_path.iterdir())
    done = prepare(prepared, "--quick", index="nowhere")
    assert done.returncode == 0 and "it is made anew" in done.stdout, done.stdout + done.stderr
    assert in_room(prepared, "--copy", tmp_path / "lab")[0] == 0


@pytest.mark.parametrize(
    ("cores", "count", "shares"),
    [
        (4, 2, [[0, 1], [2, 3]]),
        (5, 2, [[0, 1], [2, 3]]),
        (2, 3, [[0], [1], [0]]),
    ],
)
def test_seats_share_cores_evenly(cores, count, shares):
    there = [Core(cpu, 0, 0) for cpu in range(cores)]
    got = [[core.cpu for core in room.share(there, n, count)] for n in range(1, count + 1)]
    assert got == shares


def test_too_many_seats_and_short_memory_are_told(monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: taken.append(cpus))
    monkeypatch.setattr(machine, "cores", lambda: [Core(4, 0, 0), Core(6, 0, 0)])
    monkeypatch.setattr(machine, "describe", lambda: {"memory_gib": 16})
    monkeypatch.setenv("SEAT_MEMORY", "restored after the test")
    room.sit("2/2")
    assert os.environ["SEAT_MEMORY"] == f"{os.getpid()} 7.5"
    assert taken == [{6}] and capsys.readouterr().out == "Seat 2 of 2: 1 of 2 cores.\n"
    room.sit("3/30")
    said = capsys.readouterr().out
    assert taken[1] == {4} and "more seats than cores" in said
    assert "0.5 GiB for each of 30 seats" in said
    for wrong in ("3", "0/3", "4/3", "a/b"):
        with pytest.raises(UserError, match="--seat takes K/N"):
            room.sit(wrong)


def test_a_run_says_that_memory_is_short(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(machine, "available_memory", lambda: 1.5)
    output, held = room.place(tmp_path / "out")
    held.close()
    assert output == tmp_path / "out" and "Memory is short: 1.5 GiB" in capsys.readouterr().out
    room.place(tmp_path / "out", "1/5")[1].close()
    assert "short" not in capsys.readouterr().out  # `sit` has said it, with what a seat can do


def test_the_tasks_of_an_array_have_folders_of_their_own(monkeypatch, tmp_path):
    for task in "01":
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        output, held = room.place(tmp_path / "out")
        held.close()
        assert output == tmp_path / "out" / f"task_{task}" and output.is_dir()


def test_a_kernelspec_finds_the_environment_and_helpers_from_anywhere(tmp_path):
    words = [ROOT / "set_env.sh", "--kernel", "--prefix", tmp_path / "pre fix"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    specs = KernelSpecManager(kernel_dirs=[str(tmp_path / "pre fix/share/jupyter/kernels")])
    (tmp_path / "elsewhere").mkdir()
    manager = KernelManager(kernel_name="int8-tutorial", kernel_spec_manager=specs)
    manager.start_kernel(cwd=str(tmp_path / "elsewhere"))
    client = manager.client()
    client.start_channels()
    code = "import sys, tensorflow.version, helpers; print(helpers.__file__, sys.prefix)"
    printed = []
    try:
        client.wait_for_ready(timeout=60)
        client.execute_interactive(
            code, timeout=60, output_hook=lambda m: printed.append(m["content"].get("text", ""))
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert f"{ROOT / 'helpers/__init__.py'} {ROOT / 'env_intel_tf'}" in "".join(printed)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kernel", "--current"], "there is no Jupyter in env_current/"),
        (["--prefix", "x"], "--prefix goes with --kernel"),
        (["--kernel", "--prefix"], "--prefix needs a folder"),
        (["--kernel", "--prefix", "/dev/null/x"], "choose a folder that you may write to"),
    ],
)
def test_a_kernelspec_that_cannot_be_is_told(words, sentence):
    done = subprocess.run([ROOT / "set_env.sh", *words], capture_output=True, text=True)
    assert done.returncode == 1 and sentence in done.stderr


def sections(path):
    """{name: text} of an Apptainer recipe; what stands before the first is its head."""
    parts = re.split(r"^%(\w+)\n", path.read_text(), flags=re.M)
    return dict(zip(["head", *parts[1::2]], parts[::2]))


RECIPE, DOCKERFILE = ROOT / "environments/apptainer.def", ROOT / "environments/Dockerfile"


def carried(text, line, target):
    """[(file of the checkout, where it comes to lie)] of the lines that copy."""
    for words in re.findall(line, text, re.M):
        *sources, last = words.split()
        for source in sources:
            yield source, target(source, last)


@pytest.mark.parametrize("name", ["Apptainer", "Docker"])
def test_a_container_holds_what_its_commands_need(name, tmp_path):
    """No engine is here: what the recipe copies is put together, and its commands are tried."""
    if name == "Docker":
        text = DOCKERFILE.read_text()
        copies = list(carried(text, r"^COPY (.+)$", lambda source, last: Path(last, source).name))
        shell = "\n".join(re.findall(r"^RUN ((?:.*\\\n)*.*)$", text, re.M))
        start = json.loads(re.search(r"^ENTRYPOINT (.+)$", text, re.M)[1])[0]
    else:
        parts = sections(RECIPE)
        copies = list(carried(parts["files"], r"^ +(\S+ /opt/int8/.+)$", lambda _, x: Path(x).name))
        shell = parts["post"]
        start = parts["runscript"].split()[1]
        assert subprocess.run(["bash", "-n"], input=parts["runscript"], text=True).returncode == 0
    for source, target in copies:
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / target)
    assert subprocess.run(["bash", "-n"], input=shell, text=True).returncode == 0
    assert "set_env.sh" in shell and "python3.11-venv" in shell
    assert start == "/opt/int8/run_all.sh"
    listed = subprocess.run([tmp_path / "run_all.sh", "--list"], capture_output=True, text=True)
    assert listed.returncode == 0 and "05_benchmark_resnet50" in listed.stdout, listed.stderr
    for words in ([], ["--current"], ["--peers"]):  # each finds its lock, and no environment
        done = subprocess.run(
            [tmp_path / "set_env.sh", "--finished", *words], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (1, "")


def test_both_containers_begin_with_the_same_image():
    image = re.search(r"^FROM (\S+)$", DOCKERFILE.read_text(), re.M)[1]
    assert f"Bootstrap: docker\nFrom: {image}\n" in sections(RECIPE)["head"]
