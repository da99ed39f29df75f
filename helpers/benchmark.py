"""Throughput and latency of frozen graphs, measured side by side.

Every candidate runs in a worker process of its own through the same code. Rounds are interleaved
(A B C, C B A, …) so that whatever else the machine does hits all candidates alike, and ratios are
taken within a round. `python -m helpers.benchmark --help` is the command line.
"""

import argparse
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
from tqdm import tqdm

from helpers import UserError, datasets, files, machine, models, peers, report

# What each profile measures with. Rounds × candidates × batch sizes × seconds is the least time.
PROFILES = {
    "full": {"rounds": 12, "seconds": 1.0, "min_calls": 3},
    "quick": {"rounds": 5, "seconds": 0.3, "min_calls": 1},
}
BF16_KNOBS = {
    "ITEX_AUTO_MIXED_PRECISION": "1",
    "ITEX_AUTO_MIXED_PRECISION_DATA_TYPE": "BFLOAT16",
}
GARBAGE_SQNR_DB = 3.0
STEADY_SPREAD_PERCENT = 10.0
STEADY_SLOWDOWN_PERCENT = 25.0


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


def sqnr_db(reference, values):
    """Signal-to-quantization-noise ratio 10·log10(Σ ref² / Σ (ref − values)²) in dB."""
    reference, values = np.asarray(reference, np.float64), np.asarray(values, np.float64)
    noise = np.square(reference - values).sum()
    return float("inf") if noise == 0 else 10 * float(np.log10(np.square(reference).sum() / noise))


def agreement(reference, values, name, least_sqnr_db=GARBAGE_SQNR_DB):
    """How far two outputs (N, classes) on the same inputs agree: {"top1": share, "sqnr_db": dB}.

    Raises UserError when `values` is garbage: another shape, not finite, or an error with more
    than half the power of the signal (SQNR below 3 dB, or the ratio given).
    """
    if values.shape != reference.shape:
        raise UserError(f"{name} gives outputs {values.shape}, FP32 gives {reference.shape}.")
    if not np.isfinite(reference).all():
        raise UserError("FP32 gives outputs that are not finite; nothing was timed.")
    if not np.isfinite(values).all():
        raise UserError(f"{name} gives outputs that are not finite; it was not timed.")
    sqnr = sqnr_db(reference, values)
    if sqnr < least_sqnr_db:
        raise UserError(
            f"{name} does not compute what FP32 computes (SQNR {sqnr:.1f} dB on the same inputs, "
            f"at least {least_sqnr_db:.0f} dB wanted); it was not timed. Were the inputs like "
            "those it was calibrated on? --inputs gives your own."
        )
    rows = len(reference)
    same = reference.reshape(rows, -1).argmax(1) == values.reshape(rows, -1).argmax(1)
    return {"top1": float(same.mean()), "sqnr_db": round(min(sqnr, 200.0), 2)}


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


def summarise(batch_size, rounds):
    """The `batches` entry of result.json for the durations (s) of all rounds at one batch size."""
    calls = np.concatenate([np.asarray(durations) for durations in rounds])
    p50, p90, p99 = np.percentile(calls, [50, 90, 99]) * 1e3
    return {
        "batch_size": batch_size,
        "calls": len(calls),
        "throughput_fps": batch_size * len(calls) / calls.sum(),
        "latency_ms": {
            "p50": p50,
            "p90": p90,
            "p99": p99,
            "best": calls.min() * 1e3,
            "mean": calls.mean() * 1e3,
        },
    }


def interval(values, seed=0, draws=2000):
    """Median and the 95 % bootstrap interval of the median: (median, low, high).

    Method: percentile bootstrap (Efron), resampling the rounds.
    """
    values = np.asarray(values)
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def ratio(candidate, baseline, batch_size, rounds, base_rounds):
    """The `ratios` entry of result.json: candidate against baseline, round by round.

    throughput_times compares images per second (> 1 is faster), latency_times the median call
    (< 1 is faster); "best" compares the best calls of all rounds.
    """
    pairs = [(np.asarray(c), np.asarray(b)) for c, b in zip(rounds, base_rounds, strict=True)]
    best = min(c.min() for c, _ in pairs) / min(b.min() for _, b in pairs)

    def entry(values, best_value):
        median, low, high = interval(values)
        return {"median": median, "low": low, "high": high, "best": float(best_value)}

    return {
        "candidate": candidate,
        "baseline": baseline,
        "batch_size": batch_size,
        "throughput_times": entry([b.mean() / c.mean() for c, b in pairs], 1 / best),
        "latency_times": entry([np.median(c) / np.median(b) for c, b in pairs], best),
    }


def noise_verdict(ratios, batches):
    """Whether the ratios can be quoted: {"verdict": "steady" | "noisy", …}.

    spread_percent: the widest interval of a ratio, in percent of its median (chance between
    rounds). slowdown_percent: by how much the median call takes longer than the best one, at
    worst (something held the machine back most of the time). Neighbours on a virtual machine that
    slow all calls down evenly cannot be seen from inside it.
    """
    spread = max(
        100 * (entry["high"] - entry["low"]) / entry["median"]
        for one in ratios
        for entry in (one["throughput_times"], one["latency_times"])
    )
    calls = [batch["latency_ms"] for batch in batches]
    slowdown = max(100 * (one["p50"] / one["best"] - 1) for one in calls)
    steady = spread <= STEADY_SPREAD_PERCENT and slowdown <= STEADY_SLOWDOWN_PERCENT
    return {
        "verdict": "steady" if steady else "noisy",
        "spread_percent": round(spread, 1),
        "slowdown_percent": round(slowdown, 1),
    }


def compare(
    chosen,
    output,
    model,
    inputs=None,
    labels=None,
    batch_sizes=(1, 32),
    profile="full",
    threads=None,
    settings=None,
    progress=True,
    least_sqnr_db=GARBAGE_SQNR_DB,
    **effort,
):
    """Measure the candidates against the first of them; write and give back `result.json`.

    `inputs` (N, …) are what all candidates run on (dummy images of the graph's input shape where
    None); with `labels` (N,) the accuracy of each is reported too. `effort` overrides the
    profile's rounds, seconds (per round, candidate and batch size) or min_calls. `settings` adds
    to what result.json says of the run. `least_sqnr_db` of −inf lets graphs pass that are known
    to compute something else. Raises UserError for a graph that cannot run, for outputs
    that do not match the baseline's, and when a worker process dies.
    """
    effort = {**PROFILES[profile], **effort}
    threads = threads or machine.usable_cores()
    output = Path(output)
    batch_sizes = sorted(set(batch_sizes))
    baseline = chosen[0].name
    software = machine.software()
    with workers_for(chosen, threads, output / "logs") as workers:
        loaded = {name: worker.hear() for name, worker in workers.items()}
        for one in loaded.values():
            software.update(one["software"])
        if inputs is None:
            inputs = dummy_inputs(loaded[baseline], count=max(64, *batch_sizes))
        outputs = predict(workers, inputs, batch_sizes, output / "predictions")
        agreements = {
            name: agreement(outputs[baseline], values, name, least_sqnr_db)
            for name, values in outputs.items()
            if name != baseline
        }
        warm(workers, batch_sizes, effort["seconds"])
        times = run_rounds(workers, batch_sizes, progress=progress, **effort)
    ratios = [
        ratio(name, base, size, times[name][size], times[base][size])
        for name, base in pairs(chosen)
        for size in batch_sizes
    ]
    measured = [
        {
            "name": one.name,
            "graph": os.path.relpath(one.graph, output),
            "bytes": one.bytes(),
            "runtime": one.runtime,
            "knobs": one.knobs,
            "layers": loaded[one.name]["layers"],
            "batches": [summarise(size, times[one.name][size]) for size in batch_sizes],
            "accuracy": accuracy(outputs[one.name], labels),
        }
        for one in chosen
    ]
    result = {
        "schema": 1,
        "model": model,
        "profile": profile,
        "created": machine.now(),
        "machine": {**machine.describe(), "device": loaded[baseline]["device"]},
        "software": software,
        "settings": {"threads": threads, "batch_sizes": batch_sizes, **effort, **(settings or {})},
        "candidates": measured,
        "ratios": ratios,
        "agreement": agreements,
        "noise": noise_verdict(ratios, [b for one in measured for b in one["batches"]]),
    }
    files.write_json(output / "result.json", result)
    return result


def pairs(chosen):
    """What is divided by what: all by the first, and our last by each peer."""
    own = [one.name for one in chosen if one.runtime == "tensorflow"]
    others = [one.name for one in chosen if one.runtime != "tensorflow"]
    return [(one.name, chosen[0].name) for one in chosen[1:]] + [(own[-1], name) for name in others]


def dummy_inputs(loaded, count, seed=0):
    """Dummy images for the input that a worker reported; UserError where its shape is unknown."""
    shape = loaded["shape"]
    if shape is None or None in shape:
        raise UserError(
            f"The shape of input '{loaded['input']}' is not in the graph ({shape}). "
            "Give it, without the batch: --shape 224,224,3"
        )
    if len(shape) == 3:
        return datasets.dummy_images(count, *shape, seed=seed)
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)


def accuracy(outputs, labels):
    """Share of outputs (N, classes) whose largest entry is the label; None without labels."""
    if labels is None:
        return None
    return {"top1": float((outputs.argmax(1) == labels).mean()), "images": len(labels)}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m helpers.benchmark",
        description="Compare frozen TensorFlow graphs (FP32, BF16, INT8) side by side.",
    )
    add = parser.add_argument
    add("--fp32", required=True, type=Path, help="frozen FP32 graph (.pb)")
    add("--int8", required=True, type=Path, help="frozen INT8 graph (.pb)")
    add("--bf16", action="store_true", help="also the FP32 graph under auto mixed precision")
    add("--peers", action="store_true", help="also OpenVINO and ONNX Runtime (set_env.sh --peers)")
    add("--calibration", type=Path, help="images for --peers as .npy; default: dummy images")
    add("--settings", type=Path, metavar="FILE", help="threads, batch sizes, knobs of notebook 06")
    add("--batch-size", type=int, nargs="+", metavar="N", help="default: 1 32")
    add("--seconds", type=float, help="per round, candidate and batch size")
    add("--rounds", type=int, help="interleaved rounds")
    add("--quick", action="store_true", help="fewer and shorter rounds")
    add("--threads", type=int, help="default: physical cores this process may use")
    add("--inputs", type=Path, help="inputs as .npy (N, …); default: dummy images")
    add("--shape", help="shape of one input where the graph does not tell, e.g. 224,224,3")
    add("--input-name", help="where the graph has several inputs")
    add("--output-name", help="where the graph has several outputs")
    add("--output", type=Path, default=Path("outputs/benchmark"), metavar="DIR")
    options = parser.parse_args(arguments)
    effort = {"seconds": options.seconds, "rounds": options.rounds}
    effort = {key: value for key, value in effort.items() if value is not None}
    asked = [*(options.batch_size or [1]), *effort.values(), options.threads or 1]
    if min(asked) <= 0 or options.threads == 0:
        parser.error("batch sizes, rounds, seconds and threads must be positive")
    if options.peers and options.inputs and not options.calibration:
        parser.error("--peers with --inputs needs --calibration: training images as .npy")
    try:
        tuned = read_settings(options.settings) if options.settings else {}
        batch_sizes = options.batch_size or tuned.get("batch_sizes", [1, 32])
        inputs = None
        if options.inputs:
            inputs = load_inputs(options.inputs)
        elif options.shape:
            shape = [int(size) for size in options.shape.split(",")]
            inputs = dummy_inputs({"shape": shape}, max(64, *batch_sizes))
        chosen = candidates(
            options.fp32,
            options.int8,
            bf16=options.bf16,
            input_name=options.input_name,
            output_name=options.output_name,
        )
        for one in chosen:
            one.knobs = {**tuned.get("knobs", {}), **one.knobs}
        if options.peers:
            chosen += peer_candidates(options)
        result = compare(
            chosen,
            options.output,
            options.fp32.stem,
            inputs=inputs,
            batch_sizes=batch_sizes,
            profile="quick" if options.quick else "full",
            threads=options.threads or tuned.get("threads"),
            settings={"data": str(options.inputs or "dummy images")},
            **effort,
        )
        report.show(result, options.output)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted; nothing was written.")


def peer_candidates(options):
    """The peers' candidates for the command line's options."""
    if peers.absent():
        raise UserError(peers.absent())
    names = (options.input_name, options.output_name)
    if options.calibration:
        images = load_inputs(options.calibration)
    else:
        shape = options.shape and [int(size) for size in options.shape.split(",")]
        shape = shape or models.find_signature(models.read_graph(options.fp32), *names).shape
        images = dummy_inputs({"input": names[0], "shape": shape}, 16, seed=1)
    return peers.candidates(options.fp32, images, options.output / "models" / "peers", *names)


SETTINGS = {"threads": int, "batch_sizes": list, "knobs": dict, "notes": dict}


def read_settings(path):
    """What notebook 06 chose: threads, batch_sizes, knobs (environment variables), notes.

    All are optional; `notes` is not used. Raises UserError for a file that is something else.
    """
    try:
        settings = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as settings: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings: an object with {', '.join(SETTINGS)}.")
    for name, value in settings.items():
        if name not in SETTINGS:
            raise UserError(
                f"{path}: there is no setting '{name}'. There are: {', '.join(SETTINGS)}."
            )
        numbers = value if name == "batch_sizes" else [value] if name == "threads" else [1]
        texts = [*value, *value.values()] if name == "knobs" and isinstance(value, dict) else []
        if (
            type(value) is not SETTINGS[name]
            or not numbers
            or not all(type(one) is int and one > 0 for one in numbers)
            or not all(type(one) is str for one in texts)
        ):
            raise UserError(f"{path}: {json.dumps(value)} will not do for '{name}'.")
    return settings


def load_inputs(path):
    """The array in an .npy file; UserError when it is not one."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a NumPy array: {error}") from error


if __name__ == "__main__":
    main()
