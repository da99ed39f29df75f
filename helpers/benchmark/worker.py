"""One candidate in a process of its own: reads requests as JSON lines, answers the same way.

Started by helpers.benchmark.processes, which sets the environment first: thread counts and the
ITEX and oneDNN knobs are read only once, when TensorFlow is imported.
"""

import ctypes
import dataclasses
import gc
import itertools
import json
import os
import sys

import numpy as np

from helpers import UserError
from helpers.benchmark import runtimes
from helpers.benchmark.candidate import CLOCK

# A call that takes this long (s) does not show whether its data were in the caches: to fill 32 MB
# of them takes some milliseconds.
LONG = 0.5


def time_calls(call, seconds, min_calls):
    """Durations (s) of successive calls: at least `min_calls` of them and `seconds` in total."""
    durations = []
    end = CLOCK() + seconds
    while len(durations) < min_calls or CLOCK() < end:
        start = CLOCK()
        call()
        durations.append(CLOCK() - start)
    return durations


def window_calls(call, end):
    """Start and end (s, on the clock that all processes share) of calls until `end` has passed."""
    marks = [CLOCK()]
    while marks[-1] < end:
        call()
        marks.append(CLOCK())
    return list(itertools.pairwise(marks))


def warm_up(call, window_seconds, tolerance=0.05, limit_seconds=20.0):
    """Call until the best time of a window is within `tolerance` of the best before it.

    The first call (allocation, kernel choice, weight reordering) counts for no window. Gives the
    number of calls, whether they settled within the limit, and the best time (s).
    """
    call()
    calls, best = 1, float("inf")
    end = CLOCK() + limit_seconds
    while True:
        durations = time_calls(call, window_seconds, 1)
        calls += len(durations)
        settled = min(durations) > best * (1 - tolerance)
        best = min(best, *durations)
        if settled or CLOCK() > end:
            return {"calls": calls, "settled": settled, "best": best}


def aligned(array):
    """A copy of the array whose data starts at a multiple of 64 bytes.

    Such an array TensorFlow reads where it is; any other it copies first, at every call.
    """
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Server:
    """Answers requests about one graph; the methods without underscore are the requests."""

    def __init__(self, graph):
        self._graph, self._images, self._batches = graph, None, {}
        self._best = {}  # batch size -> the quickest call (s) so far

    def _call(self, size):
        """What calls the graph with a batch of the first images, repeated where they are few."""
        if size not in self._batches:
            rows = np.resize(np.arange(len(self._images)), size)
            dtype = self._graph.signature.dtype
            self._batches[size] = aligned(np.asarray(self._images[rows], dtype))
        batch = self._batches[size]
        return lambda: self._graph(batch)

    def inputs(self, path, batch_sizes):
        """Take the images in an .npy file, and compile for the batch sizes."""
        self._images, self._batches = np.load(path), {}
        for size in batch_sizes:
            self._call(size)()
        ctypes.CDLL(None).malloc_trim(0)  # to optimise ResNet50 took 0.5 GB more than it keeps

    def predict(self, batch_size, to):
        """Write the outputs for all images into an .npy file."""
        inputs = np.asarray(self._images, self._graph.signature.dtype)
        with open(to, "wb") as file:
            np.save(file, self._graph.predict(inputs, batch_size))

    def warm(self, batch_size, seconds):
        warmed = warm_up(self._call(batch_size), seconds)
        self._best[batch_size] = warmed["best"]
        return warmed

    def time(self, batch_size, seconds, min_calls):
        """Durations (s), after one call that is not counted: its data were out of the caches.

        Where calls are LONG that one is of the smallest batch, which brings the weights back.
        """
        call = self._call(batch_size)
        long = self._best.get(batch_size, 0) > LONG
        self._call(min(self._batches) if long else batch_size)()
        durations = time_calls(call, seconds, min_calls)
        self._best[batch_size] = min(self._best.get(batch_size, float("inf")), *durations)
        return durations

    def window(self, batch_size, end):
        return window_calls(self._call(batch_size), end)

    def kernels(self, batch_size):
        """What the runtime executes for a call: see `runtimes.TensorFlow.kernels`."""
        return self._graph.kernels(self._call(batch_size))


def serve(graph, requests, answer):
    """Say what `graph` is, then answer each request until the requests end."""
    answer({"value": {**graph.facts, **dataclasses.asdict(graph.signature)}})
    server = Server(graph)
    for line in requests:
        request = json.loads(line)
        answer({"value": getattr(server, request.pop("do"))(**request)})


def main():
    gc.disable()  # as timeit does: no collection within a timed call (and imports are faster)
    # TensorFlow's libraries print to descriptor 1 too: keep the answers on a copy of it
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value):
        print(json.dumps(value), file=answers)

    try:
        serve(runtimes.load(json.loads(sys.stdin.readline())), sys.stdin, answer)
    except UserError as error:
        answer({"error": str(error)})
    except Exception as error:  # told to the reader by the parent; the whole of it is in the log
        text = (str(error).strip() or "no further word").splitlines()[0][:300]
        answer({"error": f"{type(error).__name__}: {text}"})
        raise


if __name__ == "__main__":
    main()
