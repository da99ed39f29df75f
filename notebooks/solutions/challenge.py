"""The judge of the challenge in notebook 08: at most one point lost, as fast as you can.

python solutions/challenge.py my_int8.pb [--output DIR] [--limit SECONDS]

It compares the file with own/models/fp32.pb in the output folder of the notebooks: the accuracy on
the 10,000 test images of MNIST, what oneDNN executed, and the speed at batch 256 in interleaved
rounds. The status is 0 where all three are passed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from exercises import ROOT, made

from helpers import UserError, benchmark, datasets, graphs
from helpers.benchmark import report

POINTS, BATCH = 1.0, 256


def measure(int8, output, limit):
    """What helpers.benchmark measures of FP32 and of the file that was handed in."""
    graphs.read_graph(int8)  # a UserError for what is no graph, before any process is started
    fp32, _ = benchmark.candidates(made(output / "own" / "models" / "fp32.pb", "08"), int8, False)
    test = datasets.load_mnist().test
    return benchmark.measure(
        [fp32, benchmark.Candidate("handed in", int8)],
        output / "own" / "challenge",
        test.images,
        test.labels,
        [BATCH],
        "quick",
        least_sqnr_db=-np.inf,  # a bad answer costs accuracy, which is judged
        limit=limit,
        progress=sys.stdout.isatty(),
    )


def verdicts(measured):
    """The three judgements: [(passed, sentence)]."""
    fp32, yours = measured["candidates"]
    before, now = (100 * one["accuracy"]["top1"] for one in (fp32, yours))
    lost = round(before - now, 9)  # one image of 10,000 is 0.01, not more
    ran = {kind: entry["count"] for kind, entry in yours["kernels"].items()}
    entry = report.ratio(measured, "handed in", BATCH)
    times = entry["throughput_times"]
    return [
        (
            lost <= POINTS,
            f"accuracy: {now:.2f} % of the test images, FP32 {before:.2f} %; {lost:.2f} points "
            f"lost, {POINTS:g} may be.",
        ),
        (
            ran.get("s8", 0) > 0,
            f"INT8: of {sum(ran.values())} layers {ran.get('s8', 0)} ran with INT8 weights.",
        ),
        (
            entry["verdict"] == "faster",
            f"speed: {times['median']:.3g} times FP32 at batch {BATCH} {report.span(times)}: "
            f"{entry['verdict']}.",
        ),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("int8", type=Path, help="the frozen graph to hand in (.pb)")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs", metavar="DIR")
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS", help="default: 60")
    options = parser.parse_args()
    try:
        judged = verdicts(measure(options.int8, options.output.resolve(), options.limit))
    except UserError as error:
        sys.exit(f"error: {error}")
    for passed, sentence in judged:
        print(f"{'PASS' if passed else 'FAIL'}  {sentence}")
    sys.exit(not all(passed for passed, _ in judged))


if __name__ == "__main__":
    main()
