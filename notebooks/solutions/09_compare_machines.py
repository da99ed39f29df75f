"""Solutions of notebook 09."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from exercises import ROOT, main, slow

from helpers import machines
from helpers.machines import table


def resnet50():
    """The measured results of ResNet50 that come with the package."""
    return machines.chosen(machines.read([machines.RESULTS]).entries, ["resnet50"])


def exercise_1(output):
    """What happens to a result on other threads?"""
    original = resnet50()[0]
    result = json.loads((machines.RESULTS / original.file).read_text())
    result["settings"]["threads"] += 1
    with tempfile.TemporaryDirectory() as mine:
        (Path(mine) / "other_threads.json").write_text(json.dumps(result))
        copy = machines.read([mine]).entries
    together = [original, *copy]
    apart, mixed = machines.groups(together), machines.groups(together, ["threads"])
    print(f"  {len(apart)} groups; with mix=['threads'] {len(mixed)}: {mixed[0].mixture}")
    assert (len(apart), len(mixed)) == (2, 1)


def exercise_2(output):
    """Who leads at batch 1, and who has the higher ratio?"""
    group = machines.groups(resnet50())[0]
    for by in ("throughput", "ratio"):
        print(table.text(group, 1, by=by))


@slow("measures for some minutes")
def exercise_3(output):
    """An older machine: this one by a cap, beside the real ones."""
    capped = output / "by_cap"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = [ROOT / "run_all.sh", "05", "--output", capped]
    subprocess.run(run, env=environment, check=True)
    words = ["-m", "helpers.machines", "results", capped, "--model", "resnet50", "--mix", "commit"]
    subprocess.run(["python", *words], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(__file__, globals())
