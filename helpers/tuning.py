"""What tuning needs beside the benchmark: groups of workers, common windows, clock and peaks."""

import ctypes
import mmap
import os
import re
from collections import Counter
from pathlib import Path

from helpers import UserError, benchmark, machine, models, quantization, report, worker

WORKER_GIB, MOST = 2, 6  # what the process of one ResNet50 may need; processes at a time
# Operations (a multiply-add is two) per cycle and core that each unit can start: AVX-512 two FMA
# units × 16 lanes, VNNI four times that; AMX a 16 × 16 tile times 64 bytes deep in 16 cycles.
# Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, chapters on AVX-512, AMX.
PEAKS = {
    "FP32": [("avx512f", 64), ("avx2", 32)],
    "BF16": [("amx_bf16", 1024), ("avx512_bf16", 128)],
    "INT8": [("amx_int8", 2048), ("avx512_vnni", 256), ("avx_vnni", 128)],
}


def groups(chosen):
    """The candidates in groups that fit into free memory together, the first one in each."""
    free = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    others = max(1, min(MOST, int(int(free[1]) / 2**20 / WORKER_GIB)) - 1)
    rest = chosen[1:]
    return [[chosen[0], *rest[i : i + others]] for i in range(0, len(rest), others)] or [chosen]


def get_ready(workers, inputs, batch_sizes, folder, seconds=0.3, strict=True):
    """Wait for the workers, compare their outputs with those of the first, and warm them up.

    `seconds` are those of a round, see `benchmark.warm`.

    Gives {name: `benchmark.agreement`}. Raises UserError where the outputs of a candidate do not
    match, or, unless `strict`, gives None for it.
    """
    for one in workers.values():
        one.hear()
    outputs = benchmark.predict(workers, inputs, batch_sizes, Path(folder) / "outputs")
    reference = next(iter(outputs.values()))
    agreements = {}
    for name in workers:
        try:
            agreements[name] = benchmark.agreement(reference, outputs[name], name)
        except UserError:
            if strict:
                raise
            agreements[name] = None
    benchmark.warm(workers, batch_sizes, seconds)
    return agreements


def measure(chosen, inputs, batch_sizes, folder, threads=None, strict=True, **effort):
    """Interleaved times of the candidates, each beside the first: {name: {batch size: entry}}.

    An entry has "ms" (best, p50, …), "fps" and "ratio" (`benchmark.ratio` to the first candidate,
    which runs along in every group that memory allows). "agreement" beside the sizes tells how
    far the outputs are those of the first; see `get_ready` for `strict`.
    """
    found = {}
    base = chosen[0].name
    for group in groups(chosen):
        with benchmark.workers_for(group, threads or machine.usable_cores(), folder) as workers:
            agreements = get_ready(workers, inputs, batch_sizes, folder, effort["seconds"], strict)
            times = benchmark.run_rounds(workers, batch_sizes, **effort)
        for name in workers:
            entry = {size: _entry(times, name, base, size) for size in batch_sizes}
            found.setdefault(name, {**entry, "agreement": agreements[name]})
    return found


def _entry(times, name, base, size):
    rounds = times[name][size]
    batch = benchmark.summarise(size, rounds)
    return {
        "ms": batch["latency_ms"],
        "fps": batch["throughput_fps"],
        "ratio": benchmark.ratio(name, base, size, rounds, times[base][size]),
    }


def times(found):
    """A ratio with its range as text; `found` is (median, low, high) or has these keys."""
    if isinstance(found, dict):
        found = [found[key] for key in ("median", "low", "high")]
    median, low, high = map(report.number, found)
    return f"{median} [{low} - {high}] times"


def verdict(found, chance=None):
    """'faster', 'slower' or 'no effect': the latter where the range of a ratio includes 1.

    With `chance`, the ratio of a process in which nothing was changed, also where they overlap.
    """
    if isinstance(found, dict):
        found = [found[key] for key in ("median", "low", "high")]
    low, high = (chance["low"], chance["high"]) if chance else (1, 1)
    if found[1] > max(1, high):
        return "faster"
    return "slower" if found[2] < min(1, low) else "no effect"


def cores():
    """One logical CPU of each physical core that this process may use, at most `usable_cores`."""
    first = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        first.setdefault(path.read_text() if path.exists() else cpu, cpu)
    return list(first.values())[: machine.usable_cores()]


def splits(cpus, most=8):
    """Ways to share CPUs evenly: {instances: [CPUs of each]}, with at most `most` instances."""
    counts = [n for n in range(1, min(most, len(cpus)) + 1) if len(cpus) % n == 0]
    return {n: [tuple(cpus[i::n]) for i in range(n)] for n in counts}


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


def operations(graph_def, shape):
    """Arithmetic operations per image of each convolution and matrix product: {name: count}.

    A multiply-add is two operations. `shape` is that of one input, without the batch.
    """
    import tensorflow as tf

    signature = models.find_signature(graph_def)
    graph = tf.Graph()
    with graph.as_default():
        one = tf.compat.v1.placeholder(signature.dtype, (1, *shape))
        tf.compat.v1.import_graph_def(graph_def, {signature.input: one}, name="")
    count = {}
    for node in graph.get_operations():
        if node.type == "Conv2D":
            kernel = node.inputs[1].shape
            count[node.name] = 2 * node.outputs[0].shape.num_elements() * kernel[:3].num_elements()
        elif node.type == "MatMul":
            left = node.inputs[0].shape[0 if node.get_attr("transpose_a") else 1]
            count[node.name] = 2 * node.outputs[0].shape.num_elements() * left
    return count


def peak(precision, ghz, number, flags=None):
    """(operations per second that `number` cores can start at `ghz`, the unit's CPU flag).

    None where the CPU has no unit for it.
    """
    flags = machine.isa_flags() if flags is None else flags
    for flag, per_cycle in PEAKS[precision]:
        if flag in flags:
            return per_cycle * ghz * 1e9 * number, flag
    return None


def clock_ghz(runs=40, loops=50_000):
    """The clock of this core now, from a chain of multiplications of 3 cycles each; or None.

    24 cycles a loop: eight `imul rax, rax`, each waiting for the one before (latency 3 on every
    Intel core since 2008, uops.info). The fastest of short runs is the one without interruption.
    None where the system does not let a process run code it wrote.
    """
    code = b"\x48\x89\xf9" + b"\x48\x0f\xaf\xc0" * 8 + b"\x48\xff\xc9\x75\xdb\xc3"
    try:
        page = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(code)
    run = ctypes.CFUNCTYPE(None, ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    best = min(sum(worker.time_calls(lambda: run(loops), 0, 1)) for _ in range(runs))
    return 24 * loops / best / 1e9


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
