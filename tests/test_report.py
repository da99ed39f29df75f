"""What is said of a result: every sentence is computed, from results made up for it."""

import copy
import json

import pytest

from helpers import UserError, stats
from helpers.benchmark import report
from helpers.stats import Round

MACHINE = {"usable_cores": 2, "cpu": "a CPU", "isa": ["avx2", "avx512_vnni"], "isa_cap": None}


def candidate(name, durations, kinds=None, runtime="tensorflow"):
    rounds = [Round.of_calls(size, calls) for size, calls in durations.items() for calls in [calls]]
    batches = [stats.summarise(size, [turn] * 7) for size, turn in zip(durations, rounds)]
    executed = {kind: {"count": n, "share": 0.5} for kind, n in (kinds or {}).items()}
    entry = {"name": name, "runtime": runtime, "batches": batches, "kernels": executed}
    return {**entry, "variants": [], "bytes": 1_000_000, "accuracy": None}


def made_up(fp32=(0.01, 0.32), int8=(0.005, 0.08), spread=0.0, **changes):
    """A result of FP32 and INT8 at batch 1 and 32: seconds of the median call at each."""
    both = {"FP32": dict(zip((1, 32), fp32)), "INT8": dict(zip((1, 32), int8))}
    kinds = {"FP32": {"f32": 7}, "INT8": {"s8": 7}}
    factors = [1 + spread * step / 3 for step in range(-3, 4)]
    ratios = []
    for size in (1, 32):
        turns = [Round.of_calls(size, [both["INT8"][size] * factor] * 3) for factor in factors]
        base = [Round.of_calls(size, [both["FP32"][size]] * 3)] * 7
        ratios.append(stats.ratio("INT8", "FP32", size, turns, base))
    result = {
        "schema": 2,
        "model": "small",
        "profile": "full",
        "machine": MACHINE,
        "settings": {"threads": 2, "batch_sizes": [1, 32]},
        "candidates": [
            candidate(name, {size: [s] * 3 for size, s in times.items()}, kinds[name])
            for name, times in both.items()
        ],
        "ratios": ratios,
        "agreement": {"INT8": {"top1": 0.953, "sqnr_db": 31.0}},
        "noise": stats.noise(ratios, []),
        "failed": {},
    }
    return {**result, **changes}


def words(text):
    return " ".join(text.split())


def test_tables_by_value():
    result = made_up()
    assert words(report.absolute_table(result)) == (
        "Model FP32 INT8 throughput(fps) 100 400 at batch 32 latency(ms) 10.00 5.00 at batch 1"
    )
    assert words(report.times_table(result)) == (
        "Model FP32 INT8 throughput_times 1 4 at batch 32 latency_times 1 0.5 at batch 1"
    )
    rows = report.detail_table(result).splitlines()
    assert words(rows[1]) == "1 FP32 10.00 10.00 – 10.00 100 1"
    assert words(rows[4]) == "32 INT8 80.00 80.00 – 80.00 400 4 [4 - 4] 4 faster"


def test_the_headline_is_computed_and_names_the_threads():
    text = report.conclusion(made_up())
    assert "INT8 gives 4 times the throughput of FP32 at batch 32 [4 - 4]" in text
    assert "0.5 times its latency at batch 1" in text and "on 2 cores of" in text
    assert "holds the true median ratio in 95% of such runs (7 rounds)" in text
    assert "Every ratio is resolved" in text and "slower" not in text and "best calls" not in text
    one = made_up(settings={"threads": 1, "batch_sizes": [1, 32]})
    assert "on 1 core" in report.conclusion(one)


def test_slower_no_effect_and_not_resolved_are_told_apart():
    slow = report.conclusion(made_up(int8=(0.02, 0.4)))
    assert "INT8 is slower at batch 1, 32. The CPU has INT8 instructions" in slow
    old = report.conclusion(made_up(int8=(0.02, 0.4), machine={**MACHINE, "isa": ["avx2"]}))
    assert "Without VNNI or AMX" in old
    same = report.conclusion(made_up(int8=(0.01, 0.08)))
    assert "INT8 is as fast as FP32 at batch 1, within 2 %" in same and "slower" not in same
    open_ = report.conclusion(made_up(int8=(0.01, 0.3), spread=0.3))
    assert "Whether INT8 is faster at batch 1, 32 is not resolved." in open_


def test_hints_by_cause():
    wide = made_up(spread=0.3)
    assert wide["noise"]["resolved"] == 0
    text = report.conclusion(wide)
    assert "0 of 2 ratios are resolved to within ±5 %; the widest interval is ±43 %" in text
    assert "run longer (without --quick)" in text and "another hour" not in text
    wide["noise"]["slowdown_percent"] = 80.0
    text = report.conclusion(wide)
    assert "up to 80 % longer than the quickest tenth" in text and "another hour" in text


def test_both_views_where_they_differ():
    result = made_up()
    result["ratios"][1]["throughput_times"]["best"] = 6.0
    text = report.conclusion(result)
    assert "medians over the rounds" in text and "it is 6 and 0.5 times" in text


def test_fp32_without_itex_mixtures_and_failures_are_told():
    result = made_up()
    pilot = {"batch_size": 32, "variant": "without ITEX"}
    result["candidates"][0]["variants"] = [
        {**pilot, "best_ms": {"ITEX": 495.0, "without ITEX": 266.0}}
    ]
    result["candidates"][1]["kernels"]["f32"] = {"count": 2, "share": 0.1}
    result["failed"] = {"legacy": "legacy was ended by SIGSEGV."}
    text = report.conclusion(result)
    assert "At batch 32 FP32 ran without ITEX, which took 266 ms where ITEX took 495 ms." in text
    assert "INT8 is a mixture; its layers ran as 7 s8, 2 f32." in text
    assert "legacy is left out: legacy was ended by SIGSEGV." in text


def test_another_runtime_is_compared_with_a_word():
    result = made_up()
    result["candidates"].append(
        candidate("OpenVINO INT8", {1: [0.004] * 3, 32: [0.08] * 3}, {"s8": 7}, "openvino")
    )
    text = report.conclusion(result)
    assert "INT8 and OpenVINO INT8 were not in the same rounds" in text and "Against" not in text
    for size, own in ((1, 0.005), (32, 0.08)):
        turns = [Round.of_calls(size, [own] * 3)] * 7
        base = [Round.of_calls(size, [0.004 if size == 1 else 0.08] * 3)] * 7
        result["ratios"].append(stats.ratio("INT8", "OpenVINO INT8", size, turns, base))
    text = report.conclusion(result)
    assert "INT8 gives 4 times the throughput of FP32" in text
    assert (
        "Against OpenVINO INT8, INT8 gives 1 times the throughput at batch 32 [1 - 1]: no effect, "
        "and 0.8 times the throughput at batch 1 [0.8 - 0.8]: slower."
    ) in text


def test_an_older_result_can_be_read(tmp_path):
    result = made_up()
    old = copy.deepcopy(result) | {"schema": 1}
    for entry in old["candidates"]:
        del entry["kernels"], entry["variants"], entry["runtime"]
        for batch in entry["batches"]:
            del batch["rounds"], batch["best_fps"]
    for entry in old["ratios"]:
        del entry["verdict"], entry["resolved"]
        for key in ("throughput_times", "latency_times"):
            del entry[key]["coverage"]
    old["noise"] = {"verdict": "steady", "spread_percent": 0.0, "slowdown_percent": 0.0}
    del old["failed"]
    path = tmp_path / "result.json"
    path.write_text(json.dumps(old))
    text = report.conclusion(report.read(path))
    assert "INT8 gives 4 times the throughput" in text and "Every ratio is resolved" in text
    assert "the interval of the median ratio over the rounds" in text
    for broken in ("{", "[1]", '{"ratios": []}'):
        path.write_text(broken)
        with pytest.raises(UserError, match="is no result of this package"):
            report.read(path)


def test_figures_are_drawn_and_described(tmp_path):
    result = made_up(spread=0.1)
    told = [figure.get_suptitle() for _, figure in report.draw(result)]
    assert told[0].endswith("INT8 400 images/s at batch 32, 5 ms at batch 1"), told
    assert told[1].endswith("INT8 4 times the throughput of FP32, 0.5 times the latency"), told
    paths = report.save_figures(result, tmp_path)
    assert [path.name for path in paths] == ["fp32_int8_absolute.png", "fp32_int8_times.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert "throughput(fps) 100 400 at batch 32" in report.alt_text(paths[0], result)
    assert "latency_times 1 0.5 at batch 1" in report.alt_text(paths[1], result)
