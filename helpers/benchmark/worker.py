"""One candidate in a process of its own: reads commands as JSON lines, answers the same way.

Started by helpers.benchmark, which sets the environment first: thread counts and the ITEX and
oneDNN knobs are read only once, when TensorFlow is imported.
"""

import dataclasses
import gc
import itertools
import json
import os
import sys
import time

import numpy as np

from helpers import UserError, machine, quantization

CLOCK = time.perf_counter


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

    Windows have at least 2 calls; the first call (allocation, kernel choice, weight reordering)
    counts for none. Gives the number of calls and whether they settled within the limit.
    """
    call()
    calls, best = 1, float("inf")
    end = CLOCK() + limit_seconds
    while True:
        window = time_calls(call, window_seconds, 2)
        calls += len(window)
        settled = min(window) > best * (1 - tolerance)
        best = min(best, *window)
        if settled or CLOCK() > end:
            return {"calls": calls, "settled": settled}


def aligned(array):
    """A copy of the array whose data starts at a multiple of 64 bytes.

    Such an array TensorFlow reads where it is; any other it copies first, at every call.
    """
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def load(job):
    """The graph of `job` in its runtime, to be called with a batch, and what to tell of it."""
    if job["cpus"]:
        os.sched_setaffinity(0, job["cpus"])
    if job["runtime"] == "tensorflow":
        from helpers.models import FrozenGraph

        names = job["input_name"], job["output_name"]
        graph = FrozenGraph(job["graph"], *names, stock=job["stock"])
        layers = quantization.layers(graph.session.graph.as_graph_def())
        counts = {"int8": sum(layer.int8 for layer in layers), "all": len(layers)}
        return graph, {"software": {"onednn": machine.onednn_version()}, "layers": counts}
    from helpers import peers

    graph = peers.RUNTIMES[job["runtime"]](job["graph"], job["threads"])
    return graph, {"software": graph.software, "layers": graph.layers()}


def serve(job, requests, answer):
    """Load the graph of `job`, then answer each request until the requests end."""
    graph, facts = load(job)
    images, batches = None, {}

    def batch(size):
        if size not in batches:
            rows = np.resize(np.arange(len(images)), size)
            batches[size] = aligned(np.asarray(images[rows], graph.signature.dtype))
        return batches[size]

    answer({"device": graph.device, **facts, **dataclasses.asdict(graph.signature)})
    for line in requests:
        request = json.loads(line)
        if request["do"] == "inputs":
            images = np.load(request["path"])
            for size in request["batch_sizes"]:
                graph(batch(size))
            answer({})
        elif request["do"] == "predict":
            inputs = np.asarray(images, graph.signature.dtype)
            with open(request["to"], "wb") as file:
                np.save(file, graph.predict(inputs, request["batch_size"]))
            answer({})
        elif request["do"] == "warm":
            x = batch(request["batch_size"])
            answer(warm_up(lambda x=x: graph(x), request["seconds"]))
        elif request["do"] == "window":
            x = batch(request["batch_size"])
            answer(window_calls(lambda x=x: graph(x), request["end"]))
        else:
            x = batch(request["batch_size"])
            answer(time_calls(lambda x=x: graph(x), request["seconds"], request["min_calls"]))


def main():
    gc.disable()  # as timeit does: no collection within a timed call (and imports are faster)
    # TensorFlow's libraries print to descriptor 1 too: keep the answers on a copy of it
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value):
        print(json.dumps(value), file=answers)

    try:
        serve(json.loads(sys.stdin.readline()), sys.stdin, answer)
    except UserError as error:
        answer({"error": str(error)})
    except Exception as error:  # told to the reader by the parent; the whole of it is in the log
        answer({"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"})
        raise
