"""The whole comparison on a small network, and the command line."""

import json

import numpy as np
import pydantic
import pytest
from conftest import ROOT, images

from helpers import UserError, benchmark, graphs, machine, stats
from helpers.benchmark import Candidate, __main__, report
from helpers.benchmark import result as result_module
from helpers.benchmark.measurement import PROFILES, dummy_inputs

EFFORT = {"seconds": 0.05, "min_calls": 5, "min_rounds": 4, "max_rounds": 4}


@pytest.fixture(scope="module")
def measured(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result")
    result = benchmark.compare(
        benchmark.candidates(small["fp32"], small["int8"]),
        folder,
        "small",
        inputs=images(16),
        labels=np.zeros(16, int),
        batch_sizes=(8, 1),
        profile="quick",
        settings={"data": "dummy"},
        progress=False,
        **EFFORT,
    )
    return result, folder


def test_result_is_written_in_the_form_that_is_documented(measured, monkeypatch):
    result, folder = measured
    written = (folder / "result.json").read_text()
    for form in vars(result_module).values():
        if isinstance(form, type) and issubclass(form, dict):
            strict = pydantic.ConfigDict(extra="forbid")
            monkeypatch.setattr(form, "__pydantic_config__", strict, raising=False)
    adapter = pydantic.TypeAdapter(result_module.Result)
    assert adapter.validate_json(written, strict=True)
    assert (
        json.loads(written) == json.loads(json.dumps(result)) == report.read(folder / "result.json")
    )
    less = json.loads(written)
    del less["candidates"][0]["batches"][0]["latency_ms"]["p50"]
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_json(json.dumps(less), strict=True)


def test_result_says_what_was_measured(measured):
    result, _ = measured
    names = ["FP32", "BF16", "INT8"] if machine.has_bf16() else ["FP32", "INT8"]
    assert [entry["name"] for entry in result["candidates"]] == names
    for entry in result["candidates"]:
        assert [batch["batch_size"] for batch in entry["batches"]] == [1, 8]
        for batch in entry["batches"]:
            assert batch["calls"] >= 4 * 5 and batch["rounds"] == 4
            ms = batch["latency_ms"]
            assert 0 < ms["best"] <= ms["p50"]
            assert batch["throughput_fps"] == pytest.approx(1e3 * batch["batch_size"] / ms["mean"])
        assert entry["accuracy"]["images"] == 16
        assert entry["environment"]["TF_ENABLE_ONEDNN_OPTS"] == "1"
    kinds = {"FP32": {"f32"}, "BF16": {"bf16"}, "INT8": {"s8"}}
    for entry in result["candidates"]:
        assert set(entry["kernels"]) == kinds[entry["name"]]
        assert sum(kernel["count"] for kernel in entry["kernels"].values()) == 3
        if entry["kernels_source"] == "oneDNN's log":
            assert all(0 < kernel["share"] <= 1 for kernel in entry["kernels"].values())
    assert {(r["candidate"], r["batch_size"]) for r in result["ratios"]} == {
        (name, size) for name in names[1:] for size in (1, 8)
    }
    assert result["software"]["onednn"].startswith("3.")
    assert result["settings"]["threads"] == result["machine"]["usable_cores"]
    assert result["settings"]["data"] == "dummy"


def test_agreement_is_that_of_the_outputs_that_are_kept(measured, small):
    result, folder = measured
    fp32, int8 = (np.load(folder / "predictions" / f"{name}.npy") for name in ("FP32", "INT8"))
    found = result["agreement"]["INT8"]
    assert (
        found["sqnr_db"] == pytest.approx(stats.sqnr_db(fp32, int8), abs=0.01)
        and found["sqnr_db"] < 60
    )
    assert found["top1"] == (fp32.argmax(1) == int8.argmax(1)).mean()
    assert np.allclose(graphs.FrozenGraph(small["fp32"])(images(16)), fp32, atol=1e-4)
    right = {entry["name"]: entry["accuracy"]["top1"] for entry in result["candidates"]}
    assert right["INT8"] == (int8.argmax(1) == 0).mean()


def test_garbage_that_may_fail_is_left_out_with_its_reason(small, tmp_path):
    other = graphs.read_graph(small["fp32"])
    for node in other.node:
        if node.op == "Softmax":
            node.op = "Relu"
    wrong = graphs.write_graph(other, tmp_path / "wrong.pb")
    chosen = [Candidate("FP32", small["fp32"]), Candidate("wrong", wrong)]
    how = {"inputs": images(8), "batch_sizes": [1], "progress": False}
    with pytest.raises(UserError, match="wrong does not compute"):
        benchmark.measure(chosen, tmp_path, **how, **EFFORT)
    chosen[1].required = False
    found = benchmark.measure(chosen, tmp_path, **how, **EFFORT)
    assert "wrong does not compute" in found["failed"]["wrong"]
    assert [entry["name"] for entry in found["candidates"]] == ["FP32"] and not found["ratios"]


def test_groups_are_measured_each_beside_the_first(small, tmp_path, monkeypatch):
    chosen = [Candidate(name, small["fp32"]) for name in ("one", "two", "three")]
    monkeypatch.setattr(machine, "available_memory", lambda: 1.7)
    how = {"inputs": images(8), "batch_sizes": [1, 4], "threads": 1, "progress": False}
    found = benchmark.measure(chosen, tmp_path, **how, **EFFORT)
    assert [entry["name"] for entry in found["candidates"]] == ["one", "two", "three"]
    assert {(r["candidate"], r["baseline"]) for r in found["ratios"]} == {
        ("two", "one"),
        ("three", "one"),
    }


def test_wrong_inputs_are_an_error_of_the_candidate(small, tmp_path):
    chosen = benchmark.candidates(small["fp32"], small["int8"], bf16=False)
    with pytest.raises(UserError, match="FP32: "):
        benchmark.compare(chosen, tmp_path, "small", np.zeros((4, 5, 5, 3), np.float32), **EFFORT)
    assert not (tmp_path / "result.json").exists()


def facts(dtype, shape=(6,)):
    return {"input": "x", "dtype": dtype, "shape": shape}


def test_dummy_inputs_fit_the_network(small, tmp_path):
    own = [Candidate("FP32", small["fp32"]), Candidate("INT8", small["int8"])]
    low, high = graphs.input_range(graphs.read_graph(small["int8"]))
    made = dummy_inputs(own, facts("float32", (8, 8, 3)), 20)
    assert made.shape == (20, 8, 8, 3) and made.dtype == np.float32
    assert low <= made.min() < low + 0.2 * (high - low) < made.max() <= high
    plain = dummy_inputs(own[:1], facts("float32", (8, 8, 3)), 20)
    assert -128 <= plain.min() < -60 and 60 < plain.max() <= 127
    pixels = dummy_inputs(own[:1], facts("uint8", (8, 8, 3)), 20)
    assert pixels.dtype == np.uint8 and pixels.min() < 60 and pixels.max() > 180
    assert np.median(np.abs(np.diff(np.sort(pixels.ravel()).astype(int)))) < 3, "it wraps"
    with pytest.raises(UserError, match="takes int32 and the graph does not tell.*--inputs"):
        dummy_inputs(own[:1], facts("int32"), 4)
    with pytest.raises(UserError, match="--shape 224,224,3"):
        dummy_inputs(own[:1], facts("float32", (None, 3)), 4)


def test_dummy_ids_are_rows_of_the_table(tmp_path):
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        ids = tf.compat.v1.placeholder(tf.int32, (None, 6), name="ids")
        table = tf.constant(np.random.default_rng(0).standard_normal((50, 4)), tf.float32)
        tf.reduce_sum(tf.gather(table, ids), axis=1, name="predict")
    path = graphs.write_graph(graph.as_graph_def(), tmp_path / "ids.pb")
    made = dummy_inputs([Candidate("FP32", path)], facts("int32"), 200)
    assert made.dtype == np.int32 and made.min() == 0 and made.max() == 49
    assert graphs.FrozenGraph(path)(made).shape == (200, 4)


def command(small, tmp_path, *extra):
    words = ["--fp32", str(small["fp32"]), "--int8", str(small["int8"]), "--quick"]
    words += ["--rounds", "2", "--seconds", "0.05", "--batch-size", "1", "4"]
    __main__.main([*words, "--output", str(tmp_path), *extra])


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
        (["--shape", "5x5x3"], "FP32: "),
        (["--inputs", str(ROOT / "README.md")], "cannot be read as a NumPy array"),
        (["--rounds", "0"], "2"),
        (["--shape", "224by3"], "2"),
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
    words = ["--fp32", str(small["fp32"]), "--int8", str(small["int8"])]
    words += ["--rounds", "2", "--seconds", "0.02", "--settings", str(path)]
    __main__.main([*words, "--output", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["settings"]["threads"] == 1 and result["settings"]["batch_sizes"] == [2, 4]
    for entry in result["candidates"]:
        assert entry["knobs"] == tuned["knobs"] and entry["environment"]["ITEX_LAYOUT_OPT"] == "1"


def test_the_command_line_goes_before_the_settings(small, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"threads": 7, "batch_sizes": [9]}')
    command(small, tmp_path, "--settings", str(path), "--threads", "1")
    settings = json.loads((tmp_path / "result.json").read_text())["settings"]
    assert settings["threads"] == 1 and settings["batch_sizes"] == [1, 4]


def test_instances_of_the_settings_are_run_together(small, tmp_path, monkeypatch):
    core = machine.cores()[0]
    monkeypatch.setattr(machine, "cores", lambda: [core, core])  # two shares, whatever CPU it is
    (tmp_path / "settings.json").write_text('{"instances": 2}')
    command(small, tmp_path, "--settings", str(tmp_path / "settings.json"))
    result = report.read(tmp_path / "result.json")
    for entry in result["candidates"]:
        assert entry["instances"] == 2 and entry["environment"]["OMP_NUM_THREADS"] == "1"
        assert not entry["variants"] and all(one["throughput_fps"] > 0 for one in entry["batches"])
    assert "Each candidate was 2 processes that shared the cores" in report.conclusion(result)
    command(small, tmp_path, "--settings", str(tmp_path / "settings.json"), "--instances", "1")
    alone = report.read(tmp_path / "result.json")
    assert {entry["instances"] for entry in alone["candidates"]} == {1}
    assert "processes that shared" not in report.conclusion(alone)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as settings"),
        ("[1]", "holds no settings"),
        ('{"treads": 2}', "no setting 'treads'. There are: threads"),
        ('{"threads": 0}', "0 will not do for 'threads'"),
        ('{"threads": true}', "true will not do for 'threads'"),
        ('{"instances": 0}', "0 will not do for 'instances'"),
        ('{"instances": 999}', "are not shared by 999 processes; --instances may be 1"),
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


def test_rounds_and_limits_of_the_command_line_are_the_effort(small, tmp_path):
    command(small, tmp_path, "--rounds", "3", "--limit", "33")
    settings = json.loads((tmp_path / "result.json").read_text())["settings"]
    wanted = {"min_rounds": 3, "max_rounds": 3, "limit": 33.0, "seconds": 0.05, "min_calls": 1}
    assert {key: settings[key] for key in PROFILES["quick"]} == wanted


def test_bf16_is_refused_where_there_is_none(small, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    with pytest.raises(SystemExit, match="no BF16 instructions"):
        command(small, tmp_path, "--bf16")


def test_a_graph_of_several_inputs_needs_its_inputs(small, tmp_path):
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        first, second = (tf.compat.v1.placeholder(tf.float32, (None, 4), name) for name in "ab")
        tf.add(first, second, name="sum")
    path = graphs.write_graph(graph.as_graph_def(), tmp_path / "two.pb")
    with pytest.raises(SystemExit, match="input"):
        command({"fp32": path, "int8": path}, tmp_path, "--input-name", "a")
