"""The pre-flight of ./run_all.sh --check: a line for each item, and PASS or FAIL at the end.

Only the standard library is imported at the top, and the syntax is that of Python 3.8: where there
is no environment yet, any Python says so, and looks at what it can.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers import UserError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT_GIB = 5.0  # of disk, while it is made: the packages and what they are unpacked from
OUTPUT_GIB = 2.0  # of disk, for what all notebooks write: 0.8 on quick settings
SCRATCH_GIB = 0.5  # of disk, for temporary files
MEMORY_GIB = 6.0  # of notebook 05 with the fewest processes at the same time: 5.6 were seen
PORTS = range(8888, 8938)  # where Jupyter begins, and how far it looks
KERNEL_SECONDS = 50
LEAST_SQNR_DB = 25  # of the INT8 convolution; it has 38 or more


def check(output, root=ROOT):
    """Print a line per item, then PASS or FAIL with the first failure; the exit status."""
    first, broken = None, False
    for name, look in items(Path(output), root):
        try:
            state, text = "ok", look()
        except UserError as error:
            state, text = "FAIL", str(error)
        except (ImportError, SyntaxError) as error:
            state, text = "FAIL", f"A package cannot be imported ({error}): {remake()}"
            if broken:
                state, text = "-", "not looked at: that takes the environment."
        broken = broken or (name == "environment" and state == "FAIL")
        if state == "FAIL":
            first = first or f"{name}: {text}"
        print(f"{state:<5}{name:<13}{text}", flush=True)
    print(f"FAIL: {first}" if first else "PASS")
    return 1 if first else 0


def items(output, root):
    """Pairs (name, function that gives a sentence or raises UserError)."""
    yield "environment", lambda: environment(root)
    yield "disk", lambda: disk(needs(output, root))
    yield "memory", memory
    yield "CPU", cpu
    yield "write access", lambda: writing(output, root)
    yield "ports", ports
    yield "INT8 kernel", kernel
    current = root / "env_current"
    if current.exists():
        yield "env_current", lambda: environment(root, "env_current", "--current")
        yield "its kernel", lambda: kernel(current / "bin" / "python", "integer")


def remake(name="env_intel_tf", *words):
    command = " ".join(["./set_env.sh", *words])
    return f"delete {name}/ and run {command}"


def environment(root, name="env_intel_tf", *words):
    """Whether set_env.sh would leave the environment as it is."""
    done = subprocess.run([str(root / "set_env.sh"), "--finished", *words], capture_output=True)
    if done.returncode == 0:
        return f"{name}/ is finished, and of the lock of this checkout."
    command = " ".join(["./set_env.sh", *words])
    if not (root / name).exists():
        raise UserError(f"{name}/ is missing: run {command} (some minutes, and a network).")
    if not (root / name / ".finished").exists():
        raise UserError(f"{name}/ is not finished: run {command}")
    raise UserError(f"{name}/ is stale, of another lock or folder: run {command}")


def existing(folder):
    """The folder, or the nearest one above it that exists."""
    folder = Path(os.path.abspath(folder))
    return next(path for path in (folder, *folder.parents) if path.exists())


def needs(output, root):
    """[(folder, GiB)] of disk."""
    wanted = [(existing(output), OUTPUT_GIB), (Path(tempfile.gettempdir()), SCRATCH_GIB)]
    if not (root / "env_intel_tf" / ".finished").exists():
        wanted.append((root, ENVIRONMENT_GIB))
    return wanted


def disk(wanted):
    """Whether each file system has room for all that will be written to it."""
    systems = {}
    for folder, gib in wanted:
        system = systems.setdefault(os.stat(folder).st_dev, [folder, 0])
        system[1] += gib
    texts = []
    for folder, gib in systems.values():
        free = shutil.disk_usage(str(folder)).free / 2**30
        if free < gib:
            raise UserError(
                f"{free:.1f} GiB free at {folder}, and {gib:.1f} are needed: free some space, or "
                "choose another folder with --output (for temporary files: TMPDIR)."
            )
        texts.append(f"{free:.0f} GiB free at {folder} ({gib:.1f} needed)")
    return "; ".join(texts) + "."


def memory():
    from helpers import machine

    free = machine.available_memory()
    if free < MEMORY_GIB:
        raise UserError(
            f"{free:.1f} GiB are free, and {MEMORY_GIB:.0f} are needed: end other programs, or ask "
            "the batch system for more (sbatch --mem)."
        )
    return f"{free:.1f} GiB are free ({MEMORY_GIB:.0f} needed)."


def cpu():
    from helpers import machine

    names = {"AVX2": ["avx2"], "AVX-512": ["avx512f"], "VNNI": ["avx512_vnni", "avx_vnni"]}
    names.update({"BF16": ["avx512_bf16", "amx_bf16"], "AMX": ["amx_int8"]})
    here = machine.describe()
    has = [name for name, flags in names.items() if set(flags) & set(here["isa"])]
    if "AVX2" not in has:
        raise UserError(
            f"{machine.summary(here)}: INT8 needs AVX2 here. Take another machine, or unset "
            "ONEDNN_MAX_CPU_ISA where it is set."
        )
    lacks = [name for name in names if name not in has]
    without = f", without {', '.join(lacks)}" if lacks else ""
    cap = f"; oneDNN is capped at {here['isa_cap']}" if here["isa_cap"] else ""
    cores = here["usable_cores"]
    return f"{cores} usable cores of {here['cpu']}, with {', '.join(has)}{without}{cap}."


def writing(output, root):
    """Whether a file can be written below `output`; leaves nothing behind."""
    try:
        tempfile.TemporaryFile(dir=str(existing(output))).close()
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}): choose another folder with --output."
        ) from error
    text = f"{output} can be written."
    if not os.access(str(root), os.W_OK):
        text += " The checkout cannot, and need not."
    return text


def ports():
    """Whether Jupyter finds a port on this machine's own address."""
    for port in PORTS:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError as error:
                reason = error.strerror
                continue
        if port == PORTS[0]:
            return f"{port}, where Jupyter begins, is free."
        return f"{PORTS[0]} is taken, {port} is free: Jupyter finds one by itself and prints it."
    raise UserError(
        f"No port from {PORTS[0]} to {PORTS[-1]} is free ({reason}): see who holds them "
        "(ss -ltnp), or start jupyter lab --port=NUMBER with another."
    )


def kernel(python=sys.executable, form="qdq", seconds=KERNEL_SECONDS):
    """Have another process run an INT8 convolution: native code may end that one, not this."""
    from helpers import machine

    steering = {"ONEDNN_VERBOSE": "1", "TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [str(python), "-P", "-m", "helpers.run.kernel", form]
    how = {"env": {**os.environ, "PYTHONPATH": str(ROOT), **steering}, "capture_output": True}
    try:
        done = subprocess.run(command, timeout=seconds, **how)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"The INT8 convolution did not end within {seconds} s: something else uses this "
            "machine, or the environment lies on a slow disk. Try again."
        ) from error
    except OSError as error:
        raise UserError(f"{python} cannot be started ({error.strerror}).") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise UserError(
            f"The process of the INT8 convolution {machine.ending(done.returncode)}. Its last "
            f"line: {last or 'none'}. docs/troubleshooting.md may know it."
        )
    return told(done.stdout.decode(errors="replace"))


def told(log):
    """What oneDNN's log, and the distance from FP32 at its end, say of the convolution."""
    form = r"^onednn_verbose,.*\bexec,cpu,convolution,([^,]+),.*?\bwei[_:](\w+?):"
    ran = re.findall(form, log, re.M)
    sqnr = re.search(r"^sqnr_db (\S+)$", log, re.M)
    if "s8" not in [kind for _, kind in ran]:
        kinds = ", ".join(sorted({kind for _, kind in ran})) or "nothing that oneDNN tells of"
        raise UserError(
            f"The INT8 convolution ran as {kinds}, not as s8: ITEX or oneDNN is not at work. "
            f"Unset what begins with ITEX_, TF_ or ONEDNN_, or {remake()}."
        )
    if not sqnr or float(sqnr[1]) < LEAST_SQNR_DB:
        raise UserError(
            f"The INT8 convolution gave wrong numbers ({sqnr[1] if sqnr else 'no'} dB from FP32, "
            f"{LEAST_SQNR_DB} are the least): tell the maintainers, with notebook 01's output."
        )
    names = ", ".join(sorted({name for name, kind in ran if kind == "s8"}))
    return f"a convolution ran in INT8 ({names}), {float(sqnr[1]):.0f} dB from FP32."
