"""The three figures of a group: speeds, ratios, and how far both differ between machines.

Up to ONE_BY_ONE results are drawn as bars, each with its label. Of more, each is a dot in the row
of its kind of CPU, with the median of the kind and the range of the middle 80 % of it.
"""

import functools
import textwrap
from statistics import median

import numpy as np

from helpers import figures
from helpers.figures import number
from helpers.machines import lessons, table
from helpers.machines.grouping import by_kind, labels, ordered

ONE_BY_ONE = 12
HIGH = 0.8  # of the room of a machine is taken by its bars


def in_style(function):
    """The function, drawing in the style of the house whatever is set outside."""

    @functools.wraps(function)
    def styled(*arguments, **options):
        from matplotlib import style

        with style.context(figures.STYLE):
            return function(*arguments, **options)

    return styled


def figure(width, height, title, below):
    """An empty figure with one axes, for drawing without pyplot, under its finding."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height))
    axes = made.subplots()
    told = plain(textwrap.fill(title, 72))
    made.suptitle(told, x=0.01, ha="left", fontsize=15, fontweight="bold")
    axes.set_title(plain(below), loc="left", fontsize=10, color=figures.DARK)
    return made, axes


def plain(text):
    """A text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def values_of(entry, name, size, what):
    """(value, low, high) of a bar: images/s up to the best call's, or a ratio; None without it.

    `what` is "speed", "core" (a speed per core) or "ratio".
    """
    if what == "ratio":
        ratio = None if name == entry.baseline else entry.ratio(name, size)
        times = ratio and ratio.throughput_times
        return times and (times.median, times.low, times.high)
    batch, cores = entry.batch(name, size), entry.cores if what == "core" else 1
    fps = batch and batch.throughput_fps / cores
    return batch and (fps, fps, batch.best / cores)


def measure_of(group, what):
    """The speed that is drawn: per core where the numbers of cores differ."""
    differ = len({entry.cores for entry in group.entries}) > 1
    return "core" if what == "speed" and differ else what


@in_style
def draw(group, size, what, names=(), by="throughput"):
    """The figure of "speed" or "ratio": (Figure, alt text); None where nothing of it was measured.

    The title is what it shows, computed as the sentences of `lessons` are.
    """
    columns = table.shown(group, names)
    columns = [name for name in columns if what == "speed" or name != group.baseline]
    entries = ordered(group.at(size), (columns or [group.candidate])[-1], size, by)
    if not entries or not columns:
        return None
    what = measure_of(group, what)
    title = title_of(entries, columns[-1], group.baseline, size, what)
    rows = entries if len(entries) <= ONE_BY_ONE else by_kind(entries)
    below = f"{group.title.split(', TensorFlow')[0]}, batch {size}"
    made, axes = figure(9.5, 1.9 + 0.32 * len(columns) * max(1.6, len(rows)), title, below)
    (_bars if rows is entries else _dots)(axes, rows, columns, size, what)
    axes.set_xlabel(
        f"{_unit(what, group.baseline)} ({_reading(what, rows is entries)})", fontsize=11
    )
    axes.set_xlim(left=0)
    _legend(axes, columns, _references(axes, entries, columns, what))
    return made, alt_of(title, group, size, what, columns, entries)


def _unit(what, baseline):
    units = {"speed": "images/s", "core": "images/s per core"}
    return units.get(what) or f"times the throughput of {baseline}"


def _references(axes, entries, columns, what):
    """Lines at 1, and at what VNNI alone can give where a CPU has it; those for the legend."""
    if what != "ratio":
        return []
    axes.axvline(1, color=figures.DARK, lw=1, ls=":")
    if columns[-1] != "INT8" or not any(entry.kind == "VNNI" for entry in entries):
        return []
    text = "VNNI's\ninstruction\nalone"
    return [axes.axvline(lessons.VNNI_ALONE, color=figures.DARK, lw=1, ls="--", label=text)]


def _reading(what, one_by_one):
    if not one_by_one:
        return "a dot: a result; thin line: the median; thick: the middle 80 %"
    if what != "ratio":
        return "more is better; line: up to the quickest call"
    return "more is better; line: interval of the median"


def _legend(axes, columns, lines):
    from matplotlib.patches import Patch

    known = [Patch(color=_colour(name), label=plain(name)) for name in columns]
    axes.legend(handles=[*known, *lines], loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=11)


def _colour(name):
    return figures.COLOURS.get(name, figures.OTHER)


def _bars(axes, entries, columns, size, what):
    """A group of bars for each machine, the first at the top, each with its number."""
    known = labels(entries)
    step = HIGH / len(columns)
    for index, name in enumerate(columns):
        for place, entry in enumerate(entries):
            found = values_of(entry, name, size, what)
            if not found:
                continue
            value, low, high = found
            y = place - HIGH / 2 + (index + 0.5) * step
            axes.barh(y, value, height=step * 0.92, color=_colour(name))
            axes.plot([low, high], [y, y], color="black", lw=1.2, marker="|", ms=5)
            _beside(axes, number(value), (high, y))
    told = [plain(f"{known[id(entry)]}\n{entry.kind}") for entry in entries]
    axes.set_yticks(range(len(entries)), told, fontsize=11)
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.margins(x=0.12)


def _dots(axes, kinds, columns, size, what):
    """A row of dots for each kind of CPU and candidate."""
    step = HIGH / len(columns)
    for index, name in enumerate(columns):
        for place, entries in enumerate(kinds.values()):
            found = [value[0] for e in entries if (value := values_of(e, name, size, what))]
            if not found:
                continue
            y = place - HIGH / 2 + (index + 0.5) * step
            off = np.linspace(-0.3, 0.3, 7)[np.arange(len(found)) % 7] * step
            axes.plot(found, y + off, "o", ms=3, alpha=0.35, color=_colour(name), mew=0)
            low, middle, high = np.percentile(found, (10, 50, 90))
            axes.plot([low, high], [y, y], color="black", lw=3, solid_capstyle="butt")
            axes.plot([middle, middle], [y - step / 2.4, y + step / 2.4], color="black", lw=2)
            figures.note(axes, number(middle), (middle, y - step / 2.4), up=2, fontsize=11)
    told = [plain(f"{kind}\n{lessons.results(len(members))}") for kind, members in kinds.items()]
    axes.set_yticks(range(len(kinds)), told, fontsize=11)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.margins(x=0.06)


def title_of(entries, name, baseline, size, what):
    """What a figure shows, in a line: the median of each kind of CPU."""
    told = []
    for kind, members in by_kind(entries).items():
        found = [value[0] for e in members if (value := values_of(e, name, size, what))]
        if found:
            told.append(f"{number(median(found))} with {_short(kind)}")
    listed = ", ".join(told[:3]) + (", …" if len(told) > 3 else "")
    if not told:
        return f"{name}: nothing measured"
    first, _, rest = listed.partition(" ")
    unit = f"times {baseline}" if what == "ratio" else _unit(what, baseline)
    return f"{name} {'gives' if what == 'ratio' else 'does'} {first} {unit} {rest}"


def _short(kind):
    return kind.replace(" only", "").replace(" without VNNI", "")


def alt_of(title, group, size, what, columns, entries):
    """What a figure shows, in words."""
    known = labels(entries)
    told = []
    for entry in entries[:ONE_BY_ONE]:
        found = {name: values_of(entry, name, size, what) for name in columns}
        values = ", ".join(f"{name} {number(value[0])}" for name, value in found.items() if value)
        told.append(f"{known[id(entry)]} ({entry.kind}): {values}")
    more = f"; and {len(entries) - len(told)} more" if len(entries) > len(told) else ""
    return f"Chart of {group.key['model']} at batch {size}. {title}. {'; '.join(told)}{more}."


@in_style
def draw_travel(group, size):
    """How far speeds and the ratio differ between machines: (Figure, alt text); None of one."""
    found = lessons.travelling(by_kind(group.at(size)), group, size)
    if not found:
        return None
    title = travel_title(found)
    below = f"{group.key['model']}, batch {size}, between machines"
    made, axes = figure(9.5, 2.2 + 1.05 * len(found), title, below)
    for place, values in enumerate(found.values()):
        for index, (name, value) in enumerate(values.items()):
            y = place + (index - 1) * HIGH / 3
            colour = figures.GREEN if name == "ratio" else _colour(name)
            axes.barh(y, value, height=HIGH / 3.3, color=colour)
            text = "their ratio" if name == "ratio" else f"throughput of {name}"
            _beside(axes, f"{number(value)}  {text}", (value, y))
    axes.set_yticks(range(len(found)), [plain(which.replace(" on ", "\non ")) for which in found])
    axes.tick_params(axis="y", labelsize=11)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.margins(x=0.35)
    axes.axvline(1, color=figures.DARK, lw=1, ls=":")
    ends = "the largest is so many times the smallest (1: all alike)"
    if len(group.at(size)) >= lessons.MANY:
        ends += f"; of {lessons.MANY} or more, within the middle 80 %"
    axes.set_xlabel(ends, fontsize=11)
    words = "; ".join(
        f"{which}: " + ", ".join(f"{name} {number(value)}" for name, value in values.items())
        for which, values in found.items()
    )
    return made, f"Chart of how far machines differ. {title}. {words}."


def _beside(axes, text, place):
    axes.annotate(
        *(plain(text), place),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=11,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def travel_title(found):
    """The finding of `draw_travel`, from what `lessons.travelling` gives."""
    verdicts = [lessons.travels(values) for values in found.values()]
    if set(verdicts) == {"less"}:
        return "Ratios differ less between machines than times"
    if set(verdicts) == {"more"}:
        return "Here ratios differ more between machines than times"
    if len(found) == 1:
        return lessons.words(*found.values()).replace("it differs", "The ratio differs", 1)
    return f"Ratios differ less than times in {verdicts.count('less')} of {len(found)} rows"
