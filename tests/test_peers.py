"""OpenVINO and ONNX Runtime on the small network; most of it needs ./set_env.sh --peers."""

import os
import re

import numpy as np
import pytest
from conftest import images

from helpers import UserError, benchmark
from helpers.benchmark import __main__, peers, report

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
    assert names == ["FP32", "INT8", "OpenVINO INT8", "ONNX Runtime INT8"]
    for one in result["candidates"][2:]:
        agreement = result["agreement"][one["name"]]
        assert agreement["sqnr_db"] > 15 and agreement["top1"] >= 0.8
        assert one["layers"] == {"int8": 3, "all": 3}
        assert one["kernels"] == {"s8": {"count": 3, "share": None}}
        assert len(one["variants"]) == 2 and len(one["variants"][0]["best_ms"]) == 2
    assert {"openvino", "onnxruntime"} <= set(result["software"])


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

    def refuse(runtime, *_):
        raise UserError(f"made {runtime}")

    monkeypatch.setattr(peers, "_make", refuse)
    assert peers.candidates(small["fp32"], images(16, seed=1), folder) == first
    with pytest.raises(UserError, match="made openvino"):
        peers.candidates(small["fp32"], images(16, seed=2), folder)


@needs_peers
def test_a_model_that_cannot_be_made_is_told_with_its_log(small, tmp_path):
    with pytest.raises(UserError, match=r"OpenVINO INT8 was not made .*openvino\.log"):
        peers.candidates(small["fp32"], np.zeros((4, 5, 5, 3), np.float32), tmp_path)
    assert not list(tmp_path.glob("*.xml")) and not list(tmp_path.glob(".*"))


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
