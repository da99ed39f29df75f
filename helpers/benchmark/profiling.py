"""What single calls of a graph execute, and for how long."""

import contextlib
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from helpers import machine
from helpers.benchmark.candidate import Candidate
from helpers.benchmark.kernels import Primitive
from helpers.benchmark.processes import teams_for


def ask(worker, batch_size, calls=1):
    """Have a worker execute some calls and tell of the quickest: (ms, [Primitive])."""
    answers = [worker.ask("kernels", batch_size=batch_size) for _ in range(calls)]
    best = min(answers, key=lambda answer: answer["ms"] or 0)
    return best["ms"], [Primitive(*words) for words in best["primitives"]]


def profile(graph, images, batch_sizes, calls=10, threads=None, **how):
    """Where the quickest of some calls goes: {batch size: (ms, [Primitive])}.

    `graph` is a frozen graph, run by TensorFlow in a process of its own; `how` are fields of
    Candidate. Raises UserError when that process cannot run it or dies.
    """
    with opened("profiled", graph, images, batch_sizes, threads, how) as (team, _):
        return {size: ask(team.worker(size), size, calls) for size in batch_sizes}


@contextlib.contextmanager
def opened(name, graph, images, batch_sizes, threads, how):
    """The Team of one process that holds a graph and images, compiled for sizes, and a folder."""
    candidate = Candidate(name, Path(graph), **how)
    with tempfile.TemporaryDirectory(prefix="asked_") as scratch:
        np.save(f"{scratch}/inputs.npy", images)
        with teams_for([candidate], threads or machine.usable_cores(), scratch) as teams:
            team = teams[name]
            team.start()
            team.each("inputs", path=f"{scratch}/inputs.npy", batch_sizes=list(batch_sizes))
            yield team, scratch


def executed_kernels(graph, images):
    """What oneDNN runs for one batch of `images`: Counter of (primitive, weight type, kernel)."""
    _, executed = profile(graph, images, [len(images)], calls=1)[len(images)]
    return Counter((one.primitive, one.weights, one.kernel) for one in executed if one.weights)


def outputs(graph, images, batch_size=32, threads=None, **how):
    """What a frozen graph gives for images (N, …): an array (N, …), as `profile` runs it.

    Raises ProcessEnded when native code ends that process, UserError for anything else.
    """
    with opened("asked", graph, images, [], threads, how) as (team, scratch):
        size = min(batch_size, len(images))
        team.each("predict", batch_size=size, to=f"{scratch}/outputs.npy")
        return np.load(f"{scratch}/outputs.npy")
