"""What people see of a result: the tables, the conclusion and the two figures."""

import json
import textwrap
from pathlib import Path

from helpers import UserError, figures, files, machine, stats
from helpers.benchmark import kernels
from helpers.figures import number

DIFFERENT = 0.05  # best calls and medians are both told where they lie further apart
HELD_BACK_PERCENT = 25.0  # a median call slower than this against the quickest tenth needs an hour
SAME = {"median": 1.0, "low": 1.0, "high": 1.0, "best": 1.0}


def read(path):
    """The result in a file, of this schema or an older one; UserError where there is none in it."""
    try:
        result = json.loads(Path(path).read_text())
        for entry in result["ratios"]:
            times = entry["throughput_times"], entry["latency_times"]
            entry.setdefault("resolved", all(map(stats.is_resolved, times)))
            entry.setdefault("verdict", stats.verdict(times[0]))
        for entry in result["candidates"]:
            entry |= {"kernels": {}, "variants": [], "runtime": "tensorflow"} | entry
        result["noise"] |= {
            "resolved": sum(entry["resolved"] for entry in result["ratios"]),
            "ratios": len(result["ratios"]),
        }
        names_and_sizes(result)
        return {"failed": {}} | result
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no result of this package ({reason}).") from error


def batch_of(result, name, size):
    """The `batches` entry of a candidate at a batch size."""
    candidate = next(entry for entry in result["candidates"] if entry["name"] == name)
    return next(entry for entry in candidate["batches"] if entry["batch_size"] == size)


def ratio(result, name, size, baseline=None):
    """The `ratios` entry of a candidate at a batch size; ratios of exactly 1 for the baseline.

    The baseline is the first candidate where none is named.
    """
    baseline = baseline or result["candidates"][0]["name"]
    for entry in result["ratios"]:
        if (entry["candidate"], entry["baseline"], entry["batch_size"]) == (name, baseline, size):
            return entry
    return {"throughput_times": SAME, "latency_times": SAME, "verdict": "", "resolved": True}


def names_and_sizes(result):
    """Candidate names, and the batch sizes that latency and throughput are quoted at."""
    sizes = result["settings"]["batch_sizes"]
    return [entry["name"] for entry in result["candidates"]], min(sizes), max(sizes)


def own(result):
    """The candidates that run in TensorFlow (of helpers.benchmark.peers there may be more)."""
    return [entry for entry in result["candidates"] if entry["runtime"] == "tensorflow"]


def where(result):
    """One line naming the machine, with the threads that were used."""
    return machine.summary({**result["machine"], "usable_cores": result["settings"]["threads"]})


def _table(rows):
    """Rows (title, cells) as lines; each column is as wide as its longest cell needs."""
    columns = zip(*(cells for _, cells in rows))
    widths = [max(12, *(len(cell) + 2 for cell in column)) for column in columns]
    lines = [
        title.ljust(18) + "".join(cell.ljust(width) for cell, width in zip(cells, widths))
        for title, cells in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def absolute_table(result):
    names, small, large = names_and_sizes(result)
    fps = [number(batch_of(result, name, large)["throughput_fps"]) for name in names]
    ms = [f"{batch_of(result, name, small)['latency_ms']['p50']:.2f}" for name in names]
    return _table(
        [
            ("Model", [*names, ""]),
            ("throughput(fps)", [*fps, f"at batch {large}"]),
            ("latency(ms)", [*ms, f"at batch {small}"]),
        ]
    )


def times_table(result):
    names, small, large = names_and_sizes(result)
    fps = [number(ratio(result, name, large)["throughput_times"]["median"]) for name in names]
    ms = [number(ratio(result, name, small)["latency_times"]["median"]) for name in names]
    return _table(
        [
            ("Model", [*names, ""]),
            ("throughput_times", [*fps, f"at batch {large}"]),
            ("latency_times", [*ms, f"at batch {small}"]),
        ]
    )


def detail_table(result):
    """Percentiles of one call per batch size, and ratios with their interval.

    A percentile for which there were too few calls is shown as –.
    """
    head = ["p50 ms", "p90 ms", "p99 ms", "best ms", "img/s"]
    wide = max(7, *(len(entry["name"]) + 2 for entry in result["candidates"]))
    titles = "".join(title.rjust(9) for title in head)
    lines = ["batch".ljust(8) + " " * wide + titles + "  times [interval]      best  verdict"]
    for size in result["settings"]["batch_sizes"]:
        for entry in result["candidates"]:
            batch = batch_of(result, entry["name"], size)
            ms = [batch["latency_ms"][key] for key in ("p50", "p90", "p99", "best")]
            cells = ["–" if value is None else f"{value:.2f}" for value in ms]
            cells.append(number(batch["throughput_fps"]))
            row = str(size).ljust(8) + entry["name"].ljust(wide)
            row += "".join(cell.rjust(9) for cell in cells) + "  "
            lines.append(row + _ratio_cells(result, entry["name"], size))
    return "\n".join(lines)


def _ratio_cells(result, name, size):
    if name == result["candidates"][0]["name"]:
        return "1"
    entry = ratio(result, name, size)
    times = entry["throughput_times"]
    cells = number(times["median"]).ljust(6) + span(times).ljust(16)
    return cells + number(times["best"]).ljust(6) + entry["verdict"]


def span(times):
    """The interval of a ratio: [low - high]."""
    return f"[{number(times['low'])} - {number(times['high'])}]"


def conclusion(result):
    """What was measured, in words: the sentences of `findings` as one paragraph."""
    return " ".join(findings(result))


def findings(result):
    """What was measured, in words: a list of points, each computed from the result."""
    names = [entry["name"] for entry in own(result)]
    int8, base = names[-1], names[0]
    sentences = [headline(result, int8, base)]
    sentences += several_processes(result)
    sentences += two_views(result, int8, base)
    sentences += without_itex(result)
    sentences += mixtures(result)
    sentences += not_faster(result, int8, base)
    for entry in result["candidates"]:
        if entry["runtime"] != "tensorflow":
            sentences.append(against(result, int8, entry["name"]))
    sentences += [f"{name} is left out: {why}" for name, why in result["failed"].items()]
    return [*sentences, *noise(result)]


def headline(result, name, base):
    _, small, large = names_and_sizes(result)
    up = ratio(result, name, large, base)["throughput_times"]
    down = ratio(result, name, small, base)["latency_times"]
    return (
        f"{name} gives {number(up['median'])} times the throughput of {base} at batch {large} "
        f"{span(up)} and {number(down['median'])} times its latency at batch {small} {span(down)}, "
        f"on {where(result)}."
    )


def several_processes(result):
    """That the candidates were several processes each, and what the numbers are then."""
    counts = {entry.get("instances", 1) for entry in result["candidates"]}
    if counts == {1}:
        return []
    return [
        f"Each candidate was {' or '.join(map(str, sorted(counts)))} processes that shared the "
        "cores and worked at the same time: throughput is that of all together, latency that of "
        "one call of one of them."
    ]


def two_views(result, name, base):
    """What the best calls say, where it is something else than the median of the rounds."""
    _, small, large = names_and_sizes(result)
    up = ratio(result, name, large, base)["throughput_times"]
    down = ratio(result, name, small, base)["latency_times"]
    if all(abs(times["best"] / times["median"] - 1) <= DIFFERENT for times in (up, down)):
        return []
    return [
        f"Those are medians over the rounds: what this run had most of the time. Between the best "
        f"calls of each it is {number(up['best'])} and {number(down['best'])} times: what each "
        "reached in its least disturbed call."
    ]


def without_itex(result):
    """Where FP32 was faster without ITEX, which is then what is divided by."""
    sentences = []
    for entry in result["candidates"]:
        for pilot in entry["variants"]:
            used, times = pilot["variant"], pilot["best_ms"]
            if entry["runtime"] == "tensorflow" and used != "ITEX" and "ITEX" in times:
                sentences.append(
                    f"At batch {pilot['batch_size']} {entry['name']} ran without ITEX, which took "
                    f"{number(times[used])} ms where ITEX took {number(times['ITEX'])} ms."
                )
    return sentences


def mixtures(result):
    """Candidates whose layers ran in more than one precision."""
    return [
        f"{entry['name']} is a mixture; its layers ran as {kernels.describe(entry['kernels'])}."
        for entry in result["candidates"]
        if len(entry["kernels"]) > 1
    ]


def not_faster(result, name, base):
    """At which batch sizes INT8 is slower, or not shown to be faster, and why that may be."""
    sentences = []
    for word, text in (
        ("slower", "{name} is slower at batch {sizes}. {why}"),
        ("no effect", "{name} is as fast as {base} at batch {sizes}, within 2 %. {why}"),
        ("not resolved", "Whether {name} is faster at batch {sizes} is not resolved."),
    ):
        sizes = [
            str(entry["batch_size"])
            for entry in result["ratios"]
            if (entry["candidate"], entry["baseline"]) == (name, base) and entry["verdict"] == word
        ]
        if sizes:
            names = {"name": name, "base": base, "sizes": ", ".join(sizes)}
            why = "" if name.startswith("BF16") else why_not(result)  # which speaks of bytes
            sentences.append(text.format(why=why, **names).strip())
    return sentences


def why_not(result):
    """The likely reason why INT8 is not faster on the machine of this result."""
    if machine.int8_level(result["machine"]["isa"]) == "none":
        return (
            "Without VNNI or AMX a product of bytes takes three instructions instead of one, and "
            "what is quantized and back between the layers costs time, too."
        )
    return (
        "The CPU has INT8 instructions, so look at the graph: layers that stayed in FP32, or work "
        "per call too small to repay the quantize steps."
    )


def against(result, name, other):
    """Our candidate beside another runtime's, with the verdict of each."""
    pairs = [e for e in result["ratios"] if (e["candidate"], e["baseline"]) == (name, other)]
    if not pairs:
        return (
            f"{name} and {other} were not in the same rounds: compare what each gives beside "
            f"{result['candidates'][0]['name']}."
        )
    parts = []
    for entry in sorted(pairs, key=lambda entry: -entry["batch_size"]):
        times = entry["throughput_times"]
        size = entry["batch_size"]
        text = f"{number(times['median'])} times the throughput at batch {size} {span(times)}"
        parts.append(f"{text}: {entry['verdict']}")
    return f"Against {other}, {name} gives {', and '.join(parts)}."


def noise(result):
    """How far the ratios are to be trusted, and what to do where they are not."""
    facts, ratios = result["noise"], result["ratios"]
    if not ratios:
        return []
    rounds = [batch.get("rounds") for entry in result["candidates"] for batch in entry["batches"]]
    coverage = min(entry["throughput_times"].get("coverage", 0) for entry in ratios)
    brackets = "In brackets: the interval of the median ratio over the rounds."
    if coverage and all(rounds):
        ends = dict.fromkeys((min(rounds), max(rounds)))
        brackets = (
            f"In brackets: the interval that holds the true median ratio in {coverage:.0%} of such "
            f"runs ({' to '.join(map(str, ends))} rounds)."
        )
    if facts["resolved"] == facts["ratios"]:
        return [brackets, "Every ratio is resolved: its interval lies within ±5 %."]
    told = f"{facts['resolved']} of {facts['ratios']} ratios are resolved to within ±5 %"
    widest = 100 * max(
        stats.half_width(entry[key])
        for entry in ratios
        for key in ("throughput_times", "latency_times")
    )
    text = f"{told}; the widest interval is ±{widest:.0f} %"
    if facts["slowdown_percent"] > HELD_BACK_PERCENT:
        return [
            brackets,
            f"{text}, and the median call takes up to {facts['slowdown_percent']:.0f} % longer "
            "than the quickest tenth: something else uses this machine. Repeat it at another hour.",
        ]
    return [brackets, f"{text}. More rounds make it narrower: run longer (without --quick)."]


def agreement_lines(result):
    return "\n".join(
        f"{name}: same top-1 class as FP32 on {entry['top1']:.1%} of the inputs, "
        f"SQNR {entry['sqnr_db']:.1f} dB"
        for name, entry in result["agreement"].items()
    )


def kernel_lines(result):
    """What each candidate's runtime said that it executed."""
    width = max(len(entry["name"]) for entry in result["candidates"])
    return "\n".join(
        f"{entry['name']:{width}}  layers executed: {kernels.describe(entry['kernels'])}"
        for entry in result["candidates"]
    )


def _bars(axes, title, names, values, spans, lower_is_better):
    colours = [figures.COLOURS.get(name, figures.OTHER) for name in names]
    names = [name.replace(" ", "\n") for name in names]
    bars = axes.bar(names, values, color=colours, width=0.62)
    if spans:
        errors = [
            [max(0, v - s[i]) if i == 0 else max(0, s[i] - v) for v, s in zip(values, spans)]
            for i in (0, 1)
        ]
        axes.errorbar(names, values, yerr=errors, fmt="none", ecolor="black", capsize=4, lw=1)
    tops = [span[1] for span in spans] if spans else values
    for bar, value, top in zip(bars, values, tops):
        place = (bar.get_x() + bar.get_width() / 2, max(value, top))
        figures.note(axes, number(value), place, fontsize=13, fontweight="bold")
    axes.set_title(title, fontsize=13, pad=10)
    axes.set_xlabel(
        "lower is better" if lower_is_better else "higher is better", color=figures.DARK
    )
    axes.margins(y=0.16)
    size = 12 if len(names) < 5 else 11 if len(names) == 5 else 9
    axes.tick_params(axis="x", labelsize=size, length=0)


def draw(result):
    """The two figures, as (file name, matplotlib Figure)."""
    from matplotlib import style
    from matplotlib.figure import Figure

    names, small, large = names_and_sizes(result)

    def both(file, heading, left, right, foot=""):
        with style.context(figures.STYLE):
            figure = Figure(figsize=(9, 4.6))
            for axes, (title, values, spans, lower) in zip(figure.subplots(1, 2), (left, right)):
                _bars(axes, title, names, values, spans, lower)
        title = textwrap.fill(f"{result['model']}: {heading}", 76)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        figure.supxlabel(where(result) + foot, fontsize=9, color=figures.DARK)
        return file, figure

    def spans(key, size):
        entries = [ratio(result, name, size)[key] for name in names]
        return [e["median"] for e in entries], [(e["low"], e["high"]) for e in entries]

    fps = [batch_of(result, name, large)["throughput_fps"] for name in names]
    ms = [batch_of(result, name, small)["latency_ms"]["p50"] for name in names]
    base, told = result["candidates"][0]["name"], own(result)[-1]["name"]
    at = names.index(told)
    throughputs, latencies = spans("throughput_times", large), spans("latency_times", small)
    return [
        both(
            "fp32_int8_absolute.png",
            f"{told} {number(fps[at])} images/s at batch {large}, "
            f"{number(ms[at])} ms at batch {small}",
            (f"Throughput, batch {large} (images/s)", fps, None, False),
            (f"Latency, batch {small} (ms, median)", ms, None, True),
        ),
        both(
            "fp32_int8_times.png",
            f"{told} {number(throughputs[0][at])} times the throughput of {base}, "
            f"{number(latencies[0][at])} times the latency",
            (f"Throughput, batch {large} (times {base})", *throughputs, False),
            (f"Latency, batch {small} (times {base})", *latencies, True),
            ". Lines: interval of the median",
        ),
    ]


def save_figures(result, folder):
    """Write both PNGs whole; gives their paths."""
    paths = []
    for name, figure in draw(result):
        with files.whole(Path(folder) / name) as part:
            figure.savefig(part, format="png", dpi=110)
        paths.append(Path(folder) / name)
    return paths


def show(result, folder):
    """Save the figures and print the comparison as the original sample did, then the details."""
    absolute, times = save_figures(result, folder)
    names = [entry["name"] for entry in own(result)]
    print(f"Compare the Performance of {names[0]} and {names[-1]} Models")
    print(absolute_table(result))
    print(f"Save to {absolute}")
    print(times_table(result))
    print(f"Save to {times}")
    print("(times: medians of the ratio within a round, so not quite the quotients above)\n")
    print(detail_table(result) + "\n")
    print(kernel_lines(result))
    print(agreement_lines(result))
    for point in findings(result):
        print(textwrap.fill(f"- {point}", 100, subsequent_indent="  "))


def alt_text(path, result):
    """What a saved figure shows, in words."""
    table = times_table(result) if "times" in Path(path).name else absolute_table(result)
    rows = [" ".join(row.split()) for row in table.splitlines()]
    return f"Bar charts for {result['model']}. {'; '.join(rows)}"


def picture(path, result):
    """A saved figure for a notebook, with alt text."""
    from IPython.display import Image

    return Image(filename=str(path), alt=alt_text(path, result))
