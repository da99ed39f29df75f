"""Candidates measured side by side, and the result.json that comes of it."""

from helpers.benchmark.processes import *

# What each profile measures with. Rounds × candidates × batch sizes × seconds is the least time.
PROFILES = {
    "full": {"rounds": 12, "seconds": 1.0, "min_calls": 3},
    "quick": {"rounds": 5, "seconds": 0.3, "min_calls": 1},
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


WORKER_GIB, MOST = 2, 6  # what the process of one ResNet50 may need; processes at a time


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
