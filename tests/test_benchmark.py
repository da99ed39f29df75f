import json
import os
import signal

import numpy as np
import pytest
from conftest import ROOT, images

from helpers import UserError, benchmark, graphs, report, worker

EFFORT = {"rounds": 4, "seconds": 0.05, "min_calls": 5}


@pytest.fixture(scope="module")
def measured(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result")
    labels = np.zeros(16, int)
    result = benchmark.compare(
        benchmark.candidates(small["fp32"], small["int8"], bf16=True),
        folder,
        "small",
        inputs=images(16),
        labels=labels,
        batch_sizes=(8, 1),
        profile="quick",
        settings={"data": "dummy"},
        progress=False,
        **EFFORT,
    )
    return result, folder


def test_throughput_counts_all_calls_of_all_rounds():
    # the last call is fast; the sample that this package replaces divided all images by its time
    entry = stats.summarise(8, [[1.0, 1.0], [1.9, 0.1]])
    assert entry["calls"] == 4
    assert entry["throughput_fps"] == pytest.approx(8 * 4 / 4.0)
    assert entry["latency_ms"]["best"] == pytest.approx(100)
    assert entry["latency_ms"]["p50"] == pytest.approx(1000)
    assert entry["latency_ms"]["mean"] == pytest.approx(1000)


def test_ratio_is_taken_within_rounds():
    # the machine is three times slower in the second round, for both
    fp32, int8 = [[0.4, 0.4], [1.2, 1.2]], [[0.1, 0.1], [0.3, 0.3]]
    one = stats.ratio("INT8", "FP32", 1, int8, fp32)
    assert one["throughput_times"]["median"] == pytest.approx(4)
    assert one["throughput_times"]["low"] == one["throughput_times"]["high"]
    assert one["latency_times"]["median"] == pytest.approx(0.25)
    assert one["latency_times"]["best"] == pytest.approx(0.25)
    even = stats.summarise(1, [[0.4, 0.4], [0.4, 0.4]])
    verdict = {"verdict": "steady", "spread_percent": 0.0, "slowdown_percent": 0.0}
    assert stats.noise_verdict([one], [even]) == verdict
    held_back = stats.summarise(1, [[0.4, 0.4, 0.2]])
    verdict = {"verdict": "noisy", "spread_percent": 0.0, "slowdown_percent": 100.0}
    assert stats.noise_verdict([one], [even, held_back]) == verdict


def test_noise_is_called_noise():
    rng = np.random.default_rng(0)
    fp32 = [[0.4 * rng.uniform(0.5, 2)] for _ in range(8)]
    one = stats.ratio("INT8", "FP32", 1, [[0.1]] * 8, fp32)
    assert one["throughput_times"]["low"] < one["throughput_times"]["median"]
    even = stats.summarise(1, [[0.4]])
    assert stats.noise_verdict([one], [even])["verdict"] == "noisy"


def test_sqnr_by_hand():
    assert stats.sqnr_db([3.0, 4.0], [3.0, 4.5]) == pytest.approx(20.0)


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


def test_labels_of_equal_points_are_apart_and_on_the_axes():
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    figures.label_points(axis, [(1, 99), (3, 99), (3, 99), (3, 10), (2, 99), (2, 11)], "abcdef")
    heights = sorted(text.xyann[1] for text in axis.texts)
    pyplot.close(figure)
    assert len(heights) == 6 and heights[0] >= 0 and heights[-1] <= 1
    assert np.diff(heights).min() > 0.1


def test_a_baseline_that_is_not_finite_is_not_timed():
    broken = np.full((4, 3), np.nan)
    with pytest.raises(UserError, match="FP32 gives outputs that are not finite"):
        stats.agreement(broken, np.eye(4, 3), "INT8")


def test_timing_meets_both_minimums():
    assert len(worker.time_calls(lambda: None, 0, 7)) == 7
    start = worker.CLOCK()
    durations = worker.time_calls(lambda: None, 0.05, 1)
    assert len(durations) > 1 and worker.CLOCK() - start >= 0.05 >= min(durations)


def test_warm_up_goes_on_until_times_settle():
    import time

    waits = iter([0.03, 0.03, 0.01, 0.01])  # then 0.002 for ever
    warmed = worker.warm_up(lambda: time.sleep(next(waits, 0.002)), window_seconds=0.01)
    assert warmed["settled"] and warmed["calls"] > 5


@pytest.mark.parametrize("offset", [0, 4, 16, 60])
def test_batches_start_where_tensorflow_takes_them_as_they_are(offset):
    room = np.arange(4 * 3 * 5 * 7 + 64, dtype=np.uint8)
    array = room[offset : offset + 4 * 3 * 5 * 7].view(np.float32).reshape(3, 5, 7)
    copy = worker.aligned(array)
    assert copy.ctypes.data % 64 == 0 and copy.flags.c_contiguous and copy.dtype == np.float32
    assert copy.tobytes() == array.tobytes() and copy.shape == array.shape


def test_a_worker_calls_its_graph_with_aligned_batches(monkeypatch, tmp_path):
    class Graph:
        device, signature = "CPU", graphs.Signature("input", "output", (5,), "float32")

        def __call__(self, batch):
            starts.append(batch.ctypes.data % 64)

    starts, answers = [], []
    monkeypatch.setattr(worker, "load", lambda job: (Graph(), {}))
    np.save(tmp_path / "inputs.npy", np.ones((3, 5)))  # float64, as nobody's graph wants it
    inputs = {"do": "inputs", "path": str(tmp_path / "inputs.npy"), "batch_sizes": [1, 2, 3, 4, 7]}
    timed = {"do": "time", "batch_size": 7, "seconds": 0, "min_calls": 2}
    worker.serve({}, map(json.dumps, [inputs, timed]), answers.append)
    assert starts == [0] * 7 and len(answers[-1]) == 2


def test_result_follows_the_schema(measured):
    result, folder = measured
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["schema"] == 1 and result["created"].endswith("Z")
    assert [one["name"] for one in result["candidates"]] == ["FP32", "BF16", "INT8"]
    for one in result["candidates"]:
        assert (folder / one["graph"]).stat().st_size == one["bytes"]
        assert [batch["batch_size"] for batch in one["batches"]] == [1, 8]
        for batch in one["batches"]:
            assert batch["calls"] >= EFFORT["rounds"] * EFFORT["min_calls"]
            ms = batch["latency_ms"]
            assert 0 < ms["best"] <= ms["p50"] <= ms["p90"] <= ms["p99"]
            assert batch["throughput_fps"] == pytest.approx(1e3 * batch["batch_size"] / ms["mean"])
        assert one["accuracy"]["images"] == 16
    assert {(r["candidate"], r["batch_size"]) for r in result["ratios"]} == {
        (name, size) for name in ("BF16", "INT8") for size in (1, 8)
    }
    assert set(result["agreement"]) == {"BF16", "INT8"}
    assert result["noise"]["verdict"] in ("steady", "noisy")
    assert result["software"]["onednn"].startswith("3.")
    assert result["settings"]["threads"] == result["machine"]["usable_cores"]
    assert result["settings"]["data"] == "dummy"


def test_accuracy_is_the_share_of_right_classes():
    outputs = np.eye(3)[[0, 1, 2, 2]]
    assert stats.accuracy(outputs, np.array([0, 1, 2, 0])) == {"top1": 0.75, "images": 4}
    assert stats.accuracy(outputs, None) is None


def test_workers_end_with_the_block(small, tmp_path):
    with (
        pytest.raises(RuntimeError, match="stop"),
        benchmark.workers_for(
            benchmark.candidates(small["fp32"], small["int8"], bf16=False), 1, tmp_path
        ) as workers,
    ):
        processes = [one.process for one in workers.values()]
        raise RuntimeError("stop")
    assert all(process.poll() is not None for process in processes)


def test_a_worker_that_dies_is_told_with_its_log(small, tmp_path):
    chosen = benchmark.candidates(small["fp32"], small["int8"], bf16=False)
    with benchmark.workers_for(chosen, 1, tmp_path) as workers:
        os.kill(workers["INT8"].process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"INT8 process ended .*worker_int8\.log"):
            workers["INT8"].hear()


def test_wrong_inputs_are_an_error_of_the_candidate(small, tmp_path):
    chosen = benchmark.candidates(small["fp32"], small["int8"], bf16=False)
    with pytest.raises(UserError, match="FP32: "):
        benchmark.compare(
            chosen, tmp_path, "small", inputs=np.zeros((4, 5, 5, 3), np.float32), **EFFORT
        )
    assert not (tmp_path / "result.json").exists()


def command(small, tmp_path, *extra):
    words = ["--fp32", str(small["fp32"]), "--int8", str(small["int8"]), "--quick"]
    words += ["--rounds", "2", "--seconds", "0.05", "--batch-size", "1", "4"]
    benchmark.main([*words, "--output", str(tmp_path), *extra])


def test_command_line_prints_the_rows_of_the_original(small, tmp_path, capsys):
    command(small, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Compare the Performance of FP32 and INT8 Models")
    rows = [line.split()[0] for line in lines[start + 1 : start + 9]]
    assert rows == [
        *("Model", "throughput(fps)", "latency(ms)", "Save"),
        *("Model", "throughput_times", "latency_times", "Save"),
    ]
    assert lines[start + 5].split() == ["Model", "FP32", "INT8"]
    for name in ("fp32_int8_absolute.png", "fp32_int8_times.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--fp32", "absent.pb"], "no model at absent.pb"),
        (["--int8", str(ROOT / "README.md")], "not a whole frozen"),
        (["--input-name", "nonsense"], "no node 'nonsense'"),
        (["--shape", "5,5,3"], "FP32: "),
        (["--inputs", str(ROOT / "README.md")], "cannot be read as a NumPy array"),
        (["--rounds", "0"], "2"),
    ],
)
def test_command_line_says_what_is_wrong(small, tmp_path, extra, message):
    with pytest.raises(SystemExit, match=message):
        command(small, tmp_path, *extra)
    assert not (tmp_path / "result.json").exists()


def test_settings_of_notebook_06_are_the_defaults(small, tmp_path):
    path = tmp_path / "settings.json"
    tuned = {"threads": 1, "batch_sizes": [2, 4], "knobs": {"ITEX_LAYOUT_OPT": "1"}, "notes": {}}
    path.write_text(json.dumps(tuned))
    words = ["--fp32", str(small["fp32"]), "--int8", str(small["int8"]), "--bf16"]
    words += ["--rounds", "2", "--seconds", "0.02", "--settings", str(path)]
    benchmark.main([*words, "--output", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["settings"]["threads"] == 1 and result["settings"]["batch_sizes"] == [2, 4]
    assert [one["knobs"] for one in result["candidates"]] == [
        tuned["knobs"],
        {**tuned["knobs"], **benchmark.BF16_KNOBS},
        tuned["knobs"],
    ]


def test_the_command_line_goes_before_the_settings(small, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"threads": 7, "batch_sizes": [9]}')
    command(small, tmp_path, "--settings", str(path), "--threads", "1")
    settings = json.loads((tmp_path / "result.json").read_text())["settings"]
    assert settings["threads"] == 1 and settings["batch_sizes"] == [1, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as settings"),
        ("[1]", "holds no settings"),
        ('{"treads": 2}', "no setting 'treads'. There are: threads"),
        ('{"threads": 0}', "0 will not do for 'threads'"),
        ('{"threads": true}', "true will not do for 'threads'"),
        ('{"batch_sizes": []}', "will not do for 'batch_sizes'"),
        ('{"batch_sizes": [1, "32"]}', "will not do for 'batch_sizes'"),
        ('{"knobs": {"KMP_BLOCKTIME": 1}}', "will not do for 'knobs'"),
        ('{"knobs": ["KMP_BLOCKTIME"]}', "will not do for 'knobs'"),
    ],
)
def test_settings_that_will_not_do(small, tmp_path, text, message):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        command(small, tmp_path, "--settings", str(path))
    with pytest.raises(UserError, match="cannot be read"):
        benchmark.read_settings(tmp_path / "absent.json")


def altered(result, throughput, isa):
    changed = json.loads(json.dumps(result))
    changed["machine"]["isa"] = isa
    for one in changed["ratios"]:
        one["throughput_times"] = dict.fromkeys(("median", "low", "high", "best"), throughput)
    return changed


def test_conclusion_is_computed_from_the_result(measured):
    result, _ = measured
    faster = report.conclusion(altered(result, 7.77, ["amx_int8"]))
    assert "7.77 times the throughput" in faster and "not faster" not in faster and "AMX" in faster
    slower = report.conclusion(altered(result, 0.8, ["avx2"]))
    assert "not faster" in slower and "Without DL Boost" in slower
    assert "neither DL Boost nor AMX" in slower
    puzzling = report.conclusion(altered(result, 0.8, ["avx512_vnni"]))
    assert "not faster" in puzzling and "look at the graph" in puzzling


def test_noise_is_in_the_conclusion(measured):
    noisy = {"verdict": "noisy", "spread_percent": 31.0, "slowdown_percent": 47.0}
    text = report.conclusion({**measured[0], "noise": noisy})
    assert "noisy" in text and "31 %" in text and "47 %" in text
