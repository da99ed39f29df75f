import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT


def pins(name):
    text = (ROOT / name).read_text()
    pinned = re.findall(r"^([a-z0-9_.-]+)(?:\[[a-z,]+\])?==([^\s\\;#]+)", text, re.M | re.I)
    return {package.lower().replace("_", "-"): version for package, version in pinned}


LOCKED = [("requirements", 12), ("environments/peers", 8), ("environments/current", 9)]


@pytest.mark.parametrize(("name", "count"), LOCKED)
def test_the_lock_holds_every_direct_dependency(name, count):
    direct, locked = pins(f"{name}.in"), pins(f"{name}.txt")
    assert len(direct) >= count and direct.items() <= locked.items()


def test_the_gpu_lock_differs_only_where_it_must():
    cpu, gpu = pins("requirements.txt"), pins("environments/gpu.txt")
    assert pins("environments/gpu.in").items() <= gpu.items()
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


def checkout(folder, *locks):
    """A folder with set_env.sh and empty locks: detection and choice, no packages."""
    for name in locks or ["requirements.txt"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    (folder / "environments").mkdir(exist_ok=True)
    for name in ("set_env.sh", "environments/uv.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder / "set_env.sh"


def gpu_set_up(tree, folder):
    """set_env.sh --device gpu with empty locks."""
    return subprocess.run(
        ["bash", checkout(folder, "requirements.txt", "environments/gpu.txt"), "--device", "gpu"],
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
    folder = tmp_path / "été à Köln"
    done = gpu_set_up(gpu_tree, folder)
    assert done.returncode == 0, done.stderr
    environment = folder / "env_intel_tf"
    assert (environment / ".device").read_text() == "gpu\n"
    activated = subprocess.run(
        ["bash", "-c", 'source "$0"/bin/activate && echo "$LD_LIBRARY_PATH"', environment],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert activated.stdout == f"{environment}/lib\n", activated.stderr
    again = subprocess.run(
        ["bash", folder / "set_env.sh"],
        env={**os.environ, "DEVICE_ROOT": str(gpu_tree)},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0 and again.stderr == ""


LOCKS = ["requirements.txt", "tests/requirements.txt"]
LOCKS += [f"environments/{name}.txt" for name in ("gpu", "peers", "current", "uv")]


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
    pip = next(entry["pip"] for entry in described["dependencies"] if isinstance(entry, dict))
    assert pip == ["--require-hashes -r requirements.txt"]


TOOLS = "bash cat chmod cmp cp cut dirname echo flock grep ldconfig mkdir rm sed sha256sum uname"


@pytest.fixture
def few_tools(tmp_path):
    """A folder for PATH with what every system has, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS.split():
        (folder / tool).symlink_to(shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"))
    return folder


def set_up(script, path, *words, **env):
    command, env = ["/bin/bash", script, *words], {"PATH": str(path), **env}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_set_env_explains_a_missing_python(few_tools, tmp_path):
    done = set_up(checkout(tmp_path), few_tools)
    assert done.returncode == 1 and "Python 3.11 with venv was not found" in done.stderr
    assert "./set_env.sh --current makes env_current/ instead" in done.stderr
    assert not (tmp_path / "env_intel_tf").exists()


def test_current_explains_a_missing_python(few_tools, tmp_path):
    done = set_up(checkout(tmp_path, "environments/current.txt"), few_tools, "--current")
    assert done.returncode == 1 and "3.12 or 3.13 or 3.11 with venv was not found" in done.stderr
    assert "--current makes" not in done.stderr
    assert not (tmp_path / "env_current").exists()


# A Python that is not 3.11 and has pip, or only venv. What its pip installs is a uv that can fetch
# a Python 3.11 (it is REAL's), or cannot.
OTHER_PYTHON = """#!/bin/bash
case "$*" in
  *"version_info[:2]"*) exit 1 ;;
  "-c "*) exit 0 ;;
  "-m pip --version") [ -e "$0.pip" ] ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo >"$3/bin/python.pip" ;;
  "-m pip install "*)
    [[ $* == *--require-hashes*environments/uv.txt ]] || exit 3
    while [ "$1" != --target ]; do shift; done
    mkdir -p "$2/bin" && cp "$UV" "$2/bin/uv" ;;
  *) exit 4 ;;
esac
"""
UV = """#!/bin/bash
[ "$1" = --version ] && exit
[ "$UV_PYTHON_INSTALL_DIR" = "${0%/bin/uv}/python" ] || exit 5
[ "$NETWORK" = yes ] || { echo "error: Failed to download Python 3.11" >&2; exit 2; }
exec "$REAL" -m venv "${@: -1}"
"""


@pytest.fixture(params=[True, False], ids=["pip", "venv only"])
def other_python(few_tools, tmp_path, request):
    """PATH and environment of a system whose Python is another than 3.11."""
    python, uv = few_tools / "python3", tmp_path / "uv"
    for file, text in ((python, OTHER_PYTHON), (uv, UV)):
        file.write_text(text)
        file.chmod(0o755)
    if request.param:
        (few_tools / "python3.pip").touch()
    return {"path": few_tools, "UV": str(uv), "REAL": sys.executable}


def test_uv_brings_python_where_there_is_another(other_python, tmp_path):
    folder = tmp_path / "a checkout"
    done = set_up(checkout(folder), NETWORK="yes", **other_python)
    assert done.returncode == 0, done.stderr
    assert "fetching uv into .uv/" in done.stderr and "env_intel_tf/ is ready" in done.stderr
    shutil.rmtree(folder / "env_intel_tf")
    again = set_up(folder / "set_env.sh", NETWORK="yes", **other_python)
    assert again.returncode == 0 and "fetching uv" not in again.stderr, again.stderr


def test_a_uv_that_fetches_nothing_leads_to_the_sentence(other_python, tmp_path):
    folder = tmp_path / "a checkout"
    done = set_up(checkout(folder), NETWORK="no", **other_python)
    assert done.returncode == 1 and "Failed to download" in done.stderr
    assert "Python 3.11 with venv was not found and could not be fetched" in done.stderr
    assert not (folder / "env_intel_tf").exists()


def test_a_uv_that_cannot_be_fetched_leaves_nothing(other_python, tmp_path):
    folder = tmp_path / "a checkout"
    done = set_up(checkout(folder), **{**other_python, "UV": "/nowhere"})
    assert done.returncode == 1 and "could not be fetched" in done.stderr
    assert not (folder / ".uv").exists() and not (folder / "env_intel_tf").exists()


def test_the_pinned_uv_is_the_published_one(tmp_path):
    """The only test here that needs a package index."""
    lock, folder = ROOT / "environments" / "uv.txt", tmp_path / "uv"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--require-hashes", "--target", str(folder), "-r", str(lock)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "HASHES" not in done.stderr and "CI" not in os.environ:
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr
    told = subprocess.run([folder / "bin" / "uv", "--version"], capture_output=True, text=True)
    assert told.stdout.split()[1] == pins("environments/uv.txt")["uv"]


def test_a_failed_set_up_is_not_taken_for_finished(tmp_path):
    script, lock = checkout(tmp_path), tmp_path / "requirements.txt"
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
    script = checkout(tmp_path, "environments/peers.txt")

    def set_up_peers(*words):
        return subprocess.run(["bash", script, "--peers", *words], capture_output=True, text=True)

    refused = set_up_peers("--device", "gpu")
    assert refused.returncode == 1 and "leave --device out" in refused.stderr
    first = set_up_peers()
    assert first.returncode == 0 and "env_peers/ is ready" in first.stderr, first.stderr
    assert (tmp_path / "env_peers" / ".finished").exists()
    assert not (tmp_path / "env_intel_tf").exists()
    again = set_up_peers()
    assert again.returncode == 0 and again.stderr == ""


# A Python of the version in its name, which makes environments with the one that runs the tests.
VERSIONED_PYTHON = """#!/bin/bash
version=${0##*/python}
[ "$1" = -c ] && { [[ " ${*:3} " == *" $version "* ]]; exit; }
echo "$version" >>"$USED"
exec "$REAL" "$@"
"""


@pytest.mark.parametrize(
    ("there", "taken"),
    [(["3.11"], "3.11"), (["3.10", "3.13"], "3.13"), (["3.11", "3.12", "3.13", "3.14"], "3.12")],
)
def test_current_takes_any_python_that_the_packages_support(there, taken, few_tools, tmp_path):
    used = tmp_path / "used"
    for version in there:
        (few_tools / f"python{version}").write_text(VERSIONED_PYTHON)
        (few_tools / f"python{version}").chmod(0o755)
    script = checkout(tmp_path, "environments/current.txt")
    env = {"path": few_tools, "REAL": sys.executable, "USED": str(used)}
    first = set_up(script, env.pop("path"), "--current", **env)
    assert first.returncode == 0 and "env_current/ is ready" in first.stderr, first.stderr
    assert used.read_text() == f"{taken}\n" and not (tmp_path / "env_intel_tf").exists()
    again = set_up(script, few_tools, "--current", **env)
    assert again.returncode == 0 and again.stderr == ""
    refused = set_up(script, few_tools, "--current", "--device", "gpu", **env)
    assert refused.returncode == 1 and "leave --device out" in refused.stderr


def test_current_that_fails_is_not_taken_for_finished(tmp_path):
    script = checkout(tmp_path, "environments/current.txt")
    (tmp_path / "environments/current.txt").write_text(f"six==1.17.0 --hash=sha256:{'0' * 64}\n")
    done = subprocess.run(["bash", script, "--current"], capture_output=True, text=True)
    assert done.returncode == 1 and "run ./set_env.sh --current again" in done.stderr, done.stderr
    assert not (tmp_path / "env_current" / ".finished").exists()


def test_current_is_for_every_python_from_3_11_and_has_no_itex():
    text = (ROOT / "environments/current.txt").read_text()
    assert "intel-extension" not in text and "jupyter" not in text
    ends = set(re.findall(r"python_full_version ([<>=]+ '[\d.]+')", text))
    assert ends <= {"< '3.12'", ">= '3.12'"}
    pinned = re.findall(r"^(\S+)==\S+ ; python_full_version", text, re.M)
    assert all(pinned.count(package) == 2 for package in pinned)
