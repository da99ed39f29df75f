"""OpenVINO, ONNX Runtime and LiteRT on the small network; most needs ./set_env.sh --peers."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import SHAPE, images

from helpers import UserError, benchmark, graphs
from helpers.benchmark import __main__, measurement, peers, report, runtimes
from helpers.benchmark.candidate import PEERS, environment

needs_peers = pytest.mark.skipif(
    bool(peers.absent()) and "CI" not in os.environ, reason=str(peers.absent())
)


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    return peers.candidates(small["fp32"], images(16, seed=1), folder), folder


@pytest.fixture(scope="module")
def measured(small, made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result")
    effort = {"min_rounds": 2, "max_rounds": 2, "seconds": 0.05, "min_calls": 3}
    chosen = benchmark.candidates(small["fp32"], small["int8"], bf16=False) + made[0]
    result = benchmark.compare(
        chosen, folder, "small", images(16), batch_sizes=(1, 4), progress=False, **effort
    )
    return result, folder


@needs_peers
def test_peers_compute_the_same_and_run_in_int8(measured):
    result, _ = measured
    names = [one["name"] for one in result["candidates"]]
    assert names == ["FP32", "INT8", "OpenVINO INT8", "ONNX Runtime INT8", "LiteRT INT8"]
    for one in result["candidates"][2:]:
        agreement = result["agreement"][one["name"]]
        assert agreement["sqnr_db"] > 15 and agreement["top1"] >= 0.8
        assert one["layers"] == {"int8": 3, "all": 3}
        assert one["kernels"] == {"s8": {"count": 3, "share": None}}
        assert [len(choice["best_ms"]) for choice in one["variants"]] in ([2, 2], [])
    assert [bool(one["variants"]) for one in result["candidates"][2:]] == [True, True, False]
    assert {"openvino", "onnxruntime", "litert"} <= set(result["software"])
    told = {"num_threads": result["settings"]["threads"], "xnnpack": "3 of 3 layers"}
    assert result["candidates"][4]["environment"]["litert"] == told


@needs_peers
def test_litert_has_its_threads_and_any_batch_size(small, made):
    """In env_peers' Python: the threads that loading adds; one image alone and among 32."""
    code = """
import json, os, sys
import numpy as np
from helpers.benchmark import runtimes
before = len(os.listdir("/proc/self/task"))
model = runtimes.load(json.loads(sys.argv[1]))
threads = 1 + len(os.listdir("/proc/self/task")) - before
images = np.load(sys.argv[2])
alone, among = model.predict(images, 1), model(images)
told = {"signature": [*model.signature.shape, model.signature.dtype], "threads": threads}
kernels = model.kernels(lambda: model(images[:2]))
np.save(sys.argv[3], [alone, among])
print(json.dumps({**told, "kernels": kernels["primitives"], "source": kernels["source"]}))
"""
    model = made[0][-1]
    job = {"runtime": model.runtime, "graph": str(model.graph), "threads": 3, "cpus": None}
    np.save(made[1] / "images.npy", images(32))
    words = [json.dumps(job), made[1] / "images.npy", made[1] / "outputs.npy"]
    done = subprocess.run(
        [PEERS / "bin" / "python", "-P", "-c", code, *words],
        capture_output=True,
        text=True,
        env=environment(3),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["signature"] == [*SHAPE, "float32"] and told["threads"] == 3
    assert told["source"] == "LiteRT's graph"
    assert [weights for _, weights, *_ in told["kernels"]] == ["s8"] * 3
    assert all(kernel.startswith("XNNPACK ") for _, _, kernel, *_ in told["kernels"])
    alone, among = np.load(made[1] / "outputs.npy")
    assert len(among) == 32 and np.array_equal(alone, among)


def test_what_xnnpack_leaves_to_litert_is_told_and_what_is_in_float():
    def operation(index, name, inputs, outputs, *types):
        return {
            "index": index,
            "op_name": name,
            "inputs": inputs,
            "outputs": outputs,
            "operand_types": types,
        }

    class Interpreter:
        def _get_ops_details(self):
            byte, word = np.int8, np.int32
            return [
                operation(0, "QUANTIZE", [0], [5], np.float32),
                operation(1, "CONV_2D", [5, 1, 2], [6], byte, byte, word),
                operation(2, "RESHAPE", [6], [7], byte),
                operation(3, "FULLY_CONNECTED", [7, 3, -1], [8], byte, byte),
                operation(4, "DEQUANTIZE", [8], [9], byte),
                operation(5, "CONV_2D", [9, 4], [10], np.float32, byte),
                operation(6, "DELEGATE", [0, 1, 2], [6], np.float32, byte, word),
                operation(7, "DELEGATE", [8, 4], [10], byte, byte),
            ]

    model = runtimes.LiteRT.__new__(runtimes.LiteRT)
    model._interpreters = {(1, 8): Interpreter()}
    assert [row[1:3] for row in model._executed((1, 8))] == [
        ["s8", "XNNPACK CONV_2D"],
        ["s8", "LiteRT FULLY_CONNECTED"],
        ["f32", "XNNPACK CONV_2D"],
    ]


@needs_peers
def test_ours_is_compared_with_each_peer(measured, capsys):
    result, folder = measured
    found = {(one["candidate"], one["baseline"]) for one in result["ratios"]}
    peers_of_ours = {("INT8", name) for name in peers.NAMES.values()}
    assert found == peers_of_ours | {(name, "FP32") for name in ("INT8", *peers.NAMES.values())}
    report.show(result, folder)
    lines = capsys.readouterr().out.splitlines()
    assert "Compare the Performance of FP32 and INT8 Models" in lines
    # not the text below, of which a line may start with one of these words
    rows = [line for line in lines if re.match("Model |throughput[(_]|latency[(_]", line)]
    starts = [line.index(name) for line in rows[:1] for name in peers.NAMES.values()]
    assert all(row[start - 1] == " " != row[start] for row in rows for start in starts)
    assert "Against OpenVINO INT8, INT8 gives" in " ".join(lines)


@needs_peers
def test_models_are_made_once_and_again_for_other_images(small, made, monkeypatch):
    first, folder = made
    assert len(list(folder.glob("*.xml"))) == 1 and not list(folder.glob(".*"))
    assert len(list(folder.glob("*.tflite"))) == 1

    def refuse(runtime, *_):
        raise UserError(f"made {runtime}")

    monkeypatch.setattr(peers, "_make", refuse)
    assert peers.candidates(small["fp32"], images(16, seed=1), folder) == first
    again = peers.candidates(small["fp32"], images(16, seed=2), folder)
    assert [peer.refused for peer in again] == [f"made {runtime}" for runtime in peers.NAMES]


@needs_peers
def test_a_peer_that_cannot_make_its_model_is_left_out_with_its_log(small, made, tmp_path):
    images = np.zeros((4, 5, 5, 3), np.float32)
    refused = peers._candidate("openvino", small["fp32"], images, tmp_path, (None, None))
    assert re.match(r"OpenVINO INT8 was not made .*openvino\.log", refused.refused)
    assert not list(tmp_path.glob("*.xml")) and not list(tmp_path.glob(".*"))
    chosen = [benchmark.Candidate("FP32", small["fp32"]), refused, made[0][-1]]
    ready, failed = measurement.ready_to_start(chosen)
    assert [one.name for one in ready] == ["FP32", "LiteRT INT8"]
    assert failed == {"OpenVINO INT8": refused.refused}


def test_what_is_killed_while_it_makes_a_model_has_no_last_word(tmp_path, monkeypatch):
    def killed(words, stdout, **_):
        stdout.write("a warning of long before")
        return subprocess.CompletedProcess(words, -signal.SIGKILL)

    monkeypatch.setattr(peers.subprocess, "run", killed)
    with pytest.raises(UserError, match=r"SIGKILL, which often means too little memory\. Its log"):
        peers._make("onnxruntime", Path("fp32.pb"), np.ones(1), tmp_path / "a.onnx", (None,), {})


@needs_peers
def test_what_litert_has_no_operation_for_is_named(tmp_path):
    with tf.Graph().as_default() as graph:
        tf.math.lgamma(tf.compat.v1.placeholder(tf.float32, (None, 4), "input"), name="output")
    fp32 = graphs.write_graph(graph.as_graph_def(), tmp_path / "fp32.pb")
    with pytest.raises(
        UserError, match=r"LiteRT INT8 was not made .*stopped at Lgamma\..*litert\.log"
    ):
        peers._model("litert", fp32, np.ones((2, 4), np.float32), tmp_path, (None, None), {})
    assert not list(tmp_path.glob("*.tflite")) and not list(tmp_path.glob(".*"))


@needs_peers
def test_litert_takes_a_pool_with_a_padding_of_its_own(tmp_path):
    """As ResNet50 has one behind its first layer; TensorFlow's converter stops at it."""
    images = np.random.default_rng(0).uniform(0, 1, (8, 6, 6, 2)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        given = tf.nn.relu(tf.compat.v1.placeholder(tf.float32, (None, 6, 6, 2), "input"))
        around = [[0, 0], [1, 1], [1, 1], [0, 0]]
        tf.nn.max_pool(given, 3, 2, padding=around, name="output")
    fp32 = graphs.write_graph(graph.as_graph_def(), tmp_path / "fp32.pb")
    model = peers._model("litert", fp32, images, tmp_path, (None, None), {})
    assert model.stat().st_size > 500


@needs_peers
def test_onnx_runtime_takes_a_maximum_over_an_image(tmp_path):
    """Behind which its symbolic shape inference stops."""
    images = np.random.default_rng(0).uniform(0, 1, (8, 6, 6, 2)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        given = tf.nn.relu(tf.compat.v1.placeholder(tf.float32, (None, 6, 6, 2), "input"))
        tf.matmul(tf.reduce_max(given, (1, 2)), tf.ones((2, 3)), name="output")
    fp32 = graphs.write_graph(graph.as_graph_def(), tmp_path / "fp32.pb")
    making = {"activations": "QUInt8"}
    model = peers._model("onnxruntime", fp32, images, tmp_path, (None, None), making)
    assert b"QuantizeLinear" in model.read_bytes()


def test_a_missing_environment_is_told(small, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", tmp_path / "env_peers")
    assert "run ./set_env.sh --peers" in peers.absent()
    with pytest.raises(UserError, match=r"run \./set_env\.sh --peers"):
        peers.candidates(small["fp32"], images(16), tmp_path)
    words = ["--fp32", str(small["fp32"]), "--int8", str(small["int8"]), "--peers"]
    with pytest.raises(SystemExit, match=r"error: .*run \./set_env\.sh --peers"):
        __main__.main([*words, "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        __main__.main([*words, "--inputs", "x.npy", "--output", str(tmp_path)])
    assert not (tmp_path / "result.json").exists()
