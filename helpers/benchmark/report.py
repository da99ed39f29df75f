"""What people see of a result: the table, the conclusion and the two figures."""

import textwrap
from pathlib import Path

from helpers import files, machine


def _batch(result, name, size):
    entry = next(one for one in result["candidates"] if one["name"] == name)
    return next(one for one in entry["batches"] if one["batch_size"] == size)


def ratio(result, name, size, baseline=None):
    """The `ratios` entry of a candidate at a batch size; ratios of exactly 1 for the baseline.

    The baseline is the first candidate where none is named.
    """
    baseline = baseline or result["candidates"][0]["name"]
    for one in result["ratios"]:
        if (one["candidate"], one["baseline"], one["batch_size"]) == (name, baseline, size):
            return one
    same = {"median": 1.0, "low": 1.0, "high": 1.0, "best": 1.0}
    return {"throughput_times": same, "latency_times": same}


def names_and_sizes(result):
    """Candidate names, and the batch sizes that latency and throughput are quoted at."""
    sizes = result["settings"]["batch_sizes"]
    return [one["name"] for one in result["candidates"]], min(sizes), max(sizes)


def _table(rows):
    """Rows (title, cells) as lines; each column is as wide as its longest cell needs."""
    columns = zip(*(cells for _, cells in rows))
    widths = [max(12, *(len(cell) + 2 for cell in column)) for column in columns]
    lines = [
        title.ljust(18) + "".join(cell.ljust(width) for cell, width in zip(cells, widths))
        for title, cells in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _own(result):
    """The candidates that run in TensorFlow (of helpers.peers' runtimes there may be more)."""
    return [one for one in result["candidates"] if one.get("runtime", "tensorflow") == "tensorflow"]


def absolute_table(result):
    names, small, large = names_and_sizes(result)
    fps = [number(_batch(result, name, large)["throughput_fps"]) for name in names]
    ms = [f"{_batch(result, name, small)['latency_ms']['p50']:.2f}" for name in names]
    return _table([("Model", names), ("throughput(fps)", fps), ("latency(ms)", ms)])


def times_table(result):
    names, small, large = names_and_sizes(result)
    fps = [number(ratio(result, name, large)["throughput_times"]["median"]) for name in names]
    ms = [number(ratio(result, name, small)["latency_times"]["median"]) for name in names]
    return _table([("Model", names), ("throughput_times", fps), ("latency_times", ms)])


def detail_table(result):
    """Percentiles of one call per batch size, and ratios with their range."""
    head = ["batch", "p50 ms", "p90 ms", "p99 ms", "best ms", "img/s", "times [95 % range]  best"]
    wide = max(7, *(len(one["name"]) + 2 for one in result["candidates"]))
    lines = [
        "".join([head[0].ljust(8), "".ljust(wide), *(h.rjust(9) for h in head[1:6]), "  ", head[6]])
    ]
    for size in result["settings"]["batch_sizes"]:
        for entry in result["candidates"]:
            batch = _batch(result, entry["name"], size)
            ms = [batch["latency_ms"][key] for key in ("p50", "p90", "p99", "best")]
            cells = [f"{value:.2f}".rjust(9) for value in ms]
            cells.append(number(batch["throughput_fps"]).rjust(9))
            times = ratio(result, entry["name"], size)["throughput_times"]
            span = f"[{number(times['low'])} - {number(times['high'])}]"
            last = f"{number(times['median']).ljust(5)} {span.ljust(14)} {number(times['best'])}"
            label = str(size).ljust(8) + entry["name"].ljust(wide)
            lines.append(
                label + "".join(cells) + "  " + ("1" if entry is result["candidates"][0] else last)
            )
    return "\n".join(lines)


def conclusion(result):
    """Sentences on what was measured, each computed from the result."""
    _, small, large = names_and_sizes(result)
    own = _own(result)
    int8, last = own[-1]["name"], own[0]["name"]
    up = ratio(result, int8, large)["throughput_times"]
    down = ratio(result, int8, small)["latency_times"]
    sentences = [
        f"{int8} gives {number(up['median'])} times the throughput of {last} at batch {large} and "
        f"{number(down['median'])} times its latency at batch {small}, on "
        f"{machine.summary(result['machine'])}."
    ]
    for one in (own[0], own[-1]):
        if (one["layers"]["int8"] == 0) == (one["name"] == int8):
            count = one["layers"]["int8"] or "no"
            sentences.append(f"But {one['name']} has {count} layers in INT8: swapped graphs?")
    slower = [
        one["batch_size"]
        for one in result["ratios"]
        if (one["candidate"], one["baseline"]) == (int8, last)
        and one["throughput_times"]["median"] <= 1.0
    ]
    if slower:
        where = ", ".join(str(size) for size in slower)
        sentences.append(f"At batch size {where} {int8} is not faster. {why_not(result)}")
    for one in result["candidates"]:
        if one not in own:
            up, down = (ratio(result, int8, size, one["name"]) for size in (large, small))
            sentences.append(
                f"Against {one['name']}, {int8} gives "
                f"{number(up['throughput_times']['median'])} times the throughput at batch {large} "
                f"and {number(down['latency_times']['median'])} times the latency at batch {small}."
            )
    if machine.int8_level(result["machine"]["isa"]) != "AMX":
        sentences.append(machine.expectation(result["machine"]["isa"]))
    noise = result["noise"]
    sentences.append(
        "The measurement was steady"
        if noise["verdict"] == "steady"
        else "The measurement was noisy (other work on this machine?); repeat it before quoting it"
    )
    sentences[-1] += (
        f": chance moves a ratio by up to {noise['spread_percent']:.0f} %, and the median call "
        f"takes up to {noise['slowdown_percent']:.0f} % longer than the best one."
    )
    return " ".join(sentences)


def why_not(result):
    """The likely reason why INT8 is not faster on the machine of this result."""
    if machine.int8_level(result["machine"]["isa"]) == "none":
        return "Without DL Boost or AMX, INT8 needs about as many instructions as FP32."
    return (
        "The CPU has INT8 instructions, so look at the graph: layers that stayed in FP32, or work "
        "per call too small to repay the quantize steps."
    )


def agreement_lines(result):
    return "\n".join(
        f"{name}: same top-1 class as FP32 on {one['top1']:.1%} of the inputs, "
        f"SQNR {one['sqnr_db']:.1f} dB"
        for name, one in result["agreement"].items()
    )


def _bars(axes, title, names, values, spans, lower_is_better):
    colours = [COLOURS.get(name, "#009E73") for name in names]
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
        note(axes, number(value), place, fontsize=13, fontweight="bold")
    axes.set_title(title, fontsize=13, pad=10)
    axes.set_xlabel("lower is better" if lower_is_better else "higher is better", color="#555555")
    axes.margins(y=0.16)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=12 if len(names) < 5 else 11, length=0)


def figures(result):
    """The two figures, as (file name, matplotlib Figure)."""
    from matplotlib.figure import Figure

    names, small, large = names_and_sizes(result)

    def draw(file, heading, left, right):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        figure.suptitle(f"{result['model']}: {heading}", fontsize=15, fontweight="bold")
        for axes, (title, values, spans, lower) in zip(figure.subplots(1, 2), (left, right)):
            _bars(axes, title, names, values, spans, lower)
        figure.supxlabel(machine.summary(result["machine"]), fontsize=9, color="#555555")
        return file, figure

    def spans(key, size):
        entries = [ratio(result, name, size)[key] for name in names]
        return [e["median"] for e in entries], [(e["low"], e["high"]) for e in entries]

    fps = [_batch(result, name, large)["throughput_fps"] for name in names]
    ms = [_batch(result, name, small)["latency_ms"]["p50"] for name in names]
    return [
        draw(
            "fp32_int8_absolute.png",
            "measured speed",
            (f"Throughput, batch {large} (images/s)", fps, None, False),
            (f"Latency, batch {small} (ms, median)", ms, None, True),
        ),
        draw(
            "fp32_int8_times.png",
            "compared with FP32",
            (f"Throughput, batch {large} (times FP32)", *spans("throughput_times", large), False),
            (f"Latency, batch {small} (times FP32)", *spans("latency_times", small), True),
        ),
    ]


def save_figures(result, folder):
    """Write both PNGs whole; gives their paths."""
    paths = []
    for name, figure in figures(result):
        with files.whole(Path(folder) / name) as part:
            figure.savefig(part, format="png", dpi=110)
        paths.append(Path(folder) / name)
    return paths


def show(result, folder):
    """Save the figures and print the comparison as the original sample did, then the details."""
    absolute, times = save_figures(result, folder)
    names = [one["name"] for one in _own(result)]
    print(f"Compare the Performance of {names[0]} and {names[-1]} Models")
    print(absolute_table(result))
    print(f"Save to {absolute}")
    print(times_table(result))
    print(f"Save to {times}\n")
    print(detail_table(result) + "\n")
    print(agreement_lines(result))
    print(textwrap.fill(conclusion(result), 100))


def alt_text(path, result):
    """What a saved figure shows, in words."""
    table = times_table(result) if "times" in Path(path).name else absolute_table(result)
    rows = [" ".join(row.split()) for row in table.splitlines()]
    return f"Bar charts for {result['model']}. {'; '.join(rows)}"


def picture(path, result):
    """A saved figure for a notebook, with alt text."""
    from IPython.display import Image

    return Image(filename=str(path), alt=alt_text(path, result))
