"""Candidates measured side by side, and the result.json that comes of it."""

import sys
import tempfile
from pathlib import Path

import numpy as np

from helpers import UserError, datasets, files, graphs, machine, stats
from helpers.benchmark import kernels
from helpers.benchmark.candidate import CLOCK, OWN, refuse_bf16
from helpers.benchmark.processes import teams_for
from helpers.benchmark.result import SCHEMA

# What each profile measures with: seconds per turn, and rounds until every ratio is resolved, or
# no more of them fit into the time limit (seconds of measuring).
PROFILES = {
    "full": {"seconds": 1.0, "min_calls": 2, "min_rounds": 7, "max_rounds": 200, "limit": 240},
    "quick": {"seconds": 0.3, "min_calls": 1, "min_rounds": 7, "max_rounds": 100, "limit": 60},
}
PILOT_SECONDS = 0.3  # a variant's turn, of which there are three, to find the fastest
CLEARLY = 0.05  # by which share of the time another variant has to be quicker to be taken
OPTIMISING = 1.6  # what a process needs of memory while its graph is optimised, times what it keeps
OUTPUTS = 200  # images per call at most when outputs are compared


class Field:
    """The teams of one measurement; one whose candidate is not required may drop out."""

    def __init__(self, teams):
        self.teams, self.failed = teams, {}

    def each(self, step):
        """step(team) for every team that is left; {name: what it gives}."""
        given = {}
        for name in list(self.teams):
            try:
                given[name] = step(self.teams[name])
            except UserError as error:
                self.drop(name, error)
        return given

    def drop(self, name, error):
        """Go on without a team that failed; raise the error where its candidate is required."""
        if self.teams[name].candidate.required:
            raise error
        self.failed[name] = str(error)
        self.teams.pop(name).stop()


def measure(
    chosen,
    folder,
    inputs=None,
    labels=None,
    batch_sizes=(1, 32),
    profile="full",
    threads=None,
    least_sqnr_db=stats.GARBAGE_SQNR_DB,
    progress=True,
    beside=1,
    **effort,
):
    """Measure candidates against the first of them; the parts of result.json that it takes.

    {"candidates", "ratios", "agreement", "noise", "failed", "software", "device"}. What `compare`
    says of its arguments is true here. Where memory does not hold all candidates at a time they
    are measured in groups, each beside the first `beside` ones, the baseline and controls, whose
    ratios are in `ratios` once for each group.
    """
    effort = effort_of(profile, effort)
    threads = threads or machine.usable_cores()
    batch_sizes = sorted(set(batch_sizes))
    ready, failed = ready_to_start(chosen)
    whole = {"candidates": {}, "ratios": [], "agreement": {}, "failed": failed, "rounds": []}
    for number, group in enumerate(groups(ready, beside)):
        effort_here = {**effort, "limit": effort["limit"] * len(group) / max(1, len(ready))}
        with teams_for(group, threads, Path(folder) / "logs") as teams:
            field = Field(teams)
            part = measure_group(
                field, folder, inputs, labels, batch_sizes, least_sqnr_db, effort_here, progress
            )
        known = set(whole["candidates"])
        again = known - {candidate.name for candidate in group[:beside]}
        ratios = without_repeated(part["ratios"], again, known)
        part["ratios"] = [{**entry, "group": number} for entry in ratios]
        for key, value in part.items():
            if isinstance(value, dict):  # what is in every group stays as it was in the first
                whole[key] = {**value, **whole.get(key, {})}
            else:
                whole[key] = whole[key] + value
        whole["failed"] |= field.failed
    rounds = whole.pop("rounds")
    whole["noise"] = stats.noise(whole["ratios"], rounds)
    order = [candidate.name for candidate in chosen]
    whole["candidates"] = sorted(
        whole["candidates"].values(), key=lambda entry: order.index(entry["name"])
    )
    return whole


def without_repeated(ratios, again, known):
    """The ratios of a group but those of candidates measured `again` by what is `known`."""
    return [r for r in ratios if not (r["candidate"] in again and r["baseline"] in known)]


def effort_of(profile, effort):
    """What PROFILES says of a profile, overridden by what is not None in `effort`."""
    return {**PROFILES[profile], **{key: what for key, what in effort.items() if what is not None}}


def ready_to_start(chosen):
    """The candidates that this CPU can run, and why each of the others cannot."""
    ready, failed = [], {}
    for candidate in chosen:
        try:
            refuse_bf16(candidate)
            if candidate.refused:
                raise UserError(candidate.refused)
            ready.append(candidate)
        except UserError as error:
            if candidate.required:
                raise
            failed[candidate.name] = str(error)
    return ready, failed


def groups(chosen, beside=1):
    """The candidates in groups that fit into memory together, the first `beside` ones in each.

    So is the last of ours where others follow, which are compared with it.
    """
    always = chosen[:beside] + [one for one in compared(chosen) if one not in chosen[:beside]]
    rest = [candidate for candidate in chosen if candidate not in always]
    room = machine.available_memory() - sum(candidate.gib for candidate in always)
    parts, used = [[]], 0.0
    for candidate in rest:
        if parts[-1] and used + candidate.gib > room:
            parts.append([])
            used = 0.0
        parts[-1].append(candidate)
        used += candidate.gib
    return [[one for one in chosen if one in always or one in part] for part in parts]


def compared(chosen):
    """Our last candidate, in a list, where there are those of other runtimes to compare it with."""
    own = [candidate for candidate in chosen if candidate.runtime == "tensorflow"]
    return own[-1:] if len(own) < len(chosen) else []


def measure_group(field, folder, inputs, labels, batch_sizes, least_sqnr_db, effort, progress):
    """All of a measurement for teams that run at the same time."""
    field.each(lambda team: team.start())
    baseline = next(iter(field.teams))
    if inputs is None:
        inputs = dummy_inputs(
            [team.candidate for team in field.teams.values()],
            field.teams[baseline].facts,
            count=max(64, *batch_sizes),
        )
    outputs = predict(field, inputs, batch_sizes, Path(folder) / "predictions")
    agreements = field.each(
        lambda team: stats.agreement(
            outputs[baseline], outputs[team.name], team.name, least_sqnr_db
        )
    )
    field.each(lambda team: warm(team, batch_sizes, effort["seconds"]))
    pilots = field.each(lambda team: choose_variants(team, batch_sizes))
    executed = field.each(lambda team: prove(team, max(batch_sizes)))
    rounds = run_rounds(field, batch_sizes, effort, progress)
    teams = field.teams
    return {
        "candidates": {
            name: {
                **entry_of(team, executed[name], pilots[name]),
                "graph": team.candidate.graph.name,
                "batches": [stats.summarise(size, rounds[name, size]) for size in batch_sizes],
                "accuracy": stats.accuracy(outputs[name], labels),
            }
            for name, team in teams.items()
        },
        "ratios": ratios_of(teams, rounds, batch_sizes),
        "agreement": {name: agreements[name] for name in teams if name != baseline},
        "rounds": [rounds[name, size] for name in teams for size in batch_sizes],
        "software": {k: v for team in teams.values() for k, v in team.facts["software"].items()},
        "device": {"device": teams[baseline].facts["device"]},
    }


def entry_of(team, executed, pilots):
    """What the `candidates` entry of a team says beside its times."""
    candidate = team.candidate
    return {
        "name": candidate.name,
        "bytes": candidate.bytes,
        "runtime": candidate.runtime,
        "knobs": candidate.knobs,
        "environment": team.facts["environment"],
        "instances": len(candidate.instances) or 1,
        "sha256": files.sha256(candidate.graph),
        "layers": team.facts["layers"],
        "kernels": executed["kernels"],
        "kernels_source": executed["source"],
        "variants": pilots,
    }


def predict(field, inputs, batch_sizes, folder):
    """Give all teams the same inputs (N, …); outputs by name, kept as <folder>/<name>.npy.

    They are computed in batches of the largest of the sizes to be measured that there are inputs
    for, up to OUTPUTS: every other size would have to be compiled, too. Raises UserError where a
    variant computes something else than its candidate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    most = min(OUTPUTS, len(inputs))
    sizes = [size for size in batch_sizes if size <= most] or [most]
    outputs = {}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as scratch:
        np.save(f"{scratch}/inputs.npy", inputs)
        request = {"do": "inputs", "path": f"{scratch}/inputs.npy", "batch_sizes": sizes}
        needed = sum(team.candidate.gib for team in field.teams.values())
        if OPTIMISING * needed < machine.available_memory():
            for team in field.teams.values():  # all at once: a graph is optimised on one core
                for worker in team.workers:
                    worker.tell(request)
            field.each(lambda team: [worker.hear() for worker in team.workers])
        else:
            field.each(lambda team: [worker.ask(**request) for worker in team.workers])

        def ask(team):
            for number, worker in enumerate(team.workers):
                path = folder / f"{team.name}.npy" if not number else Path(scratch) / "variant.npy"
                with files.whole(path) as part:
                    worker.ask("predict", batch_size=max(sizes), to=str(part))
                values = np.load(path)
                if number:
                    stats.agreement(outputs[team.name], values, f"{team.name}, process {number}")
                else:
                    outputs[team.name] = values

        field.each(ask)
    return outputs


def prove(team, batch_size):
    """Ask the runtime what it executes; UserError when that is not what the name says."""
    worker = team.worker(batch_size)
    answer = worker.ask("kernels", batch_size=batch_size)
    layers = [kernels.Primitive(*words) for words in answer["primitives"]]
    entry = kernels.by_weights(layers, answer["ms"])
    mistake = kernels.mistake(team.candidate, entry)
    if mistake:
        raise UserError(f"{mistake} It was not timed. Its log: {worker.log}")
    return {"kernels": entry, "source": answer["source"]}


def warm(team, batch_sizes, seconds):
    """Warm up every process of a team, in windows of a turn's `seconds`, at most 0.3."""
    for worker in team.workers:
        for size in batch_sizes:
            worker.ask("warm", batch_size=size, seconds=min(0.3, seconds))


def choose_variants(team, batch_sizes):
    """Time the variants of a candidate in turns, best of calls; the faster one stays at each size.

    What result.json says of them: [{"batch_size", "variant" that is measured, "best_ms": of each}].
    """
    if not team.candidate.variants:
        return []
    names = [candidate.variant for candidate in (team.candidate, *team.candidate.variants)]
    entries = []
    for size in batch_sizes:
        best = [float("inf")] * len(names)
        for number in [*range(len(names)), *reversed(range(len(names))), *range(len(names))]:
            request = {"batch_size": size, "seconds": PILOT_SECONDS / 3, "min_calls": 1}
            best[number] = min(best[number], *team.workers[number].ask("time", **request))
        clear = min(best) < (1 - CLEARLY) * best[0]  # else it stays with the first
        team.fastest[size] = best.index(min(best)) if clear else 0
        times = {name: round(1e3 * seconds, 4) for name, seconds in zip(names, best)}
        entries.append({"batch_size": size, "variant": names[team.fastest[size]], "best_ms": times})
    return entries


def run_rounds(field, batch_sizes, effort, progress=True):
    """Interleaved timing: {(name, batch size): [Round]}.

    The order of the teams is turned round in every second round (A B C, C B A), so that whatever
    else the machine does hits all alike. A batch size is done when the ratios at it are resolved;
    all end when the time limit is reached or after `max_rounds`.
    """
    rounds = {(name, size): [] for name in field.teams for size in batch_sizes}
    open_sizes, start = list(batch_sizes), CLOCK()
    with bar(progress) as show:
        for number in range(effort["max_rounds"]):
            for size in list(open_sizes):
                for name in turns(field.teams, number):
                    try:
                        turn = field.teams[name].turn(size, effort["seconds"], effort["min_calls"])
                        rounds[name, size].append(turn)
                    except UserError as error:
                        field.drop(name, error)
                spent = CLOCK() - start
                enough = number + 1 >= effort["min_rounds"]
                if enough and all(
                    entry["resolved"] for entry in ratios_of(field.teams, rounds, [size])
                ):
                    open_sizes.remove(size)
            show(number + 1, spent / effort["limit"])
            late = spent * (number + 2) / (number + 1) > effort["limit"]
            if not open_sizes or (late and enough):
                break
        show(number + 1, 1)
    return rounds


def turns(teams, number):
    """The names of the teams in the order of a round."""
    return list(teams) if number % 2 == 0 else list(reversed(teams))


class bar:
    """A progress bar of the time that measuring may take; it ends early where all is resolved."""

    def __init__(self, shown):
        from tqdm import tqdm

        self.steps = tqdm(
            total=100,
            desc="Measuring",
            file=sys.stdout,
            ncols=78,
            mininterval=1,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}",
            disable=not shown,
        )

    def __enter__(self):
        return self.show

    def show(self, rounds, share):
        self.steps.n = min(100, 100 * share)
        self.steps.set_postfix_str(f"{rounds} rounds", refresh=False)
        self.steps.update(0)

    def __exit__(self, *_):
        self.steps.close()


def ratios_of(teams, rounds, batch_sizes):
    """The `ratios` entries of teams that were measured together."""
    entries = []
    for size in batch_sizes:
        for name, base in pairs([team.candidate for team in teams.values()]):
            entries.append(stats.ratio(name, base, size, rounds[name, size], rounds[base, size]))
    return entries


def pairs(chosen):
    """What is divided by what: all by the first, and our last by each other runtime's."""
    by_first = [(candidate.name, chosen[0].name) for candidate in chosen[1:]]
    others = [candidate.name for candidate in chosen if candidate.runtime != "tensorflow"]
    ours = [candidate.name for candidate in compared(chosen) if candidate is not chosen[0]]
    return by_first + [(name, other) for name in ours for other in others]


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
    least_sqnr_db=stats.GARBAGE_SQNR_DB,
    **effort,
):
    """Measure the candidates against the first of them; write and give back `result.json`.

    `inputs` (N, …) are what all candidates run on (dummy inputs of the graph's shape, type and,
    where a quantized graph tells it, range where None); with `labels` (N,) the accuracy of each is
    reported too. `effort` overrides what PROFILES says of the profile, but where it is None.
    `settings` adds to what
    result.json says of the run. `least_sqnr_db` of −inf lets graphs pass that are known to
    compute something else. Raises UserError for a graph that cannot run, for outputs that do not
    match the baseline's, for layers that run in another precision than the name says, and when a
    worker process dies.
    """
    output = Path(output)
    threads = threads or machine.usable_cores()
    measured = measure(
        chosen, output, inputs, labels, batch_sizes, profile, threads, least_sqnr_db, progress,
        **effort,
    )  # fmt: skip
    for entry, candidate in zip(measured["candidates"], kept(chosen, measured)):
        entry["graph"] = relative(candidate.graph, output)
    settings = {**effort_of(profile, effort), **(settings or {})}
    result = {
        "schema": SCHEMA,
        "model": model,
        "profile": profile,
        "created": machine.now(),
        "machine": {**machine.describe(), **measured.pop("device")},
        "software": {**machine.software(), **measured.pop("software")},
        "settings": {
            "threads": threads,
            "batch_sizes": sorted(set(batch_sizes)),
            **settings,
        },
        **measured,
    }
    files.write_json(output / "result.json", result)
    return result


def kept(chosen, measured):
    """The candidates that were measured, in the order of their entries."""
    names = [entry["name"] for entry in measured["candidates"]]
    return [candidate for candidate in chosen if candidate.name in names]


def relative(path, folder):
    """A path as it is written into a result: from the result's folder, without the machine's."""
    path, folder = Path(path).resolve(), Path(folder).resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def dummy_inputs(chosen, facts, count, seed=0):
    """Inputs for networks whose data are not at hand, as far as their graphs tell what fits.

    `facts` are what a worker said of the first candidate: "input", "shape", "dtype". Images get
    the range that an INT8 graph among the candidates was calibrated on; integers that look a
    table up are rows of that table. Raises UserError, with what to give, where it cannot be told.
    """
    shape, dtype = facts["shape"], np.dtype(facts["dtype"])
    if shape is None or None in shape:
        raise UserError(
            f"The shape of input '{facts['input']}' is not in the graph ({shape}). Give it, "
            "without the batch (--shape 224,224,3), or inputs (--inputs FILE.npy)."
        )
    own = [graphs.read_graph(one.graph) for one in chosen if one.runtime in OWN]
    rng = np.random.default_rng(seed)
    if dtype.kind in "iu" and dtype != np.uint8:
        rows = graphs.vocabulary(own[0])
        if rows is None:
            raise UserError(
                f"Input '{facts['input']}' takes {dtype} and the graph does not tell which values "
                "make sense. Give some: --inputs FILE.npy"
            )
        return rng.integers(0, rows, (count, *shape)).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, (count, *shape)).astype(dtype)
    low, high = (0, 255) if dtype == np.uint8 else calibrated_range(own)
    if len(shape) == 3:
        images = (datasets.dummy_images(count, *shape, seed=seed) + 128) / 255
    else:
        images = np.clip(0.5 + 0.2 * rng.standard_normal((count, *shape), np.float32), 0, 1)
    return (low + (high - low) * images).astype(dtype)


def calibrated_range(graph_defs):
    """The range of the input of the first graph that tells it; (−128, 127) where none does."""
    for graph_def in graph_defs:
        ends = graphs.input_range(graph_def)
        if ends:
            return ends
    return -128, 127
