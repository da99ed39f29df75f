"""What oneDNN executed, and for how long: read from its own log."""

import re
import subprocess
import sys
import tempfile
from collections import Counter

import numpy as np

from helpers import machine


def onednn_log(graph, images, batch_sizes, calls):
    """What oneDNN logs (ONEDNN_VERBOSE=1) of a frozen graph in a process of its own.

    For each of the batch sizes, of as many calls with the first of the `images`:
    {batch size: [(seconds, [line])]}.
    """
    from helpers.benchmark import environment

    code = (
        "import sys, numpy; from helpers import models, worker; "
        "graph = models.FrozenGraph(sys.argv[1]); images = numpy.load(sys.argv[2])\n"
        "for size in map(int, sys.argv[4:]):\n"
        "    x = images[:size]\n"
        "    for _ in range(int(sys.argv[3])):\n"
        "        seconds = worker.time_calls(lambda: graph(x), 0, 1)[0]\n"
        "        print('call', size, seconds, flush=True)"
    )
    with tempfile.TemporaryDirectory() as scratch:
        np.save(f"{scratch}/x.npy", images)
        done = subprocess.run(
            [sys.executable, "-c", code, graph, f"{scratch}/x.npy"]
            + [str(number) for number in (calls, *batch_sizes)],
            env={**environment(machine.usable_cores()), "ONEDNN_VERBOSE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
    found, lines = {size: [] for size in batch_sizes}, []
    for line in done.stdout.splitlines():
        if line.startswith("call "):
            _, size, seconds = line.split()
            found[int(size)].append((float(seconds), lines))
            lines = []
        else:
            lines.append(line)
    return found


def kernels(graph, images):
    """What oneDNN really runs for one batch: Counter of (primitive, weight type, kernel).

    Read from its log of a second call; the weight type is s8 for INT8, bf16 or f32.
    """
    found = Counter()
    _, (_, lines) = onednn_log(graph, images, [len(images)], calls=2)[len(images)]
    for line in lines:
        words = line.split(",")
        if words[1:3] == ["primitive", "exec"] and words[4] in ("convolution", "matmul"):
            weights = re.search(r"wei_(\w+?):", line)
            found[words[4], weights[1], words[5]] += 1
    return found


def profile(graph, images, batch_sizes, calls=10):
    """Where the best of some calls goes: {batch size: (its time in ms, {(primitive, kind): ms})}.

    Read from oneDNN's own log. `kind` is the kernel size of a convolution, the data types of a
    reorder.
    """

    def spent(lines):
        found = Counter()
        for line in lines:
            words = line.split(",")
            if words[1:3] == ["primitive", "exec"]:  # "graph" lines are of several of these
                words = words[3:]
                found[words[1], _kind(words)] += float(words[-1])
        return found

    log = quantization.onednn_log(graph, images, batch_sizes, calls)
    best = {size: min(calls, key=lambda call: call[0]) for size, calls in log.items()}
    return {size: (1e3 * seconds, spent(lines)) for size, (seconds, lines) in best.items()}


def _kind(words):
    """What tells the uses of a primitive apart, from the words of a line of oneDNN's log."""
    size = re.search(r"kh(\d+).*?kw(\d+)", words[-2])
    if words[1] == "convolution" and size:
        return f"{size[1]}×{size[2]}"
    types = re.findall(r"(?:src|dst)_(\w+):", words[4])
    return " to ".join(types) if words[1] == "reorder" else ""
