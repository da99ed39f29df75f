"""Every number that a reader sees, by value, on outputs and durations made up for it."""

import numpy as np
import pytest

from helpers import UserError, stats
from helpers.stats import Round


def calls(*durations, batch_size=1):
    return Round.of_calls(batch_size, list(durations))


def estimate(median, low, high):
    return {"median": median, "low": low, "high": high, "coverage": 0.95}


def test_sqnr_by_hand():
    assert stats.sqnr_db([3.0, 4.0], [3.0, 4.5]) == pytest.approx(20.0)
    assert stats.sqnr_db([1.0], [1.0]) == float("inf")


def test_garbage_is_not_timed():
    rng = np.random.default_rng(0)
    reference = np.eye(10)[rng.integers(0, 10, 50)]
    good = stats.agreement(reference, reference + 0.01, "INT8")
    assert good["top1"] == 1.0 and good["sqnr_db"] > 20
    for bad, message in [
        (np.full_like(reference, 0.1), "does not compute"),
        (reference[::-1], "does not compute"),
        (np.where(reference > 0, np.nan, 0), "not finite"),
        (reference[:, :5], "gives outputs"),
    ]:
        with pytest.raises(UserError, match=message):
            stats.agreement(reference, bad, "INT8")
    known = stats.agreement(reference, reference[::-1], "INT8", -np.inf)
    assert known["sqnr_db"] < stats.GARBAGE_SQNR_DB
    with pytest.raises(UserError, match="FP32 gives outputs that are not finite"):
        stats.agreement(np.full((4, 3), np.nan), np.eye(4, 3), "INT8")


def test_agreement_counts_equal_classes():
    reference = np.eye(4)
    moved = np.where([[False]] * 3 + [[True]], np.roll(reference, 1, axis=1), reference)
    found = stats.agreement(reference, moved, "INT8")
    assert found == {"top1": 0.75, "sqnr_db": pytest.approx(10 * np.log10(4 / 2), abs=0.01)}


def test_accuracy_is_the_share_of_right_classes():
    outputs = np.eye(3)[[0, 1, 2, 2]]
    assert stats.accuracy(outputs, np.array([0, 1, 2, 0])) == {"top1": 0.75, "images": 4}
    assert stats.accuracy(outputs, None) is None


def test_throughput_counts_all_calls_of_all_rounds():
    # the last call is fast; the sample that this package replaces divided all images by its time
    entry = stats.summarise(8, [calls(1.0, 1.0, batch_size=8), calls(2.9, 0.1, batch_size=8)])
    assert (entry["batch_size"], entry["calls"], entry["rounds"]) == (8, 4, 2)
    assert entry["throughput_fps"] == pytest.approx(8 * 4 / 5.0)
    assert entry["best_fps"] == pytest.approx(80)
    ms = entry["latency_ms"]
    assert (ms["best"], ms["p50"], ms["mean"]) == pytest.approx((100, 1000, 1250))


def test_percentiles_by_value_and_none_from_too_few_calls():
    thousand = np.arange(1, 1001) / 1000
    ms = stats.summarise(1, [calls(*thousand[::2]), calls(*thousand[1::2])])["latency_ms"]
    assert ms["p50"] == pytest.approx(500.5)
    assert ms["p90"] == pytest.approx(900.1) and ms["p99"] == pytest.approx(990.01)
    for count, known in ((19, ()), (20, ("p90",)), (199, ("p90",)), (200, ("p90", "p99"))):
        ms = stats.summarise(1, [calls(*[0.5] * count)])["latency_ms"]
        assert [key for key in ("p90", "p99") if ms[key] is not None] == [*known], count


@pytest.mark.parametrize(("count", "k"), [(1, 1), (5, 1), (7, 1), (9, 1), (10, 2), (13, 3)])
def test_the_interval_is_made_of_order_statistics(count, k):
    values = np.random.default_rng(count).permutation(np.arange(1.0, count + 1))
    found = stats.interval(values)
    assert (found["low"], found["high"]) == (k, count + 1 - k)
    assert found["median"] == (count + 1) / 2
    exact = {1: 0.0, 5: 0.938}.get(count, 0.95)
    assert found["coverage"] == pytest.approx(exact, abs=5e-4)


def test_one_disturbed_round_does_not_move_the_interval():
    steady = [2.0, 2.01, 1.99, 2.0, 2.02, 1.98, 2.0, 2.01, 1.99]
    disturbed = stats.interval([*steady, 7.0])
    assert disturbed["median"] == pytest.approx(2.0, abs=0.01) and stats.is_resolved(disturbed)
    assert not stats.is_resolved(stats.interval([*steady[:6], 7.0]))


def stopped(draw, limit=40):
    """The interval of rounds that go on until it is resolved, as in measurement.run_rounds."""
    values = draw(limit)
    for count in range(7, limit + 1):
        found = stats.interval(values[:count])
        if stats.is_resolved(found):
            break
    return found


@pytest.mark.parametrize("spread", [0.01, 0.04, 0.08, 0.2])
def test_the_stated_coverage_is_true_although_rounds_go_on_until_resolved(spread):
    """Simulated: skewed ratios whose true median is 1, one round in twenty hit by something."""
    rng = np.random.default_rng(int(1000 * spread))

    def draw(count):
        values = np.exp(spread * rng.standard_normal(count))
        hit = rng.random(count) < 0.05
        return np.where(hit, np.where(values > 1, 3.0, 0.3), values)

    held = [found["low"] <= 1 <= found["high"] for found in (stopped(draw) for _ in range(500))]
    assert np.mean(held) >= stats.STATED_COVERAGE - 0.02  # two standard errors of 500 runs


def test_the_quartiles_would_not_cover_what_is_stated():
    rng = np.random.default_rng(0)
    ends = [np.percentile(rng.standard_normal(9), [25, 75]) for _ in range(500)]
    assert np.mean([low <= 0 <= high for low, high in ends]) < 0.9


def test_ratio_is_taken_within_rounds():
    # the machine is three times slower in the second round, for both
    entry = stats.ratio(
        "INT8", "FP32", 1, [calls(0.1, 0.1), calls(0.3, 0.3)], [calls(0.4, 0.4), calls(1.2, 1.2)]
    )
    assert (entry["candidate"], entry["baseline"], entry["batch_size"]) == ("INT8", "FP32", 1)
    throughput, latency = entry["throughput_times"], entry["latency_times"]
    assert throughput["median"] == throughput["low"] == throughput["high"] == pytest.approx(4)
    assert throughput["best"] == pytest.approx(4)
    assert latency["median"] == latency["best"] == pytest.approx(0.25)
    assert entry["verdict"] == "faster" and entry["resolved"]


def test_throughput_compares_means_and_latency_medians():
    """Skewed calls: the mean of the first is 0.4 s, its median 0.2 s, its best 0.1 s."""
    skewed, even = calls(0.1, 0.2, 0.9), calls(0.3, 0.4, 0.5)
    entry = stats.ratio("INT8", "FP32", 1, [skewed] * 7, [even] * 7)
    assert entry["throughput_times"]["median"] == pytest.approx(1.0)
    assert entry["latency_times"]["median"] == pytest.approx(0.5)
    assert entry["throughput_times"]["best"] == pytest.approx(3.0)
    assert entry["latency_times"]["best"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("ends", "word"),
    [
        ((1.2, 1.1, 1.3), "faster"),
        ((1.2, 0.99, 1.3), "not resolved"),
        ((0.8, 0.7, 0.85), "slower"),
        ((1.0, 0.985, 1.015), "no effect"),
        ((1.01, 1.005, 1.015), "no effect"),  # it is, but by less than counts
        ((1.39, 0.95, 1.75), "not resolved"),
    ],
)
def test_words_for_an_interval(ends, word):
    assert stats.verdict(estimate(*ends)) == word


def test_an_effect_is_one_only_beyond_chance():
    assert stats.verdict(estimate(1.2, 1.1, 1.3), estimate(1.0, 0.9, 1.15)) == "not resolved"
    assert stats.verdict(estimate(0.8, 0.7, 0.85), estimate(1.0, 0.9, 1.1)) == "slower"
    assert stats.verdict(estimate(0.8, 0.7, 0.95), estimate(1.0, 0.9, 1.1)) == "not resolved"
    assert stats.verdict(estimate(0.8, 0.7, 0.95), estimate(1.1, 1.05, 1.2)) == "slower"


def test_noise_by_value():
    even = [calls(0.4)] * 7
    faster = [calls(0.1)] * 7
    steady = stats.ratio("INT8", "FP32", 1, faster, even)
    assert stats.noise([steady], [even, faster]) == {
        "verdict": "steady",
        "resolved": 1,
        "ratios": 1,
        "spread_percent": 0.0,
        "slowdown_percent": 0.0,
    }
    wide = stats.ratio("INT8", "FP32", 1, faster, [calls(x) for x in np.linspace(0.32, 0.44, 7)])
    slow = [calls(0.2, 0.2, 0.3, 0.3, 0.3)]
    noise = stats.noise([steady, wide], [even, slow])
    assert (noise["verdict"], noise["resolved"], noise["ratios"]) == ("noisy", 1, 2)
    # the latency's interval is [0.1 / 0.44, 0.1 / 0.32] around 0.1 / 0.38
    assert noise["spread_percent"] == pytest.approx(100 * (0.38 / 0.32 - 1), abs=0.06)
    assert noise["slowdown_percent"] == pytest.approx(50)


def test_a_longer_run_does_not_look_noisier():
    """The slowdown is measured against a tenth of the calls, not against the very best one."""
    rng = np.random.default_rng(0)
    short, long = ([calls(*rng.gamma(4, 0.1, count))] for count in (50, 5000))
    found = [stats.noise([], [turns])["slowdown_percent"] for turns in (short, long)]
    assert found[1] == pytest.approx(found[0], rel=0.3)
