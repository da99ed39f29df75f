"""Statistics of outputs and of times, with NumPy alone."""

import numpy as np

from helpers import UserError

GARBAGE_SQNR_DB = 3.0


STEADY_SPREAD_PERCENT = 10.0


STEADY_SLOWDOWN_PERCENT = 25.0


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


def accuracy(outputs, labels):
    """Share of outputs (N, classes) whose largest entry is the label; None without labels."""
    if labels is None:
        return None
    return {"top1": float((outputs.argmax(1) == labels).mean()), "images": len(labels)}


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
