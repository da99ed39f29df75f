"""Results as rows: a table for people, one line per machine, and a CSV with everything."""

import csv
from statistics import median

from helpers import files
from helpers.figures import number
from helpers.machines import lessons
from helpers.machines.grouping import VERSIONS, by_kind, chosen, groups, labels, ordered
from helpers.machines.reading import kind_of

NONE = "–"
COLUMNS = (
    *("file", "cpu", "microarchitecture", "kind", "avx2", "vnni", "amx", "isa_cap", "cores"),
    *("threads", "memory_gib", "model", "profile", "batch_size", "candidate", "baseline"),
    *("images_per_s", "best_images_per_s", "per_core", "instances", "per_instance"),
    *("p50_ms", "p90_ms", "p99_ms", "best_ms", "throughput_times", "throughput_low"),
    *("throughput_high", "latency_times", "latency_low", "latency_high", "coverage", "verdict"),
    *("resolved", "accuracy", "weights", "data", *VERSIONS, "python", "schema", "created"),
)


def span(times):
    """A ratio with its interval: 3.78 [3.71 - 3.82]."""
    return f"{number(times.median)} [{number(times.low)} - {number(times.high)}]"


def yes(value):
    return NONE if value is None else "yes" if value else "no"


def shown(group, names=()):
    """The candidates of a group that are to be shown: all, or those of `names`."""
    return [name for name in group.names if not names or name in names]


def head(group, names=()):
    """The titles of the columns that `line` gives."""
    columns = shown(group, names)
    ratios = [name for name in columns if name != group.baseline]
    return [
        *("machine", "has", *(f"{name} (core)" for name in columns)),
        *(f"{name} / {group.baseline}" for name in ratios),
        *("resolved", "file"),
    ]


def line(entry, label, group, size, names=()):
    """One machine at a batch size as texts."""
    columns = shown(group, names)
    speeds = []
    for name in columns:
        batch = entry.batch(name, size)
        fps = batch and batch.throughput_fps
        speeds.append(f"{number(fps)} ({number(fps / entry.cores)})" if fps else NONE)
    ratios = [entry.ratio(name, size) for name in columns if name != group.baseline]
    return [
        *(label, entry.kind, *speeds),
        *(span(ratio.throughput_times) if ratio else NONE for ratio in ratios),
        *(yes(entry.resolved(size, columns)), entry.file),
    ]


def lines(group, size, names=(), by="throughput"):
    """The rows of a group at a batch size, sorted: lists of texts."""
    known = labels(group.entries)
    candidate = (shown(group, names) or [group.candidate])[-1]
    sorted_ = ordered(group.at(size), candidate, size, by)
    return [line(entry, known[id(entry)], group, size, names) for entry in sorted_]


def text(group, size, names=(), by="throughput", most=None, files=True):
    """The table of a group at a batch size as lines of text, at most `most` machines of it.

    Images/s, in round brackets those per physical core; ratios with their intervals.
    """
    rows = lines(group, size, names, by)
    told = [row if files else row[:-1] for row in (head(group, names), *rows[:most])]
    widths = [max(map(len, column)) for column in zip(*told)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in told]
    if most is not None and len(rows) > most:
        table.append(f"… and {len(rows) - most} machines more (--top, the page or the CSV)")
    return "\n".join(row.rstrip() for row in table)


def instances_line(group):
    """What the speed per instance is, in a sentence."""
    if group.key["instances"] == "1":
        return "Each candidate ran as one instance, so images/s are those per instance."
    rows = {
        f"{name}: {number(batch.throughput_fps / entry.instances(name))} at batch {size}"
        for entry in group.entries
        for name in entry.names
        for size in entry.sizes
        if entry.instances(name) > 1 and (batch := entry.batch(name, size))
    }
    return f"Images/s per instance: {'; '.join(sorted(rows)[:6])} (all of them: the CSV)."


def kinds_line(entries):
    """What CPUs there are, in a sentence."""
    parts = [f"{len(members)} with {kind}" for kind, members in by_kind(entries).items()]
    results = "1 result" if len(entries) == 1 else f"{len(entries)} results"
    return f"{results}: {', '.join(parts)}."


HEADLINES = ("AMX", "VNNI", "AVX2 only")


def headline(entries, model, mix=("commit",)):
    """The kinds of CPU side by side, as a table in Markdown, of the largest group of a model.

    Each maker's CPUs have a row of their own. A kind that nobody has measured is in it without
    figures. Of several results in a row the median; capped ones are left out. Raises UserError
    where no result is of that model.
    """
    group = groups(chosen(entries, [model]), mix)[0]
    size, parts = group.sizes[-1], by_kind(group.entries)
    ratios = [name for name in group.names if name != group.baseline]
    columns = [f"{name}, images/s" for name in group.names]
    columns += [f"{name} / {group.baseline}" for name in ratios]
    rows = [["CPU with", "measured on", *columns], ["---"] * (2 + len(columns))]
    real = [kind for kind in parts if not kind.endswith(" by cap")]
    for kind in dict.fromkeys([*HEADLINES, *real]):
        makers = {}
        for entry in parts.get(kind, []):
            makers.setdefault(entry.cpu.split()[0], []).append(entry)
        for _, members in sorted(makers.items()) or [("", [])]:
            rows.append(_headline_row(group, kind, members, size, ratios))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _headline_row(group, kind, members, size, ratios):
    if not members:
        return [kind, "nobody yet: no file in results/", *[""] * (len(group.names) + len(ratios))]
    known = sorted(set(labels(members).values()))
    speeds = [[e.batch(name, size) for e in members] for name in group.names]
    cells = [[batch.throughput_fps for batch in found if batch] for found in speeds]
    gains = [lessons.ratios(members, name, size) for name in ratios]
    return [
        *(kind, "; ".join(known[:3]) + ("; …" if len(known) > 3 else "")),
        *(number(median(found)) if found else NONE for found in cells),
        *(str(gain) if gain else NONE for gain in gains),
    ]


def records(entries, sizes=(), names=()):
    """Everything as dicts of COLUMNS, one for each result, batch size and candidate."""
    for entry in entries:
        facts = _facts(entry)
        for candidate in entry.result.candidates:
            for batch in candidate.batches:
                if (not sizes or batch.batch_size in sizes) and (
                    not names or candidate.name in names
                ):
                    yield {**facts, **_measured(entry, candidate, batch)}


def _facts(entry):
    result, machine = entry.result, entry.result.machine
    real = kind_of(machine.isa)
    return {
        "file": entry.file,
        "cpu": machine.cpu,
        "microarchitecture": machine.microarchitecture,
        "kind": entry.kind,
        "avx2": yes("avx2" in machine.isa),
        "vnni": yes(bool({"avx512_vnni", "avx_vnni"} & set(machine.isa))),
        "amx": yes(real == "AMX"),
        "isa_cap": machine.isa_cap,
        "cores": entry.cores,
        "threads": entry.threads,
        "memory_gib": machine.memory_gib,
        "model": result.model,
        "profile": result.profile,
        "baseline": entry.baseline,
        "weights": result.settings.weights,
        "data": result.settings.data,
        **{name: result.software.get(name) for name in (*VERSIONS, "python")},
        "schema": result.number,
        "created": result.created,
    }


def _measured(entry, candidate, batch):
    fps, latency = batch.throughput_fps, batch.latency_ms
    values = {
        "batch_size": batch.batch_size,
        "candidate": candidate.name,
        "images_per_s": fps,
        "best_images_per_s": batch.best,
        "per_core": fps / entry.cores,
        "instances": candidate.instances,
        "per_instance": fps / candidate.instances,
        **{f"{name}_ms": getattr(latency, name) for name in ("p50", "p90", "p99", "best")},
        "accuracy": candidate.accuracy and candidate.accuracy.top1,
    }
    ratio = entry.ratio(candidate.name, batch.batch_size)
    if ratio:
        for name, times in (
            ("throughput", ratio.throughput_times),
            ("latency", ratio.latency_times),
        ):
            values |= {
                f"{name}_times": times.median,
                f"{name}_low": times.low,
                f"{name}_high": times.high,
            }
        coverage = ratio.throughput_times.coverage
        values |= {"coverage": coverage, "verdict": ratio.verdict, "resolved": yes(ratio.resolved)}
    return values


def write_csv(path, entries, sizes=(), names=()):
    """All `records` as CSV, whole or not at all; gives the path.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    with files.whole(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for record in records(entries, sizes, names):
            writer.writerow({key: _cell(value) for key, value in record.items()})
    return path


def _cell(value):
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return value
