"""Attempts at a quantization until one keeps the accuracy, and what each layer costs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import graphs, stats


@dataclass(frozen=True)
class Trial:
    """One quantization that was tried; `drop` in percentage points of accuracy."""

    name: str
    accuracy: float
    drop: float
    passed: bool
    graph: Path


def tune(attempts, accuracy_of, baseline, tolerance):
    """Try quantizations in order until one keeps the accuracy: Trials, of which the last decides.

    `attempts` are pairs (name, make) where make() gives the path of a quantized graph; what comes
    after the first that passes is never made. `accuracy_of(path)` measures a graph (0 to 1) on the
    validation split, `baseline` is that of FP32, `tolerance` the percentage points that may be
    lost. Every accuracy is measured here on the graph itself and printed as it comes.
    """
    trials = []
    for name, make in attempts:
        graph = make()
        accuracy = accuracy_of(graph)
        drop = round(100 * (baseline - accuracy), 9)  # one image of 1,000 is 0.1, not more
        trials.append(Trial(name, accuracy, drop, drop <= tolerance, graph))
        verdict = "passes" if trials[-1].passed else "loses too much"
        print(f"{len(trials)}. {name:<34} {accuracy:8.2%}  lost {drop:6.2f} points  {verdict}")
        if trials[-1].passed:
            break
    return trials


def sensitivity(graph_def, reference, images):
    """How much each layer costs on its own: [(SQNR in dB, layer name)], the worst first.

    One layer at a time stays INT8, all others go back to float; the ratio compares the logarithms
    of the outputs (probabilities) with `reference`, those of FP32 for the same images.
    """
    names = [layer.name for layer in graphs.layers(graph_def) if layer.int8]
    others = [[other for other in names if other != name] for name in names]
    together, ends = graphs.side_by_side([graphs.leave_float(graph_def, rest) for rest in others])
    outputs = graphs.Tensors(together, ends)(images)
    wanted = np.log(reference + 1e-9)
    ratios = [stats.sqnr_db(wanted, np.log(outputs[end] + 1e-9)) for end in ends]
    return sorted(zip(ratios, names))
