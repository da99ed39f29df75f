"""What results of several machines show, in sentences: each computed from them, or not said.

Two things are told apart only where their ranges do not overlap: of ratios the intervals of all
results together, of speeds what lies between the mean and the quickest call of each. Of MANY
results the range is that of the middle 80 %, so that a single odd one does not decide.
"""

from dataclasses import dataclass
from statistics import median

import numpy as np

from helpers.figures import number
from helpers.machines.grouping import by_kind
from helpers.stats import RESOLVED

MANY = 10
VNNI_ALONE = 4  # 64 multiply-adds of INT8 in one instruction, 16 of FP32
WIDER_ALONE = 2  # 16 numbers of FP32 in a vector of AVX-512, 8 in one of AVX2
WIDE = ("AMX", "VNNI", "AVX-512 without VNNI")


@dataclass(frozen=True)
class Range:
    """The median of several results and the range in which they lie."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values):
        """Of (value, low, high) of each; None of nothing."""
        if not values:
            return None
        middles, lows, highs = zip(*values)
        if len(values) >= MANY:
            low, high = np.percentile(lows, 10), np.percentile(highs, 90)
        else:
            low, high = min(lows), max(highs)
        return cls(median(middles), float(low), float(high), len(values))

    def __str__(self):
        return f"{number(self.median)} [{number(self.low)} - {number(self.high)}]"

    def against(self, other):
        """ "more" or "less", where the ranges do not overlap, else "alike"."""
        if self.low > other.high:
            return "more"
        return "less" if self.high < other.low else "alike"


def ratios(entries, name, size):
    """The Range of a candidate's ratio over results; None where none has it."""
    found = [ratio.throughput_times for e in entries if (ratio := e.ratio(name, size))]
    return Range.of([(times.median, times.low, times.high) for times in found])


def per_core(entries, name, size):
    """The Range of images/s per core over results; None where none was measured."""
    found = [(batch, e.cores) for e in entries if (batch := e.batch(name, size))]
    return Range.of([(b.throughput_fps / c, b.throughput_fps / c, b.best / c) for b, c in found])


def results(count):
    return "1 result" if count == 1 else f"{count} results"


def with_(kind):
    """How a kind of CPU stands in a sentence."""
    if kind.endswith(" by cap"):
        return f"CPUs capped to {kind.removesuffix(' by cap').removesuffix(' only')}"
    return f"CPUs with {kind}" if kind != "no AVX2" else "CPUs without AVX2"


def topics(group, size):
    """What a group shows at a batch size: {topic: sentences}, a topic without any left empty."""
    parts = by_kind(group.at(size))
    single = {"gains": gains, "vnni": vnni, "amx": amx, "wider": wider, "core": core}
    found = {topic: [say(parts, group, size)] for topic, say in single.items()}
    found |= {"travel": travel(parts, group, size), "caps": caps(parts, group, size)}
    return {topic: list(filter(None, sentences)) for topic, sentences in found.items()}


def lessons(group, size):
    """Every sentence that a group shows at a batch size, in the order of `topics`."""
    return [sentence for sentences in topics(group, size).values() for sentence in sentences]


def _ratios(parts, group, size):
    """{kind: Range of the candidate's ratio}, of the kinds that have it."""
    found = {kind: ratios(members, group.candidate, size) for kind, members in parts.items()}
    return {kind: value for kind, value in found.items() if value}


def _count(members, group, size):
    """How many results have the candidate's ratio, and how many of them do not know it to ±5 %."""
    known = [ratio for entry in members if (ratio := entry.ratio(group.candidate, size))]
    loose = sum(not ratio.throughput_times.resolved for ratio in known)
    if not loose:
        return results(len(known))
    which = "" if loose == len(known) else f"{loose} of them "
    return f"{results(len(known))}, {which}not resolved to ±{100 * RESOLVED:.0f} %"


def gains(parts, group, size):
    """What INT8 gains on each kind of CPU."""
    found = _ratios(parts, group, size)
    if not found:
        return None
    told = [
        f"{value} on {with_(kind)} ({_count(parts[kind], group, size)})"
        for kind, value in found.items()
    ]
    told[0] = told[0].replace("]", f"] times the throughput of {group.baseline}", 1)
    many = any(value.count >= MANY for value in found.values())
    brackets = f" In brackets: the middle 80 % of {MANY} results or more." if many else ""
    return f"At batch {size} {group.candidate} gives {'; '.join(told)}.{brackets}"


def _is_int8(group):
    return group.candidate.startswith("INT8") and group.baseline == "FP32"


def vnni(parts, group, size):
    """Why VNNI gains up to 4: beside CPUs without it, and beside what its instruction gives."""
    known = _ratios(parts, group, size)
    here = known.get("VNNI")
    if not here or not _is_int8(group):
        return None
    share = (
        "VNNI multiplies and adds 64 bytes in one instruction where FP32 does 16 numbers, so the "
        f"instruction alone can give {VNNI_ALONE}; "
    )
    if here.low > VNNI_ALONE:
        share += (
            f"{number(here.median)} is more, so something besides it helps INT8, such as a quarter "
            "of the bytes to bring."
        )
    else:
        share += f"{here.median / VNNI_ALONE:.0%} of that is achieved."
    other = known.get("AVX2 only") or known.get("AVX-512 without VNNI")
    if not other:
        return share
    return (
        f"{share} "
        + {
            "more": f"Without it INT8 takes three instructions for that and gains less, "
            f"{number(other.median)}.",
            "less": f"Yet CPUs without it gain more here, {number(other.median)}: something else "
            "than the instruction decides.",
            "alike": "These files do not show that it gains more than CPUs without it: the ranges "
            "overlap.",
        }[here.against(other)]
    )


def amx(parts, group, size):
    """Why AMX gains more than VNNI, where both were measured."""
    known = _ratios(parts, group, size)
    here, other = known.get("AMX"), known.get("VNNI") or known.get("AVX2 only")
    if not here or not other or not _is_int8(group):
        return None
    than = "VNNI" if "VNNI" in known else "AVX2"
    return {
        "more": f"AMX gains more than {than}, {number(here.median)} against "
        f"{number(other.median)}: one of its instructions multiplies two blocks of a matrix, "
        "16,384 multiply-adds of bytes, and FP32 has no such unit.",
        "less": f"AMX gains less than {than} here, {number(here.median)} against "
        f"{number(other.median)}: the unit is there, and something else takes the time.",
        "alike": f"These files do not show that AMX gains more than {than}: the ranges overlap.",
    }[here.against(other)]


def missing_amx(entries):
    """What is to be said of AMX where nobody measured it: that, and no figure."""
    if any(entry.kind == "AMX" for entry in entries):
        return None
    return (
        "No result of a CPU with AMX is among these files, so they say nothing of what AMX gains. "
        "It multiplies blocks of a matrix in one instruction where VNNI multiplies vectors."
    )


def wider(parts, group, size):
    """What AVX-512 is worth to FP32: per core, and on one machine where it was capped."""
    if group.baseline != "FP32":
        return None
    wide = [entry for kind in WIDE for entry in parts.get(kind, [])]
    narrow = parts.get("AVX2 only", [])
    here, other = per_core(wide, "FP32", size), per_core(narrow, "FP32", size)
    told = []
    if here and other:
        times = number(here.median / other.median)
        told.append(
            f"FP32 does {number(here.median)} images/s per core with AVX-512 and "
            f"{number(other.median)} with AVX2 only at batch {size}: "
            + {
                "more": f"{times} times. A vector of AVX-512 holds 16 numbers, not 8, which alone "
                f"can give {WIDER_ALONE}; clock, caches and design differ, too.",
                "less": f"{times} times, so here the wider vectors do not decide; clock, caches "
                "and design differ, too.",
                "alike": "the ranges overlap, so these files do not show what wider vectors are "
                "worth.",
            }[here.against(other)]
        )
    told += [_one_machine(*pair, size) for pair in same_machine(parts)[:1]]
    return " ".join(told) or None


def same_machine(parts):
    """Pairs (as it is, capped to AVX2) of results of one machine, as far as a file can tell."""
    capped = parts.get("AVX2 only by cap", [])
    wide = [entry for kind in WIDE for entry in parts.get(kind, [])]
    pairs = [(whole, less) for less in capped for whole in wide if _who(whole) == _who(less)]
    return pairs


def _who(entry):
    facts = entry.result.machine
    return facts.cpu, facts.microarchitecture, entry.cores, facts.memory_gib


def _one_machine(whole, less, size):
    fast, slow = (per_core([entry], "FP32", size) for entry in (whole, less))
    if not fast or not slow:
        return ""
    word = {
        "more": f"FP32 is {number(fast.median / slow.median)} times as fast with AVX-512",
        "less": f"FP32 is {number(fast.median / slow.median)} times as fast with AVX-512, slower",
        "alike": "FP32 is not shown to be faster with AVX-512: the ranges overlap",
    }[fast.against(slow)]
    return (
        f"On one and the same {whole.cpu} ({number(fast.median)} images/s per core as it is, "
        f"{number(slow.median)} capped to AVX2) {word}."
    )


def core(parts, group, size):
    """What a core of one kind does beside a core of another, in the candidate's precision."""
    real = {kind: members for kind, members in parts.items() if not kind.endswith(" by cap")}
    speeds = {kind: per_core(members, group.candidate, size) for kind, members in real.items()}
    speeds = {kind: value for kind, value in speeds.items() if value}
    if len(speeds) < 2:
        return None
    fast = max(speeds, key=lambda kind: speeds[kind].median)
    slow = min(speeds, key=lambda kind: speeds[kind].median)
    told = (
        f"One physical core does {number(speeds[fast].median)} images/s in {group.candidate} on "
        f"{with_(fast)} and {number(speeds[slow].median)} on {with_(slow)}: "
    )
    if speeds[fast].against(speeds[slow]) == "more":
        worth = number(speeds[fast].median / speeds[slow].median)
        return f"{told}it takes {worth} cores of the second for one of the first."
    return f"{told}the ranges overlap, so a core is not shown to be worth more."


def cores(groups_, size_of=max):
    """What further cores bring: results of one machine that differ in their threads, over groups.

    A sentence for each machine and model, at the one of their batch sizes that `size_of` takes.
    """
    alike = {}
    for group in groups_:
        if not group.mixed:
            for entry in group.entries:
                fixed = {k: v for k, v in group.key.items() if k != "threads"}
                facts = entry.result.machine
                who = (facts.cpu, facts.microarchitecture, facts.physical_cores, facts.memory_gib)
                alike.setdefault((*fixed.items(), entry.kind, who), []).append((group, entry))
    told = []
    for members in alike.values():
        ordered = sorted(members, key=lambda pair: pair[1].threads)
        (group, few), (_, many) = ordered[0], ordered[-1]
        sizes = set(few.sizes) & set(many.sizes)
        if few.threads < many.threads and sizes:
            told.append(_scaling(few, many, group.candidate, size_of(sizes)))
    return [sentence for sentence in told if sentence]


def _scaling(few, many, name, size):
    slow, fast = few.batch(name, size), many.batch(name, size)
    if not slow or not fast:
        return None
    times = fast.throughput_fps / slow.throughput_fps
    start = (
        f"{few.result.model} in {name} at batch {size} on {few.cpu}: {many.threads} threads do "
        f"{number(times)} times the images of {few.threads}"
    )
    if many.cores == few.cores:
        end = "a second thread on a core"
        return f"{start}, on the same {few.cores} cores: {end} {_brings(times)}."
    return (
        f"{start}, on {number(many.cores / few.cores)} times the cores: a core is worth "
        f"{times / (many.cores / few.cores):.0%} of what it is among {few.cores}."
    )


def _brings(times):
    if times > 1 + RESOLVED:
        return f"brings {times - 1:.0%}"
    return "costs time" if times < 1 - RESOLVED else "brings nothing"


def spread(values):
    """How many times the largest value is the smallest; of MANY or more, 90 % against 10 %."""
    ends = np.percentile(values, (10, 90)) if len(values) >= MANY else (min(values), max(values))
    return float(ends[1] / ends[0])


def spreads(entries, group, size):
    """{"FP32", "INT8": spread of the throughput, "ratio": of the ratio}; None of fewer than two."""
    name, base = group.candidate, group.baseline
    whole = [e for e in entries if e.batch(base, size) and e.ratio(name, size)]
    if len(whole) < 2:
        return None
    return {
        base: spread([e.batch(base, size).throughput_fps for e in whole]),
        name: spread([e.batch(name, size).throughput_fps for e in whole]),
        "ratio": spread([e.ratio(name, size).throughput_times.median for e in whole]),
    }


def beside(ratio, speed):
    """Whether a ratio differs "less" or "more" than a speed, by more than 5 %; else "as far as"."""
    if ratio * (1 + RESOLVED) < speed:
        return "less than"
    return "more than" if ratio > speed * (1 + RESOLVED) else "as far as"


def travels(found):
    """Whether a ratio differs "less" or "more" than both speeds; else "alike"."""
    *speeds, ratio = found.values()
    words = {beside(ratio, speed).removesuffix(" than") for speed in speeds}
    return words.pop() if words in ({"less"}, {"more"}) else "alike"


def words(found):
    """How far the ratio differs beside each of the speeds, in words."""
    *speeds, ratio = found
    told = [f"{beside(found[ratio], found[name])} {name}'s speed" for name in speeds]
    return f"it differs {' and '.join(told)}"


def travelling(parts, group, size):
    """{which machines: spreads} of each kind with two machines or more, and of all kinds."""
    real = {kind: members for kind, members in parts.items() if not kind.endswith(" by cap")}
    sets = {f"{results(len(members))} on {with_(kind)}": members for kind, members in real.items()}
    everything = [entry for members in real.values() for entry in members]
    if len(real) > 1:
        sets[f"{len(everything)} results on {len(real)} kinds of CPU"] = everything
    found = {which: spreads(members, group, size) for which, members in sets.items()}
    return {which: values for which, values in found.items() if values}


def travel(parts, group, size):
    """How far speeds, and how far ratios, differ between machines of one kind, and of all."""
    found = travelling(parts, group, size)
    told = [_travel(which, values, group, size) for which, values in found.items()]
    real = [members for kind, members in parts.items() if not kind.endswith(" by cap")]
    if real and max(map(len, real)) == 1:
        told.append(
            "No two of these results are of one kind of CPU, so how well a ratio travels within a "
            "kind is not shown."
        )
    return told


def _travel(which, found, group, size):
    base, name, ratio = group.baseline, group.candidate, found["ratio"]
    verdict = {
        "less": "it travels better than the times",
        "more": "it travels worse than the times",
        "alike": words(found),
    }[travels(found)]
    return (
        f"Between {which} the throughput of {base} at batch {size} differs by "
        f"{number(found[base])} times, that of {name} by {number(found[name])}, their ratio by "
        f"{number(ratio)}: {verdict}."
    )


def caps(parts, group, size):
    """How far a cap of oneDNN and real CPUs of that kind lie apart."""
    told = []
    for kind, members in parts.items():
        real = parts.get(kind.removesuffix(" by cap"), [])
        if not kind.endswith(" by cap") or not real:
            continue
        told.append(_cap(members, real, kind.removesuffix(" by cap"), group, size))
    return [sentence for sentence in told if sentence]


def _cap(members, real, kind, group, size):
    pairs = [
        (f"times {group.baseline}", ratios, group.candidate),
        (f"images/s of {group.baseline} per core", per_core, group.baseline),
        (f"images/s of {group.candidate} per core", per_core, group.candidate),
    ]
    told, apart = [], []
    for what, measure, name in pairs:
        capped, own = (measure(entries, name, size) for entries in (members, real))
        if capped and own:
            apart.append(capped.median / own.median - 1)
            told.append(
                f"{number(capped.median)} against {number(own.median)} {what} ({apart[-1]:+.0%})"
            )
    if len(told) < len(pairs):
        return None
    cpus = ", ".join(sorted({entry.cpu for entry in members}))
    own = ", ".join(sorted({entry.cpu for entry in real}))
    end = (
        "The cap tells the ratio of the real CPU to within 5 %"
        if abs(apart[0]) <= RESOLVED
        else "The cap does not tell the ratio of the real CPU to within 5 %"
    )
    speed = "" if max(map(abs, apart[1:])) <= RESOLVED else "; the speeds are its own"
    return (
        f"{kind} by cap on {cpus} beside {kind} as it is on {own}, at batch {size}, "
        f"{group.candidate}: {', '.join(told)}. {end}{speed}."
    )
