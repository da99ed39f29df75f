import re
import subprocess
import sys

import yaml
from conftest import ROOT


def pins(name):
    text = (ROOT / name).read_text()
    found = re.findall(r"^([a-z0-9_.-]+)(?:\[[a-z,]+\])?==([^\s\\;#]+)", text, re.M | re.I)
    return {package.lower().replace("_", "-"): version for package, version in found}


def test_the_lock_holds_every_direct_dependency():
    direct, locked = pins("requirements.in"), pins("requirements.txt")
    assert len(direct) >= 12 and direct.items() <= locked.items()


def test_every_locked_package_has_hashes_and_no_address():
    text = (ROOT / "requirements.txt").read_text()
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
    for tool in ("cat", "cut", "dirname", "echo", "flock", "grep", "rm", "sha256sum", "uname"):
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
