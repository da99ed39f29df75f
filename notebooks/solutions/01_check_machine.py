"""Solutions of notebook 01."""

import os
import subprocess
import sys

from exercises import ROOT, main

from helpers import machine


def exercise_1(output):
    """How many cores are usable when only one CPU is allowed?"""
    one = str(min(os.sched_getaffinity(0)))
    code = "from helpers import machine; print(machine.usable_cores())"
    words = ["taskset", "-c", one, sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    print(
        f"  {machine.usable_cores()} cores are usable here, with one CPU allowed {done.stdout}",
        end="",
    )
    assert int(done.stdout) == 1


def exercise_2(output):
    """What is to be expected of a CPU with VNNI, and of one without?"""
    with_vnni = machine.expectation(["avx2", "avx512f", "avx512_vnni"])
    without = machine.expectation(["avx2"])
    print(f"  {with_vnni}\n  {without}")
    assert "has VNNI" in with_vnni and "neither VNNI nor AMX" in without


if __name__ == "__main__":
    main(__file__, globals())
