import os

import pytest
from conftest import SHAPE, images

from helpers import UserError, benchmark, graphs, tuning

EFFORT = {"rounds": 2, "seconds": 0.02, "min_calls": 2, "progress": False}


def ratios(median, low, high):
    return {"median": median, "low": low, "high": high}


def test_cores_are_shared_evenly():
    assert machine.splits([0, 1, 2, 3]) == {
        1: [(0, 1, 2, 3)],
        2: [(0, 2), (1, 3)],
        4: [(0,), (1,), (2,), (3,)],
    }
    assert list(machine.splits(range(12), most=4)) == [1, 2, 3, 4]
    assert machine.splits([5]) == {1: [(5,)]}
    assert set(machine.cores()) <= os.sched_getaffinity(0)


class Fake:
    """A worker whose calls take `seconds` each from its start until the window ends."""

    def __init__(self, seconds):
        self.seconds = seconds

    def tell(self, request):
        begin, self.calls = request["end"] - 10 * self.seconds - 3.5, []
        while begin < request["end"]:
            self.calls.append([begin, begin + self.seconds])
            begin += self.seconds

    def hear(self):
        return self.calls


def test_a_window_counts_what_lies_within_it():
    """Calls of 1 s and of 4 s: 6 s hold 6 and 1.5 of them, though none starts at the window."""
    fps, durations = tuning.window([Fake(1.0), Fake(4.0)], 8, 6.0)
    assert fps == pytest.approx(8 * (6 + 1.5) / 6)
    assert len(durations) == 7 + 2  # that many touch it


def test_instances_run_at_the_same_time_on_their_own_cores(small, tmp_path):
    cpu = min(os.sched_getaffinity(0))
    chosen = [benchmark.Candidate(name, small["int8"], cpus=(cpu,)) for name in "ab"]
    with benchmark.workers_for(chosen, 1, tmp_path) as workers:
        tuning.get_ready(workers, images(8), [4], tmp_path)
        for one in workers.values():
            assert os.sched_getaffinity(one.process.pid) == {cpu}
        alone, _ = tuning.window([workers["a"]], 4, 0.5)
        both, _ = tuning.window(list(workers.values()), 4, 0.5)
    assert 0 < both < 1.7 * alone  # on one core two are not twice as fast


def executed(graph):
    """The operations of a graph after the optimisers of its session."""
    import tensorflow as tf

    options = tf.compat.v1.RunOptions(output_partition_graphs=True)
    metadata = tf.compat.v1.RunMetadata()
    feed = {graph.signature.input + ":0": images(2)}
    graph.session.run(graph.signature.output + ":0", feed, options=options, run_metadata=metadata)
    return {node.op for part in metadata.partition_graphs for node in part.node}


def test_stock_leaves_itex_out(small):
    def of_itex(stock):
        ops = executed(graphs.FrozenGraph(small["fp32"], stock=stock))
        return {op for op in ops if "ITEX" in op or op.startswith("OneDnn")}

    assert of_itex(stock=False) and not of_itex(stock=True)


def test_stock_bf16_is_not_fp32(small, monkeypatch):
    x = images(4)
    plain = graphs.FrozenGraph(small["fp32"], stock=True)(x)
    for name, value in benchmark.BF16_KNOBS.items():
        monkeypatch.setenv(name, value)
    mixed = graphs.FrozenGraph(small["fp32"], stock=True)(x)
    assert (mixed != plain).any()
    assert 20 < stats.sqnr_db(plain, mixed) < 80


def test_measure_compares_each_with_the_first_in_groups(small, tmp_path, monkeypatch):
    chosen = [benchmark.Candidate(name, small["fp32"]) for name in ("one", "two", "three")]
    monkeypatch.setattr(tuning, "WORKER_GIB", 1e6)
    assert [[one.name for one in group] for group in tuning.groups(chosen)] == [
        ["one", "two"],
        ["one", "three"],
    ]
    found = tuning.measure(chosen, images(8), [1, 4], tmp_path, threads=1, **EFFORT)
    assert list(found) == ["one", "two", "three"]
    for name, entry in found.items():
        assert entry[4]["ratio"]["candidate"] == name and entry[4]["ratio"]["baseline"] == "one"
        assert 0 < entry[1]["ms"]["best"] <= entry[1]["ms"]["p50"]
    assert found["one"][1]["ratio"]["throughput_times"]["median"] == 1
    monkeypatch.setattr(tuning, "WORKER_GIB", 1e-6)
    assert tuning.groups(chosen) == [chosen] and tuning.groups(chosen[:1]) == [chosen[:1]]


def test_garbage_is_not_tuned(small, tmp_path):
    other = graphs.read_graph(small["fp32"])
    for node in other.node:
        if node.op == "Softmax":
            node.op = "Relu"
    wrong = graphs.write_graph(other, tmp_path / "wrong.pb")
    chosen = [benchmark.Candidate("right", small["fp32"]), benchmark.Candidate("wrong", wrong)]
    with pytest.raises(UserError, match="wrong does not compute"):
        tuning.measure(chosen, images(8), [1], tmp_path, threads=1, **EFFORT)


def test_an_effect_is_one_only_beyond_chance():
    assert stats.verdict(ratios(1.2, 1.1, 1.3)) == "faster"
    assert stats.verdict(ratios(1.2, 1.1, 1.3), ratios(1.0, 0.9, 1.15)) == "no effect"
    assert stats.verdict(ratios(1.2, 0.99, 1.3)) == "no effect"
    assert stats.verdict(ratios(0.8, 0.7, 0.85), ratios(1.0, 0.9, 1.1)) == "slower"
    assert stats.verdict((0.8, 0.7, 0.95), ratios(1.1, 1.05, 1.2)) == "slower"
    assert stats.times((2.0, 1.5, 2.5)) == stats.times(ratios(2.0, 1.5, 2.5))


def test_operations_by_hand(small):
    count = graphs.operations(graphs.read_graph(small["fp32"]), SHAPE)
    first, second, dense = count.values()
    assert first == 2 * (32 * 32 * 16) * (3 * 3 * 3)
    assert second == 2 * (15 * 15 * 16) * (3 * 3 * 16)
    assert dense == 2 * (15 * 15 * 16) * 10


def test_peak_is_that_of_the_best_unit():
    assert tuning.peak("INT8", 2.0, 2, ["avx512_vnni", "amx_int8"]) == (2048 * 4e9, "amx_int8")
    assert tuning.peak("INT8", 2.0, 1, ["avx512_vnni"]) == (256 * 2e9, "avx512_vnni")
    assert tuning.peak("BF16", 2.0, 1, ["avx512f"]) is None


def test_the_clock_does_not_depend_on_the_length_of_the_chain():
    short, long = tuning.clock_ghz(200, 10_000), tuning.clock_ghz(50, 40_000)
    assert 0.5 < short < 7 and short == pytest.approx(long, rel=0.2)


def test_profile_accounts_for_the_call(small):
    ms, found = tuning.profile(small["int8"], images(4), [4], calls=3)[4]
    assert {("convolution", "3×3"), ("matmul", "")} <= set(found)
    assert 0 < sum(found.values()) < ms
