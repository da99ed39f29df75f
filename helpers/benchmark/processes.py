"""Candidates, and the processes that measure them."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers import UserError, files, machine

BF16_KNOBS = {
    "ITEX_AUTO_MIXED_PRECISION": "1",
    "ITEX_AUTO_MIXED_PRECISION_DATA_TYPE": "BFLOAT16",
}


@dataclass
class Candidate:
    """One thing to measure: a frozen graph and the environment its worker starts with.

    `stock` leaves ITEX's optimisers out, `cpus` are the logical CPUs the process is pinned to.
    A model of another `runtime` ("openvino", "onnxruntime") is made by helpers.peers.
    """

    name: str
    graph: Path
    knobs: dict = field(default_factory=dict)
    input_name: str | None = None
    output_name: str | None = None
    stock: bool = False
    cpus: tuple | None = None
    runtime: str = "tensorflow"

    def bytes(self):
        """The size of the model; OpenVINO keeps the weights in a file beside it."""
        weights = [self.graph.with_suffix(".bin")] if self.graph.suffix == ".xml" else []
        return sum(path.stat().st_size for path in [self.graph, *weights])


def candidates(fp32, int8, bf16=None, **names):
    """FP32, BF16 (the FP32 graph under ITEX auto mixed precision) and INT8, in this order.

    `bf16` None means: where the CPU has it. `names` may hold input_name and output_name.
    """
    chosen = [Candidate("FP32", Path(fp32), **names)]
    if machine.has_bf16() if bf16 is None else bf16:
        chosen.append(Candidate("BF16", Path(fp32), BF16_KNOBS, **names))
    return [*chosen, Candidate("INT8", Path(int8), **names)]


def environment(threads):
    """The environment of a process that measures: what is here, and the thread knobs."""
    return {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "OMP_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "KMP_BLOCKTIME": "1",  # ms; by default an idle worker spins into the next turn
        "_ONEDNN_CONSTANT_CACHE": "1",  # ITEX's default, which `helpers` switches off elsewhere
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }


class Worker:
    """A candidate's process; `ask` sends a request and waits for the answer."""

    def __init__(self, candidate, threads, log):
        self.name, self.log = candidate.name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        own = candidate.runtime == "tensorflow"
        python = sys.executable if own else peers.ENVIRONMENT / "bin" / "python"
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                [python, "-m", "helpers.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**environment(threads), **candidate.knobs},
            )
        job = dataclasses.asdict(candidate)
        self.tell({**job, "graph": str(candidate.graph), "threads": threads})

    def tell(self, request):
        with contextlib.suppress(BrokenPipeError):  # `hear` says that the process has ended
            print(json.dumps(request), file=self.process.stdin, flush=True)

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise UserError(
                f"The {self.name} process ended with status {status} (-9 is often too little "
                f"memory). Its log: {self.log}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"{self.name}: {answer['error']} Its log: {self.log}")
        return answer

    def ask(self, do, **request):
        self.tell({"do": do, **request})
        return self.hear()

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def workers_for(chosen, threads, logs):
    """Start a worker per candidate, give them by name; end them all however the block ends."""
    workers = {}
    try:
        for candidate in chosen:
            log = Path(logs) / f"worker_{candidate.name.lower().replace(' ', '_')}.log"
            workers[candidate.name] = Worker(candidate, threads, log)
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()


def predict(workers, inputs, batch_sizes, folder, most=200):
    """Give all workers the same inputs (N, …); outputs by name, kept as <folder>/<name>.npy.

    They are computed in batches of the largest of the sizes to be measured that there are inputs
    for, up to `most`: every other size would have to be compiled, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    most = min(most, len(inputs))
    sizes = [size for size in batch_sizes if size <= most] or [most]
    outputs = {}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as scratch:
        np.save(f"{scratch}/inputs.npy", inputs)
        for worker in workers.values():  # all at once: a graph is optimised on one core
            worker.tell({"do": "inputs", "path": f"{scratch}/inputs.npy", "batch_sizes": sizes})
        for worker in workers.values():
            worker.hear()
        for name, worker in workers.items():
            with files.whole(folder / f"{name}.npy") as part:
                worker.ask("predict", batch_size=max(sizes), to=str(part))
            outputs[name] = np.load(folder / f"{name}.npy")
    return outputs


def warm(workers, batch_sizes, seconds):
    """Warm up one worker after the other, in windows of a round's `seconds`, at most 0.3."""
    for worker in workers.values():
        for size in batch_sizes:
            worker.ask("warm", batch_size=size, seconds=min(0.3, seconds))


def run_rounds(workers, batch_sizes, rounds, seconds, min_calls, progress=True):
    """Interleaved timing: {name: {batch size: [durations (s) of the calls of each round]}}."""
    names = list(workers)
    times = {name: {size: [] for size in batch_sizes} for name in names}
    steps = tqdm(
        total=rounds * len(batch_sizes) * len(names),
        desc="Measuring",
        file=sys.stdout,
        ncols=78,
        mininterval=1,
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}",
        disable=not progress,
    )
    with steps:
        for index in range(rounds):
            for size in batch_sizes:
                for name in names if index % 2 == 0 else reversed(names):
                    durations = workers[name].ask(
                        "time", batch_size=size, seconds=seconds, min_calls=min_calls
                    )
                    times[name][size].append(durations)
                    steps.update()
    return times


def window(workers, batch_size, seconds):
    """All workers at once: (images per second together, durations (s) of the calls).

    Each calls from when it is told until the window ends; what counts is the share of a call that
    lies within the window, which opens once all are surely busy.
    """
    start = worker.CLOCK() + 0.05
    for one in workers:
        one.tell({"do": "window", "batch_size": batch_size, "end": start + seconds})
    calls = [call for one in workers for call in one.hear()]
    inside = [call for call in calls if call[1] > start and call[0] < start + seconds]
    done = sum(
        (min(end, start + seconds) - max(begin, start)) / (end - begin) for begin, end in inside
    )
    return batch_size * done / seconds, [end - begin for begin, end in inside]
