"""A first attempt at the challenge of notebook 08: which layers had better stay in FP32?

python solutions/challenge_attempt.py [--output DIR]

All layers in INT8, all but the depthwise ones, all but the first: measured side by side on the
5,000 images that the notebook calibrates and decides on. The fastest that loses no more than a
point is copied to own/models/challenge.pb, to be handed in.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from challenge import BATCH, POINTS
from exercises import ROOT, made

from helpers import UserError, benchmark, datasets, graphs
from helpers.benchmark import report


def candidates(models):
    """FP32 and the attempts, as Candidates; their graphs are written below `models`."""
    whole = graphs.read_graph(made(models / "int8.pb", "08"))
    in_int8 = [layer for layer in graphs.layers(whole) if layer.int8]
    depthwise = [layer.name for layer in in_int8 if "Depthwise" in layer.op]
    ways = {"all": [], "without depthwise": depthwise, "without the first": [in_int8[0].name]}
    chosen = [benchmark.Candidate("FP32", made(models / "fp32.pb", "08"))]
    for name, floats in ways.items():
        path = models / "attempts" / f"{name.replace(' ', '_')}.pb"
        graphs.write_graph(graphs.leave_float(whole, floats), path)
        chosen.append(benchmark.Candidate(name, path))
    return chosen


def attempt(output):
    """The path of the fastest that loses no more than POINTS."""
    chosen, data = candidates(output / "own" / "models"), datasets.load_mnist().validation
    measured = benchmark.measure(
        chosen,
        output / "own" / "challenge",
        data.images,
        data.labels,
        [BATCH],
        "quick",
        least_sqnr_db=-np.inf,
        progress=sys.stdout.isatty(),
    )
    baseline, speed = measured["candidates"][0]["accuracy"]["top1"], {}
    for candidate, entry in zip(chosen[1:], measured["candidates"][1:]):
        times = report.ratio(measured, candidate.name, BATCH)["throughput_times"]
        lost = 100 * (baseline - entry["accuracy"]["top1"])
        print(
            f"{candidate.name:18} {times['median']:.3g} {report.span(times)} times FP32,", end=" "
        )
        print(f"{lost:.2f} points lost")
        if lost <= POINTS:
            speed[candidate.graph] = times["median"]
    if not speed:
        raise UserError(f"Every attempt loses more than {POINTS:g} point.")
    return max(speed, key=speed.get)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "outputs", metavar="DIR")
    output = parser.parse_args().output.resolve()
    try:
        best = attempt(output)
    except UserError as error:
        sys.exit(f"error: {error}")
    target = output / "own" / "models" / "challenge.pb"
    shutil.copy(best, target)
    print(f"To hand in: {target}")


if __name__ == "__main__":
    main()
