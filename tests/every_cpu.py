"""Every notebook, quick, under every cap of oneDNN, and its outputs compared with those stored.

A cap (ONEDNN_MAX_CPU_ISA) makes oneDNN behave as on an older CPU. It is not that CPU: what
TensorFlow itself picks by the CPU stays, and a cap above what the CPU has changes nothing.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import ROOT, replayed, reuse_resnet50

from helpers import machine
from helpers.run import cli

NAME = "ONEDNN_MAX_CPU_ISA"
CAPS = ["none", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16"]


def parse(arguments):
    parser = argparse.ArgumentParser(prog="tests/every_cpu.sh", description=__doc__)
    add = parser.add_argument
    add("words", nargs="*", help="only notebooks whose name contains a word (03, 04, 07 need 02)")
    add("--cap", action="append", metavar="ISA", help=f"may be repeated; default: {' '.join(CAPS)}")
    add("--output", type=Path, metavar="DIR", help="a folder per cap is made in it")
    add("--models", type=Path, metavar="DIR", help="output of a run whose ResNet50 is taken")
    add("--distinct", action="store_true", help="leave out a cap that changes nothing here")
    options = parser.parse_args(arguments)
    for word in options.words:
        if not cli.notebooks([word]):
            parser.error(f"no notebook has '{word}' in its name")
    return options


def as_before(caps):
    """{cap: which one before it, "none" first, leaves oneDNN the same instructions on this CPU}."""
    left, same = {}, {}
    for cap in dict.fromkeys(["none", *caps]):
        with capped(cap):
            first = left.setdefault(tuple(machine.isa_flags()), cap)
        if first != cap:
            same[cap] = first
    return same


@contextlib.contextmanager
def capped(cap):
    """The variable set in this process, or not set for the cap "none"."""
    kept = os.environ.pop(NAME, None)
    try:
        if cap != "none":
            os.environ[NAME] = cap
        yield
    finally:
        os.environ.pop(NAME, None)
        if kept is not None:
            os.environ[NAME] = kept


def run(path, output, cap):
    """Run one notebook under a cap and compare it: "12 s", or what went wrong and after how long.

    What it and the comparison print goes to <output>/<notebook>.log.
    """
    with capped(cap):
        env = {**os.environ, "RESNET50_URL": "http://127.0.0.1:9"}  # nobody: weights made here
    command = [ROOT / "run_all.sh", "--quick", "--output", output, path.stem]
    start = time.monotonic()
    with open(output / f"{path.stem}.log", "w") as log:
        status = subprocess.run(command, env=env, stdout=log, stderr=log).returncode
        seconds = f"{time.monotonic() - start:.0f} s"
        if status:
            return f"FAILED, {seconds}"
        with tempfile.TemporaryDirectory() as folder:
            done = replayed(path, output / "notebooks" / path.name, Path(folder))
        log.write(done.stdout + done.stderr)
    return f"DIFFERS, {seconds}" if done.returncode else seconds


def bad(end):
    return end.startswith(("FAILED", "DIFFERS"))


def table(rows, caps):
    """{notebook: {cap: what became of it}} as lines."""
    widths = [max(len(cap), *(len(row[cap]) for row in rows.values())) + 2 for cap in caps]
    lines = ["notebook".ljust(24) + "".join(cap.rjust(w) for cap, w in zip(caps, widths))]
    for name, row in rows.items():
        lines.append(name.ljust(24) + "".join(row[c].rjust(w) for c, w in zip(caps, widths)))
    return "\n".join(lines)


def main(arguments=None):
    options = parse(arguments)
    caps, books = options.cap or CAPS, cli.notebooks(options.words)
    base = Path(options.output or tempfile.mkdtemp(prefix="every_cpu.")).absolute()
    here = machine.summary(machine.describe())
    print(f"On {here}; outputs and logs in {base}", flush=True)
    rows = {path.stem: {} for path in books}
    same = as_before(caps) if options.distinct else {}
    for cap in caps:
        if cap in same:
            for path in books:
                rows[path.stem][cap] = f"as {same[cap]}"
            print(f"{cap:<18} leaves this CPU what {same[cap]} has left it: not run", flush=True)
            continue
        output = base / cap
        output.mkdir(parents=True, exist_ok=True)
        if options.models:
            reuse_resnet50(options.models, output)
        for path in books:
            rows[path.stem][cap] = run(path, output, cap)
            print(f"{cap:<18} {path.stem:<24} {rows[path.stem][cap]}", flush=True)
            if bad(rows[path.stem][cap]):
                print("\n".join((output / f"{path.stem}.log").read_text().splitlines()[-60:]))
    print(f"\nSeconds of each notebook by ONEDNN_MAX_CPU_ISA, on {here}:\n{table(rows, caps)}")
    failed = [end for row in rows.values() for end in row.values() if bad(end)]
    print(f"{len(failed)} of {len(books) * len(caps)} failed." if failed else "All passed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
