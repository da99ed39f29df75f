import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT


def pins(name):
    text = (ROOT / name).read_text()
    found = re.findall(r"^([a-z0-9_.-]+)(?:\[[a-z,]+\])?==([^\s\\;#]+)", text, re.M | re.I)
    return {package.lower().replace("_", "-"): version for package, version in found}


@pytest.mark.parametrize(("name", "count"), [("requirements", 12), ("requirements-peers", 8)])
def test_the_lock_holds_every_direct_dependency(name, count):
    direct, locked = pins(f"{name}.in"), pins(f"{name}.txt")
    assert len(direct) >= count and direct.items() <= locked.items()


def test_the_gpu_lock_differs_only_where_it_must():
    cpu, gpu = pins("requirements.txt"), pins("requirements-gpu.txt")
    assert pins("requirements-gpu.in").items() <= gpu.items()
    itex = {"intel-extension-for-tensorflow", "intel-extension-for-tensorflow-lib"}
    assert {name for name in cpu if gpu.get(name) != cpu[name]} == itex


@pytest.fixture
def gpu_tree(tmp_path):
    """A tree with a render node of an Intel GPU and the level-zero loader."""
    loader = tmp_path / "usr/lib/x86_64-linux-gnu/libze_loader.so.1"
    node = tmp_path / "dev/dri/renderD128"
    vendor = tmp_path / "sys/class/drm/renderD128/device/vendor"
    for path in (loader, node, vendor):
        path.parent.mkdir(parents=True)
        path.write_text("0x8086\n")
    return tmp_path


def gpu_set_up(tree, folder):
    """set_env.sh --device gpu with empty locks: detection and choice, no packages."""
    folder.mkdir()
    (folder / "set_env.sh").write_text((ROOT / "set_env.sh").read_text())
    for name in ("requirements.txt", "requirements-gpu.txt"):
        (folder / name).write_text(f"# {name}\n")
    return subprocess.run(
        ["bash", folder / "set_env.sh", "--device", "gpu"],
        env={**os.environ, "DEVICE_ROOT": str(tree)},
        capture_output=True,
        text=True,
    )


def test_gpu_is_refused_without_one(gpu_tree, tmp_path):
    (gpu_tree / "sys/class/drm/renderD128/device/vendor").write_text("0x10de\n")
    done = gpu_set_up(gpu_tree, tmp_path / "a")
    assert done.returncode == 1 and "no Intel GPU here" in done.stderr
    (gpu_tree / "dev/dri/renderD128").unlink()
    done = gpu_set_up(gpu_tree, tmp_path / "b")
    assert done.returncode == 1 and "no Intel GPU here" in done.stderr
    assert not (tmp_path / "b" / "env_intel_tf").exists()


def test_a_device_that_is_not_one_is_told():
    for words in (["--device"], ["--device", "tpu"]):
        done = subprocess.run([ROOT / "set_env.sh", *words], capture_output=True, text=True)
        assert done.returncode == 1 and "--device is cpu or gpu" in done.stderr


def test_gpu_is_refused_without_the_loader(gpu_tree, tmp_path):
    if "libze_loader" in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout:
        pytest.skip("the level-zero loader is installed here")
    (gpu_tree / "usr/lib/x86_64-linux-gnu/libze_loader.so.1").unlink()
    done = gpu_set_up(gpu_tree, tmp_path / "a")
    assert done.returncode == 1 and "libze1" in done.stderr


def test_gpu_environment_keeps_its_device(gpu_tree, tmp_path):
    done = gpu_set_up(gpu_tree, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    environment = tmp_path / "a" / "env_intel_tf"
    assert (environment / ".device").read_text() == "gpu\n"
    assert "LD_LIBRARY_PATH" in (environment / "bin" / "activate").read_text()
    again = subprocess.run(
        ["bash", tmp_path / "a" / "set_env.sh"],
        env={**os.environ, "DEVICE_ROOT": str(gpu_tree)},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0 and again.stderr == ""


LOCKS = ["requirements.txt", "requirements-gpu.txt", "requirements-peers.txt"]


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes_and_no_address(name):
    text = (ROOT / name).read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text)
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)
    assert "://" not in text and "--index" not in text and "--find-links" not in text


def test_this_environment_is_the_lock():
    code = "from importlib.metadata import version; import sys; print(version(sys.argv[1]))"
    for package in ("tensorflow", "intel-extension-for-tensorflow", "neural-compressor", "numpy"):
        done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True)
        assert done.stdout.strip() == pins("requirements.txt")[package]


def test_conda_gets_the_same_packages_and_python():
    described = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert described["name"] == "env_intel_tf"
    assert "python=3.11" in described["dependencies"]
    pip = next(one["pip"] for one in described["dependencies"] if isinstance(one, dict))
    assert pip == ["--require-hashes -r requirements.txt"]


def test_set_env_explains_a_missing_python(tmp_path):
    script = tmp_path / "set_env.sh"
    script.write_text((ROOT / "set_env.sh").read_text())
    (tmp_path / "requirements.txt").write_text("")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in (
        "cat",
        "cut",
        "dirname",
        "echo",
        "flock",
        "grep",
        "ldconfig",
        "rm",
        "sha256sum",
        "uname",
    ):
        found = subprocess.run(["bash", "-c", f"type -P {tool}"], capture_output=True, text=True)
        (tools / tool).symlink_to(found.stdout.strip())
    done = subprocess.run(
        ["/bin/bash", script], env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Python 3.11 with venv was not found" in done.stderr
    assert not (tmp_path / "env_intel_tf").exists()


def test_a_failed_set_up_is_not_taken_for_finished(tmp_path):
    script = tmp_path / "set_env.sh"
    script.write_text((ROOT / "set_env.sh").read_text())
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"six==1.17.0 --hash=sha256:{'0' * 64}\n")
    first = subprocess.run(["bash", script], capture_output=True, text=True)
    assert first.returncode == 1 and "is not finished" in first.stderr, first.stderr
    assert not (tmp_path / "env_intel_tf" / ".finished").exists()
    lock.write_text("")
    second = subprocess.run(["bash", script], capture_output=True, text=True)
    assert second.returncode == 0 and "ready" in second.stderr, second.stderr
    third = subprocess.run(["bash", script], capture_output=True, text=True)
    assert third.returncode == 0 and third.stderr == ""
    lock.write_text("# another lock\n")
    stale = subprocess.run(["bash", script], capture_output=True, text=True)
    assert stale.returncode == 0 and "Making" in stale.stderr


def test_peers_get_an_environment_of_their_own(tmp_path):
    script = tmp_path / "set_env.sh"
    script.write_text((ROOT / "set_env.sh").read_text())
    (tmp_path / "requirements-peers.txt").write_text("")

    def set_up(*words):
        return subprocess.run(["bash", script, "--peers", *words], capture_output=True, text=True)

    refused = set_up("--device", "gpu")
    assert refused.returncode == 1 and "leave --device out" in refused.stderr
    first = set_up()
    assert first.returncode == 0 and "env_peers/ is ready" in first.stderr, first.stderr
    assert (tmp_path / "env_peers" / ".finished").exists()
    assert not (tmp_path / "env_intel_tf").exists()
    again = set_up()
    assert again.returncode == 0 and again.stderr == ""
