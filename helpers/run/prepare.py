"""./run_all.sh --prepare DIR: all that a room without network needs, in one folder.

DIR becomes a checkout of its own, with the packages in wheels/ and an environment made from them
without network; there every notebook is run. A step that is done is not done again, so that a
second call goes on where the first was interrupted.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from helpers import UserError, files, machine
from helpers.run import room
from helpers.run.preflight import OUTPUT_GIB, ROOT, existing

# The checkout; what is not there yet is left out.
PARTS = (
    *("run_all.sh", "set_env.sh", "helpers", "notebooks", "environments", "docs", "results"),
    *("requirements.in", "requirements.txt", "environment.yml", "pyproject.toml"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", ".uv"),
)
WASTE = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.part")
# The environments: folder, lock, option of set_env.sh, GiB of its packages and of itself.
ENVIRONMENTS = (
    ("env_intel_tf", "requirements.txt", [], 3.2),
    ("env_peers", "environments/peers.txt", ["--peers"], 2.6),
    ("env_current", "environments/current.txt", ["--current"], 3.2),
)
UNFINISHED = ".unfinished"  # in DIR until all is done: what is being prepared


def prepare(options):
    """All steps; the exit status. Raises UserError with what to do next."""
    folder = Path(os.path.abspath(options.prepare))
    wanted = {
        "origin": origin(),
        "profile": "quick" if options.quick else "full",
        "words": options.words,
        "parameters": options.parameter,
    }
    if ready(folder, wanted):
        print(f"{folder} is prepared already, and whole.")
        return 0
    claim(folder)
    try:
        with room.hold(folder):
            begin(folder, wanted)
            for name, lock, words, _ in chosen():
                wheels(folder, name, lock)
                environment(folder, words)
            run(folder, wanted)
            end(folder, wanted)
    except BlockingIOError as error:
        raise UserError(f"{folder} is being prepared by another run: wait for it.") from error
    except (OSError, shutil.Error) as error:
        raise room.unwritten(folder, error) from error
    say(folder)
    return 0


def chosen():
    """env_intel_tf/, and of the optional environments those that there are here."""
    return [each for each in ENVIRONMENTS if not each[2] or (ROOT / each[0]).exists()]


def origin():
    """The digest of the checkout that is copied."""
    digest = hashlib.sha256()
    for path in sorted(path for part in PARTS[:8] for path in contents(ROOT / part)):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def contents(path):
    if path.is_file():
        return [path]
    skipped = {"__pycache__", ".ipynb_checkpoints"}
    return [each for each in path.rglob("*") if each.is_file() and not skipped & set(each.parts)]


def ready(folder, wanted):
    """Whether the room is there, of the same, and no file of it is missing or changed."""
    known = room.record(folder)
    if not known or {key: known.get(key) for key in wanted} != wanted:
        return False
    for name, digest in known["files"].items():
        path = folder / "outputs" / name
        if not path.exists() or files.sha256(path) != digest:
            print(f"{path} is not as it was prepared; it is made anew.")
            path.unlink(missing_ok=True)
            (folder / "outputs/notebooks/states.json").unlink(missing_ok=True)
            return False
    return True


def claim(folder):
    """Refuse a folder that holds something else, and a disk that is too small."""
    ours = room.record(folder) or (folder / UNFINISHED).exists()
    if folder == ROOT or folder in ROOT.parents:
        raise UserError(f"{folder} holds this checkout: choose a folder of its own.")
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty, and no room: choose a folder of its own.")
    missing = sum(gib for name, *_, gib in chosen() if not (folder / name / ".finished").exists())
    free, needed = shutil.disk_usage(existing(folder)).free / 2**30, missing + OUTPUT_GIB
    if free < needed:
        raise UserError(
            f"{free:.1f} GiB free at {existing(folder)}, about {needed:.1f} are needed: free some "
            "space, or choose another folder."
        )


def begin(folder, wanted):
    """Copy the checkout; what another checkout or profile has run is forgotten."""
    (folder / room.RECORD).unlink(missing_ok=True)
    mark = folder / UNFINISHED
    try:
        same = json.loads(mark.read_text()) == json.loads(json.dumps(wanted))
    except (OSError, ValueError):
        same = False
    if not same:
        (folder / "outputs/notebooks/states.json").unlink(missing_ok=True)
    files.write_json(mark, wanted)
    print(f"Preparing {folder}; interrupted, it goes on when it is called again.", flush=True)
    for name in PARTS:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=WASTE, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, target)


def wheels(folder, name, lock):
    """Every package of a lock into wheels/, with pip's check of the hashes; at the end the lock."""
    copy = folder / "wheels" / lock.replace("/", "_")
    if copy.exists() and copy.read_bytes() == (ROOT / lock).read_bytes():
        return
    print(f"Fetching the packages of {lock} into wheels/ …", flush=True)
    command = [ROOT / name / "bin" / "python", "-m", "pip", "download", "-qq", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--dest", copy.parent, "-r", ROOT / lock]
    if status_of(command, stdout=sys.stderr):
        raise UserError(
            f"The packages of {lock} could not all be fetched (no network, or a full disk?). "
            f"Look at the messages above, then call --prepare {folder} again: it goes on."
        )
    with files.whole(copy) as part:
        shutil.copy(ROOT / lock, part)


def environment(folder, words):
    """The room's own environment, from wheels/, by its own set_env.sh."""
    path = f"{Path(sys.base_prefix, 'bin')}:{os.environ['PATH']}"  # the same Python is there
    variables = {**os.environ, "PATH": path, "WHEELS": str(folder / "wheels")}
    if status_of([folder / "set_env.sh", *words], env=variables):
        raise UserError(f"{folder}/set_env.sh failed: see above, then call --prepare again.")


def run(folder, wanted):
    """Run what no earlier call has run to its end; the room's outputs/ take all of it."""
    try:
        states = json.loads((folder / "outputs/notebooks/states.json").read_text())
    except (OSError, ValueError):
        states = {}
    books = [path.stem for path in sorted((folder / "notebooks").glob("[0-9]*.ipynb"))]
    words = wanted["words"]
    left = [
        stem
        for stem in books
        if states.get(stem, {}).get("state") != "done"
        and (not words or any(word in stem for word in words))
    ]
    if not left:
        return
    command = [folder / "run_all.sh", "--output", folder / "outputs", *left]
    command += ["--quick"] if wanted["profile"] == "quick" else []
    for pair in wanted["parameters"]:
        command += ["-p", *pair]
    if status_of(command):
        raise UserError(
            f"Not all notebooks were run, so {folder} is unfinished: see above, then call "
            "--prepare again; it goes on with what is left."
        )


def status_of(command, **how):
    """The exit status of a command; Ctrl-C and SIGTERM end it and all that it has started."""
    with subprocess.Popen(command, start_new_session=True, **how) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            print("Interrupted; call --prepare again, and it goes on.")
            raise


def end(folder, wanted):
    """Close the models to writing, open the learners' folder to all, and write the record."""
    outputs = folder / "outputs"
    models = [path for path in sorted(outputs.glob("**/models/**/*")) if path.is_file()]
    for path in models:
        if path.suffix == ".pb":  # linked into copies
            path.chmod(0o444)
    people = folder / room.PEOPLE
    people.mkdir(exist_ok=True)
    people.chmod(0o1777)
    digests = {str(path.relative_to(outputs)): files.sha256(path) for path in models}
    made = {"created": machine.now(), "machine": machine.describe()["cpu"], "files": digests}
    made["commit"] = machine.software()["commit"]  # the copy has no .git to ask
    files.write_json(folder / room.RECORD, {**wanted, **made})
    (folder / UNFINISHED).unlink(missing_ok=True)


def say(folder):
    print(
        f"\n{folder} is prepared. Nothing in it needs a network any more.\n"
        f"A learner's own copy:  {folder}/run_all.sh --copy FOLDER\n"
        f"as at the beginning:   {folder}/run_all.sh --reset FOLDER\n"
        f"what to expect:        {folder}/outputs/index.html\n"
        "On another machine: copy all but env_*/; ./set_env.sh makes these from wheels/."
    )
