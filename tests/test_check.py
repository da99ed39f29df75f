"""./run_all.sh --check: passes here, and says the right sentence for each cause of failure."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, UNSHARE, needs

from helpers import UserError, machine
from helpers.run import preflight

LOG = "onednn_verbose,primitive,exec,cpu,convolution,jit:avx2,forward,src_s8:a: wei_{}:a:,,mb2,1\n"


def run(*words, cwd=ROOT, **more):
    env = {**os.environ, **more}
    return subprocess.run(
        [cwd / "run_all.sh", *words], env=env, cwd="/", capture_output=True, text=True
    )


def test_it_passes_here_and_leaves_nothing_behind(tmp_path):
    done = run("--check", "--output", tmp_path / "out")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, lines[-1]) == (0, "", "PASS"), done.stdout
    names = [name for name, _ in preflight.items(tmp_path, ROOT)]
    assert len(names) >= 7 and [line[5:18].strip() for line in lines[:-1]] == names
    assert "a convolution ran in INT8 (" in done.stdout and not list(tmp_path.iterdir())


@pytest.fixture
def checkout(tmp_path):
    """What --check needs of a checkout, without packages and without an environment."""
    for name in ("run_all.sh", "set_env.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "helpers", tmp_path / "helpers")
    shutil.copytree(ROOT / "environments", tmp_path / "environments")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "requirements.txt").write_text("")
    return tmp_path


def test_without_an_environment_it_says_so_and_makes_none(checkout):
    done = run("--check", cwd=checkout)
    end = "FAIL: environment: env_intel_tf/ is missing: run ./set_env.sh (some minutes, and a"
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith(end), done.stdout
    assert "\nok   disk " in done.stdout and "Traceback" not in done.stderr
    assert not (checkout / "env_intel_tf").exists()


def test_without_any_python_it_still_says_what_to_do(checkout, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "cat", "cut", "sha256sum"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = run("--check", cwd=checkout, PATH=str(tools))
    assert done.returncode == 1 and done.stdout.endswith("run ./set_env.sh\n"), done.stderr
    assert done.stdout.startswith("FAIL: no environment, and no python3 ")


def test_an_environment_that_is_unfinished_or_of_another_lock_is_told(checkout):
    environment = checkout / "env_intel_tf"
    subprocess.run(["bash", checkout / "set_env.sh"], check=True, capture_output=True)
    assert preflight.environment(checkout).startswith("env_intel_tf/ is finished")
    (checkout / "requirements.txt").write_text("# another\n")
    with pytest.raises(UserError, match=r"env_intel_tf/ is stale, .*: run ./set_env.sh$"):
        preflight.environment(checkout)
    (environment / ".finished").unlink()
    with pytest.raises(UserError, match=r"env_intel_tf/ is not finished: run ./set_env.sh$"):
        preflight.environment(checkout)
    with pytest.raises(UserError, match=r"env_current/ is missing: run ./set_env.sh --current "):
        preflight.environment(checkout, "env_current", "--current")


def no_disk(monkeypatch, _):
    usage = shutil.disk_usage("/")._replace(free=2**30)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)


def no_memory(monkeypatch, _):
    monkeypatch.setattr(machine, "available_memory", lambda: 1.25)


def no_avx2(monkeypatch, _):
    here = {**machine.describe(), "isa": []}
    monkeypatch.setattr(machine, "describe", lambda: here)


def no_place(_, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")


def no_port(monkeypatch, _):
    taken = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(preflight, "PORTS", [taken.getsockname()[1]])
    monkeypatch.setattr(preflight, "TAKEN", taken, raising=False)  # until the test ends


def no_package(monkeypatch, _):
    monkeypatch.setitem(sys.modules, "helpers.machine", None)
    monkeypatch.delattr("helpers.machine")


def no_kernel(monkeypatch, _):
    monkeypatch.setattr(preflight, "kernel", lambda *_: preflight.told(LOG.format("f32")))


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (None, None),
        (no_disk, "disk: 1.0 GiB free at "),
        (no_memory, "memory: 1.2 GiB are free, and 6 are needed: end other programs"),
        (no_avx2, "CPU: "),
        (no_place, "write access: "),
        (no_port, "ports: No port from "),
        (no_package, "memory: A package cannot be imported ("),
        (no_kernel, "INT8 kernel: The INT8 convolution ran as f32, not as s8"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_planted_is_what_is_told(plant, sentence, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(preflight, "environment", lambda *_: "is finished.")
    monkeypatch.setattr(preflight, "kernel", lambda *_: preflight.told(LOG.format("s8") + SQNR))
    if plant:
        plant(monkeypatch, tmp_path)
    status = preflight.check(tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    if plant is None:
        assert (status, lines[-1]) == (0, "PASS"), lines
        return
    assert status == 1 and lines[-1].startswith(f"FAIL: {sentence}"), lines
    ends = {"CPU: ": "unset ONEDNN_MAX_CPU_ISA where it is set.", "write access: ": "--output."}
    assert lines[-1].endswith(ends.get(sentence, "")) and len(lines) >= 8


SQNR = "sqnr_db 38.0\n"


def test_the_first_of_several_failures_stands_in_the_last_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(preflight, "environment", lambda *_: "is finished.")
    for plant in (no_port, no_disk, no_kernel):
        plant(monkeypatch, tmp_path)
    assert preflight.check(tmp_path / "out") == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("FAIL ") for line in lines) >= 3
    assert lines[-1].startswith("FAIL: disk: ")


ON_A_FILE_SYSTEM = """import sys
from pathlib import Path
from helpers import UserError
from helpers.run import preflight
for look in (lambda: preflight.disk([(Path(sys.argv[1]), 1)]),
             lambda: preflight.writing(Path(sys.argv[1], "out"), Path(sys.argv[1]))):
    try: print("ok", look())
    except UserError as error: print("FAIL", error)
"""


@needs("unshare")
@pytest.mark.parametrize(
    ("options", "disk", "write"),
    [("size=300k", "FAIL 0.0 GiB free", "ok "), ("size=2g,ro", "ok 2 GiB free", "FAIL ")],
)
def test_a_small_disk_and_one_that_cannot_be_written(options, disk, write, tmp_path):
    """File systems of their own: who is root may write into any folder."""
    script = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    command = [*UNSHARE, "bash", "-c", script, tmp_path, sys.executable, "-c", ON_A_FILE_SYSTEM]
    done = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(disk) and lines[1].startswith(write), done.stdout + done.stderr
    if write == "FAIL ":
        assert "Read-only file system" in lines[1] and "--output" in lines[1]


def test_a_checkout_that_cannot_be_written_is_fine(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight.os, "access", lambda *_: False)
    assert "The checkout cannot, and need not." in preflight.writing(tmp_path, ROOT)


def test_another_port_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()
        monkeypatch.setattr(preflight, "PORTS", [taken.getsockname()[1], free])
        assert f"is taken, {free} is free" in preflight.ports()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("kill -ABRT $$", "was ended by signal SIGABRT"),
        ("echo 'Illegal thing' >&2; exit 3", "ended with status 3. Its last line: Illegal thing."),
        ("exec sleep 5", "did not end within 0.3 s"),
        ("", "ran as nothing that oneDNN tells of, not as s8"),
        (f"echo '{LOG.format('s8')}sqnr_db 3.1'", r"wrong numbers \(3.1 dB from FP32"),
        (None, "cannot be started"),
    ],
)
def test_a_kernel_that_dies_hangs_or_is_wrong(body, sentence, tmp_path):
    python = tmp_path / "python"
    if body is not None:
        python.write_text(f"#!/bin/bash\n{body}\n")
        python.chmod(0o755)
    with pytest.raises(UserError, match=sentence):
        preflight.kernel(python, seconds=0.3 if "sleep" in str(body) else 20)


def test_a_convolution_that_itex_leaves_in_floats_is_seen(monkeypatch):
    monkeypatch.setenv("ITEX_ONEDNN_GRAPH", "0")
    with pytest.raises(UserError, match="ran as f32, not as s8: ITEX or oneDNN is not at work"):
        preflight.kernel()


def test_an_int8_convolution_runs_in_todays_tensorflow_too():
    python = Path(ROOT, "env_current", "bin", "python")
    if not os.access(python, os.X_OK):
        pytest.skip("needs env_current/ (./set_env.sh --current)")
    assert "ran in INT8" in preflight.kernel(python, "integer")
