"""Around Intel Neural Compressor: calibration data, a quiet run, tuning and sensitivity."""

import contextlib
import ctypes
import logging
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import graphs, stats

_DESCRIPTOR_2 = open(2, "w", buffering=1, closefd=False)  # open for as long as INC is loaded


class CalibrationLoader:
    """The data loader INC wants: iterates over (images, dummy labels) in whole batches.

    `images` has shape (N, …); a last batch that is not full is left out, and there has to be one
    full batch.
    """

    def __init__(self, images, batch_size=8):
        if len(images) < batch_size:
            raise ValueError(f"{len(images)} images do not fill one batch of {batch_size}.")
        self.images, self.batch_size = images, batch_size

    def __len__(self):
        return len(self.images) // self.batch_size

    def __iter__(self):
        for index in range(len(self)):
            start = index * self.batch_size
            yield self.images[start : start + self.batch_size], np.zeros(self.batch_size)


def _keep_freed_memory():
    """Have this process reuse large blocks of memory instead of giving each back to the system.

    INC copies the graph about a hundred times, TensorFlow a dozen times when it loads one; mapping
    the memory anew takes a quarter of either's time.
    """
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3  # glibc's malloc.h
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**31 - 1)
    return libc


@contextlib.contextmanager
def quiet(log):
    """Send what INC, TensorFlow and their C++ libraries print to the file `log`.

    Restores the environment variables that INC changes, so that processes started later do not
    inherit them. What Python code in the block prints goes to the log, too.
    """
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    libc = _keep_freed_memory()
    before, saved = dict(os.environ), [os.dup(1), os.dup(2)]
    logger = logging.getLogger("tensorflow")
    handlers = [one for one in logger.handlers if isinstance(one, logging.StreamHandler)]
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        streams = [handler.setStream(_DESCRIPTOR_2) for handler in handlers]
        try:
            with (
                contextlib.redirect_stdout(_DESCRIPTOR_2),
                contextlib.redirect_stderr(_DESCRIPTOR_2),
            ):
                # INC reads calibration ranges back from sys.stderr as it was at INC's import, so
                # that has to be descriptor 2 itself; a notebook kernel's sys.stderr is not
                from neural_compressor.tensorflow.utils import model as inc

                with tempfile.TemporaryDirectory(prefix="inc_") as workspace:
                    # not the current folder; the first is for the next quantization, the second for
                    # those after it (autotune), to which INC goes back
                    inc.TFConfig.global_config["workspace_path"] = workspace
                    inc.DEFAULT_WORKSPACE = workspace
                    yield log
        finally:
            _DESCRIPTOR_2.flush()
            for number, copy in enumerate(saved, 1):
                os.dup2(copy, number)
                os.close(copy)
            for handler, stream in zip(handlers, streams):
                handler.setStream(stream or _DESCRIPTOR_2)  # None: it was that one already
            os.environ.clear()
            os.environ.update(before)
            libc.malloc_trim(0)  # what comes next may be large, too, in another process


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
    found = [stats.sqnr_db(wanted, np.log(outputs[end] + 1e-9)) for end in ends]
    return sorted(zip(found, names))


def kl_threshold(values, levels=255, bins=2048):
    """The upper end of a range [0, end] for unsigned 8-bit integers that loses least information.

    Of the ends tried, the one whose quantized histogram has the smallest Kullback-Leibler
    divergence from that of the positive `values`, clipped there. Source: Migacz 2017, "8-bit
    Inference with TensorRT".
    """
    counts, edges = np.histogram(values[values > 0], bins)
    best = np.inf, edges[-1]
    for kept in range(levels, bins + 1, 8):
        inside = counts[:kept]
        reference = inside.astype(float)
        reference[-1] += counts[kept:].sum()
        group, used = np.arange(kept) * levels // kept, inside > 0
        share = np.bincount(group, inside, levels) / np.maximum(np.bincount(group, used, levels), 1)
        coarse = np.where(used, share[group], 0) + 1e-9
        reference, coarse = reference / reference.sum(), coarse / coarse.sum()
        seen = reference > 0
        loss = (reference[seen] * np.log(reference[seen] / coarse[seen])).sum()
        best = min(best, (float(loss), edges[kept]))
    return float(best[1])
