"""Statistics of outputs and of times, with NumPy alone."""

from dataclasses import dataclass
from math import comb

import numpy as np

from helpers import UserError

GARBAGE_SQNR_DB = 3.0  # below it an error has more than half the power of the signal
RESOLVED = 0.05  # an interval within ±5 % of its median is resolved
MARGIN = 0.02  # an interval within ±2 % of 1 shows that there is no effect
# What an interval of a number of rounds fixed beforehand would cover at least. Rounds go on until
# the intervals are narrow, and looking that often costs some of it: 95 % are left (simulated in
# tests/test_stats.py). Fewer than 7 rounds cover less, which is stated with them.
COVERAGE = 0.975
STATED_COVERAGE = 0.95


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
            "those it was calibrated on? Give some of those: --inputs FILE.npy on the command line."
        )
    rows = len(reference)
    same = reference.reshape(rows, -1).argmax(1) == values.reshape(rows, -1).argmax(1)
    return {"top1": float(same.mean()), "sqnr_db": round(min(sqnr, 200.0), 2)}


def accuracy(outputs, labels):
    """Share of outputs (N, classes) whose largest entry is the label; None without labels."""
    if labels is None:
        return None
    return {"top1": float((outputs.argmax(1) == labels).mean()), "images": len(labels)}


@dataclass(frozen=True)
class Round:
    """One turn of a candidate at one batch size.

    `calls` are the durations (s) of its calls, `images` were done in `seconds` by all of its
    processes together, `best_fps` is the highest number of images per second that it showed.
    """

    calls: list
    images: float
    seconds: float
    best_fps: float

    @classmethod
    def of_calls(cls, batch_size, calls):
        """The turn of a single process whose calls follow each other."""
        return cls(calls, batch_size * len(calls), sum(calls), batch_size / min(calls))

    @property
    def fps(self):
        return self.images / self.seconds


def percentile(calls, q):
    """The q-th percentile, or None where fewer than two calls can be expected beyond it."""
    enough = len(calls) * min(q, 100 - q) / 100 >= 2 or (q == 50 and len(calls) >= 3)
    return float(np.percentile(calls, q)) if enough else None


def summarise(batch_size, rounds):
    """The `batches` entry of result.json for all rounds (Round) at one batch size."""
    calls = np.concatenate([turn.calls for turn in rounds])
    ms = 1e3 * calls
    return {
        "batch_size": batch_size,
        "calls": len(calls),
        "rounds": len(rounds),
        "throughput_fps": sum(turn.images for turn in rounds)
        / sum(turn.seconds for turn in rounds),
        "best_fps": max(turn.best_fps for turn in rounds),
        "latency_ms": {
            "p50": float(np.median(ms)),
            "p90": percentile(ms, 90),
            "p99": percentile(ms, 99),
            "best": ms.min(),
            "mean": ms.mean(),
        },
    }


def rank(count, coverage=COVERAGE):
    """Which smallest and largest of `count` sorted values bound the interval, counted from 1.

    The largest k for which the k-th smallest and k-th largest value enclose the true median with
    at least this probability; 1 (all values) where none does.
    """
    fitting = [k for k in range(1, count // 2 + 1) if covers(count, k) >= coverage]
    return max(fitting, default=1)


def covers(count, k):
    """How probable it is that the k-th smallest and k-th largest of `count` values enclose the
    true median: 1 − 2 Σ_{i<k} C(count, i) / 2^count.

    True of any distribution, if the values are independent. Source: the sign test; David and
    Nagaraja, "Order Statistics", section 7.1.
    """
    return max(0.0, 1 - 2 * sum(comb(count, i) for i in range(k)) / 2**count)


def interval(values):
    """Median of the values with its interval: {"median", "low", "high", "coverage"}.

    The interval is made of order statistics (`rank`). "coverage" is the probability with which it
    holds the true median: 0.95, or less where there are fewer than 7 values. It is true of rounds
    that do not depend on each other; a neighbour who comes and goes for minutes makes it smaller.
    """
    ordered = np.sort(np.asarray(values, float))
    count, k = len(ordered), rank(len(ordered))
    coverage = STATED_COVERAGE if covers(count, k) >= COVERAGE else round(covers(count, k), 3)
    coverage = min(coverage, STATED_COVERAGE)
    low, high = float(ordered[k - 1]), float(ordered[count - k])
    return {"median": float(np.median(ordered)), "low": low, "high": high, "coverage": coverage}


def half_width(estimate):
    """How far the ends of an interval lie from its median at most, as a share of the median."""
    return (
        max(estimate["high"] - estimate["median"], estimate["median"] - estimate["low"])
        / (estimate["median"])
    )


def is_resolved(estimate):
    """Whether an interval lies within ±5 % of its median."""
    return half_width(estimate) <= RESOLVED


def verdict(estimate, chance=None):
    """What a throughput ratio's interval shows: one of four phrases.

    "faster" or "slower" where all of it lies on one side of 1; "no effect" where all of it lies
    within ±2 % of 1 (MARGIN); else "not resolved". `chance` is the interval of a comparison in
    which nothing was changed: where the two overlap nothing is resolved, either.
    """
    low, high = estimate["low"], estimate["high"]
    if low >= 1 - MARGIN and high <= 1 + MARGIN:
        return "no effect"
    above, below = (chance["high"], chance["low"]) if chance else (1, 1)
    if low > max(1, above):
        return "faster"
    return "slower" if high < min(1, below) else "not resolved"


def ratio(candidate, baseline, batch_size, rounds, base_rounds):
    """The `ratios` entry of result.json: candidate against baseline, round by round.

    throughput_times compares images per second (> 1 is faster), latency_times the median call
    (< 1 is faster); "best" compares the best that each showed in all rounds.
    """
    pairs = list(zip(rounds, base_rounds, strict=True))
    throughput = interval([turn.fps / base.fps for turn, base in pairs])
    latency = interval([np.median(turn.calls) / np.median(base.calls) for turn, base in pairs])
    best_fps = [max(turn.best_fps for turn in turns) for turns in (rounds, base_rounds)]
    best_call = [min(min(turn.calls) for turn in turns) for turns in (rounds, base_rounds)]
    return {
        "candidate": candidate,
        "baseline": baseline,
        "batch_size": batch_size,
        "throughput_times": {**throughput, "best": best_fps[0] / best_fps[1]},
        "latency_times": {**latency, "best": best_call[0] / best_call[1]},
        "verdict": verdict(throughput),
        "resolved": is_resolved(throughput) and is_resolved(latency),
    }


def noise(ratios, rounds):
    """Whether the ratios can be quoted: the `noise` entry of result.json.

    "verdict": "steady" when every ratio is resolved, else "noisy". "spread_percent": the widest
    interval, as ± percent of its median. "slowdown_percent": by how much the median call takes
    longer than the quickest tenth, at worst over `rounds`, the lists of Round of every candidate
    and batch size. Neighbours on a virtual machine that slow everything down evenly cannot be
    seen from inside it.
    """
    widths = [
        half_width(entry[key]) for entry in ratios for key in ("throughput_times", "latency_times")
    ]
    slowdowns = []
    for turns in rounds:
        p10, p50 = np.percentile(np.concatenate([turn.calls for turn in turns]), [10, 50])
        slowdowns.append(p50 / p10 - 1)
    return {
        "verdict": "steady" if all(entry["resolved"] for entry in ratios) else "noisy",
        "resolved": sum(entry["resolved"] for entry in ratios),
        "ratios": len(ratios),
        "spread_percent": round(100 * max(widths, default=0.0), 1),
        "slowdown_percent": round(100 * max(slowdowns, default=0.0), 1),
    }
