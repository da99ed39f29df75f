"""Attempts at a quantization until one keeps the accuracy, and what each layer costs."""

import itertools
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import UserError, benchmark, graphs, machine, stats
from helpers.quantize import equalizing, forms

PATIENCE = 300  # seconds for the costs of layers; those not reached by then stay in INT8


@dataclass(frozen=True)
class Trial:
    """One quantization that was tried; `drop` in percentage points of accuracy."""

    name: str
    accuracy: float
    drop: float
    passed: bool
    graph: Path


def tune(attempts, accuracy_of, baseline, tolerance, first=1):
    """Try quantizations in order until one keeps the accuracy: Trials, of which the last decides.

    `attempts` are pairs (name, make) where make() gives the path of a quantized graph, or None for
    an attempt that does not apply; what comes after the first that passes is never made.
    `accuracy_of(path)` measures a graph (0 to 1) on the validation split, `baseline` is that of
    FP32, `tolerance` the percentage points that may be lost. Every accuracy is measured here on the
    graph itself and printed as it comes, numbered from `first`.
    """
    trials = []
    for name, make in attempts:
        graph = make()
        if graph is None:
            continue
        accuracy = accuracy_of(graph)
        drop = round(100 * (baseline - accuracy), 9)  # one image of 1,000 is 0.1, not more
        trials.append(Trial(name, accuracy, drop, drop <= tolerance, graph))
        verdict = "passes" if trials[-1].passed else "loses too much"
        number = first + len(trials) - 1
        print(f"{number}. {name:<34} {accuracy:8.2%}  lost {drop:6.2f} points  {verdict}")
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


def costs(fp32, int8, images, first=(), seconds=math.inf):
    """How much each INT8 layer costs on its own: {layer name: SQNR in dB of the output}.

    As `sensitivity`, but of files, for outputs of any kind (those of the FP32 graph are compared as
    they are), and in a process of its own, because native code may end it. NaN where an output is
    not finite. Each layer needs a network of its own, so the time grows with their square: after
    `seconds` no more are begun, and those that are left are missing; names in `first` come first.
    Raises UserError when that process ends.
    """
    with tempfile.TemporaryDirectory(prefix="costs_") as scratch:
        dtype = graphs.find_signature(graphs.read_graph(int8)).dtype
        np.save(f"{scratch}/images.npy", np.asarray(images, dtype))
        paths = (str(fp32), str(int8), f"{scratch}/images.npy")
        return machine.in_own_process(each_layer_alone, *paths, list(first), seconds)


def each_layer_alone(fp32, int8, images, first, seconds, chunk=8):
    """What `costs` runs in its process; `chunk` networks are loaded at a time."""
    import time

    import numpy as np

    from helpers import graphs, stats

    images, graph_def = np.load(images), graphs.read_graph(int8)
    names = [layer.name for layer in graphs.layers(graph_def) if layer.int8]
    ranks = {name: rank for rank, name in enumerate(first)}
    ordered = sorted(names, key=lambda name: ranks.get(name, len(ranks)))
    wanted = graphs.FrozenGraph(fp32).predict(images)
    found, start = {}, time.monotonic()
    while ordered and time.monotonic() - start < seconds:
        part, ordered = ordered[:chunk], ordered[chunk:]
        networks = [graphs.leave_float(graph_def, [n for n in names if n != name]) for name in part]
        together, ends = graphs.side_by_side(networks)
        outputs = graphs.Tensors(together, ends)(images, batch_size=25)
        found |= {name: stats.sqnr_db(wanted, outputs[end]) for name, end in zip(part, ends)}
    return found


def does_not_hold(trials, word, tolerance):
    """A sentence about trials none of which passed; `word` says of what points were lost."""
    best = max(trials, key=lambda trial: trial.accuracy)
    return (
        f"INT8 does not hold: of {len(trials)} attempts the best, '{best.name}', loses "
        f"{best.drop:.2f} points of the {word}, {tolerance:g} may be lost."
    )


class Judge:
    """What a quantized graph is judged by: accuracy with labels, without them agreement with FP32.

    `inputs` (N, …) are for decisions only, `labels` (N,) or None. Every graph runs in a process of
    its own, because native code may end it.
    """

    def __init__(self, fp32, inputs, labels=None):
        self.inputs, self.labels = inputs, labels
        self.outputs = benchmark.outputs(fp32, inputs)
        self.answers = classes(self.outputs)
        self.word = "accuracy" if labels is not None else "agreement with FP32"
        self.baseline = self.of(self.outputs)
        self.seen = None, None  # the graph that ran last, and what it gave

    def of(self, outputs):
        """The share (0 to 1) of outputs (N, classes) that are right."""
        truth = self.answers if self.labels is None else self.labels
        return float((classes(outputs) == truth).mean())

    def run(self, path):
        """What a graph gives for the inputs; ProcessEnded where native code ends its process."""
        if self.seen[0] != path:
            self.seen = path, benchmark.outputs(path, self.inputs)
        return self.seen[1]

    def __call__(self, path):
        outputs = self.run(path)
        self.seen = None, None  # a file of that name may be another one the next time
        return self.of(outputs) if np.isfinite(outputs).all() else 0.0


def classes(outputs):
    """The class that each row of outputs (N, …) names; of a single number, whether it is a yes.

    That is above one half for probabilities, above 0 for anything else.
    """
    rows = outputs.reshape(len(outputs), -1)
    if rows.shape[1] > 1:
        return rows.argmax(1)
    return (rows[:, 0] > (0.5 if rows.min() >= 0 and rows.max() <= 1 else 0)).astype(int)


def climb(fp32, images, judge, tolerance, folder, tell=print, form=None):
    """Quantize the frozen graph `fp32` until `judge` is content: (trials, why), the last decides.

    The attempts, each with all layers in INT8 before any goes back: per channel; calibrated on
    ranges without the outermost values; after cross-layer equalization; then the 1, 2, 4, … layers
    back in FP32 that cost most alone. `images` (N, …) are calibrated on, `tolerance` is in
    percentage points. Layers that end the process in INT8 are found by halving and stay FP32;
    `why` says of each layer left in FP32 why: {name: reason}. `form` makes the graphs: one of
    helpers.quantize.forms, by default that of ITEX.
    """
    folder, why = Path(folder), {}
    form = form or forms.Qdq(fp32, images, folder)

    def int8_of(name, source=fp32):
        return _runnable(form.make(name, source, why), judge, why, tell, form)

    def equalized():
        changed = equalizing.equalize(graphs.read_graph(fp32))
        if changed is None:
            return None
        return int8_of("equalized", graphs.write_graph(changed, folder / "equalized_fp32.pb"))

    trials = tune(
        [("per channel", lambda: int8_of("per_channel"))], judge, judge.baseline, tolerance
    )
    more = [
        (form.clipping, lambda: form.clipped(trials[0].graph, why)),
        ("cross-layer equalization", equalized),
    ]
    if not trials[-1].passed:
        trials += tune(more, judge, judge.baseline, tolerance, first=len(trials) + 1)
    if not trials[-1].passed:
        best = max(trials, key=lambda trial: trial.accuracy)
        simulated = form.simulated(best.graph)
        found = costs(fp32, simulated, judge.inputs[:50], seconds=PATIENCE)
        worst = sorted(found, key=found.get)
        steps = _partly_float(best, worst, folder, form)
        trials += tune(steps, judge, judge.baseline, tolerance, first=len(trials) + 1)
        left = form.int8_layers(trials[-1].graph)
        why |= {name: "back in FP32 to keep the accuracy" for name in worst if name not in left}
    return trials, why


def _partly_float(trial, worst, folder, form):
    """(name, make) for a trial's graph with the 1, 2, 4, … worst layers in FP32, up to half."""
    counts = (2**power for power in itertools.count())
    for count in itertools.takewhile(lambda count: count <= max(1, len(worst) // 2), counts):

        def make(count=count):
            return form.without(trial.graph, worst[:count], folder / f"{count}_float.pb")

        yield f"{count} layer{'s' * (count > 1)} back in FP32", make


def _runnable(path, judge, why, tell, form):
    """The graph at `path`, or one beside it without the layers that end its process in INT8.

    Their names are added to `why`. Raises UserError where it is not one layer or a few.
    """
    names, trial = form.int8_layers(path), path.with_name(f"{path.stem}_runs.pb")

    def ends(in_int8):
        form.without(path, [name for name in names if name not in in_int8], trial)
        try:
            benchmark.outputs(trial, judge.inputs[:8])
        except benchmark.ProcessEnded:
            return True
        return False

    try:
        judge.run(path)  # which is what it is judged by next
        return path
    except benchmark.ProcessEnded as error:
        tell(f"{error} Looking for the layers that cause it …")
    guilty = culprits(names, ends)
    for name in guilty:
        why[name] = "in INT8 it ends the process in oneDNN"
        tell(f"  {name} stays in FP32: {why[name]}")
    return trial


def culprits(names, ends, most=8):
    """Which of `names` have to be left out so that ends(the others) is false, found by halving.

    Each is the last of the shortest beginning of the list for which `ends` is true. Raises
    UserError where it is true of nothing at all, or of what is left without `most` of them.
    """
    if ends([]):
        raise UserError("The graph ends its process even with every layer in FP32.")
    guilty, left = [], list(names)
    while ends(left):
        if len(guilty) == most:
            raise UserError(
                f"Without {most} layers in INT8 ({', '.join(guilty)}) the process still ends. This "
                "network stays in FP32 or BF16 on this machine."
            )
        runs, fails = 0, len(left)
        while fails - runs > 1:
            middle = (runs + fails) // 2
            runs, fails = (runs, middle) if ends(left[:middle]) else (middle, fails)
        guilty.append(left.pop(fails - 1))
    return guilty
