"""INT8 in TensorFlow's own integer operations: INC's faults as they are, and as they are mended.

A test of a fault that fails on what INC itself makes says that INC is mended: the mending can go.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from helpers import UserError, benchmark, graphs, machine, stats
from helpers.benchmark.candidate import Candidate, current
from helpers.quantize import integer

CURRENT = ROOT / "env_current" / "bin" / "python"
PYTHONS = {"env_intel_tf": sys.executable, "env_current": CURRENT}
FORMS = ["old", "fused"]


def call(python, *words):
    """tests/integer_cases.py in one of the environments."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [python, "-m", "tests.integer_cases", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=PYTHONS)
def made(request, tmp_path_factory):
    """(the folder of what was made in an environment, {name: outputs} as it runs there)."""
    python = PYTHONS[request.param]
    if not os.access(python, os.X_OK):
        pytest.skip("needs env_current/ (./set_env.sh --current)")
    folder = tmp_path_factory.mktemp(request.param)
    call(python, "make", folder)
    call(python, "run", folder)
    return folder, dict(np.load(next(folder.glob("outputs_*.npz"))))


def errors(made, name):
    """The error (images, classes) of the outputs of a network."""
    folder, answers = made
    with np.load(folder / f"{name.split('_')[0]}.npz") as stored:
        return answers[name] - stored["fp32"]


@pytest.mark.parametrize("form", FORMS)
def test_a_dense_layer_has_no_constant_error(form, made):
    raw, mended = (errors(made, f"dense_{form}_{kind}") for kind in ("raw", "mended"))
    constant = raw.mean(axis=0)  # INC: minimum · Σ weights too much in the bias
    assert np.abs(constant).max() > 100 * raw.std(axis=0).max()
    assert np.abs(mended.mean(axis=0)).max() < np.abs(constant).max() / 100
    assert np.abs(mended).max() < 0.3


@pytest.mark.parametrize("form", FORMS)
def test_a_signed_sum_is_not_cut_at_half_of_its_range(form, made):
    folder, answers = made
    raw, mended = (f"residual_{form}_{kind}" for kind in ("raw", "mended"))
    ratio = answers[f"{raw}_largest"] / answers[f"{mended}_largest"]
    assert abs(ratio - 127 / 255) < 0.01  # TensorFlow: a destination of signed bytes
    with np.load(folder / "residual.npz") as stored:
        before, after = (stats.sqnr_db(stored["fp32"], answers[name]) for name in (raw, mended))
    assert before < 20 < 25 < after


def test_a_signed_summand_has_a_range_of_its_own(made):
    """INC's fused form gives it that of the sum."""
    folder, _ = made
    highs = {}
    for kind in ("raw", "mended"):
        network = graphs.Network(graphs.read_graph(folder / f"residual_fused_{kind}.pb"))
        (total,) = filter(integer._is_signed_sum, network.nodes.values())
        summand = network.nodes[total.input[integer.SUMMAND]]
        highs[kind] = [float(network.value(node.input[-1])) for node in (summand, total)]
    assert highs["raw"][0] == highs["raw"][1]
    assert highs["mended"][1] == pytest.approx(highs["raw"][1] * 255 / 127)
    float_graph = graphs.read_graph(folder / "residual.pb")
    with np.load(folder / "residual.npz") as stored:
        tensors = graphs.Tensors(float_graph, ["BiasAdd_1", "BiasAdd_3"])(stored["x"])
    largest = [float(np.abs(values).max()) for values in tensors.values()]
    assert any(highs["mended"][0] == pytest.approx(high, rel=1e-4) for high in largest)


def test_a_pool_behind_a_signed_layer_keeps_the_signs(made):
    """INC's fused form makes unsigned bytes for it."""
    folder, answers = made
    raw, mended = ("pooled_fused_raw", "pooled_fused_mended")
    with np.load(folder / "pooled.npz") as stored:
        before, after = (stats.sqnr_db(stored["fp32"], answers[name]) for name in (raw, mended))
    assert before < 15 < 25 < after
    kinds = [
        node.attr["T"].type
        for node in graphs.read_graph(folder / f"{mended}.pb").node
        if node.op == "QuantizedAvgPool"
    ]
    assert kinds == [tf.qint8.as_datatype_enum]


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_that_reads_signed_floats_is_not_scaled(form, made):
    """QuantizeV2 takes 127.5 steps to the end of their range, the layer takes that for 127."""
    folder, answers = made
    with np.load(folder / "signed.npz") as stored:
        wanted = stored["fp32"].ravel()
    raw, mended = (
        answers[f"signed_{form}_{kind}"].ravel() @ wanted / (wanted @ wanted)
        for kind in ("raw", "mended")
    )
    assert raw == pytest.approx(127.5 / 127, abs=1e-3)
    assert mended == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_is_an_integer_operation_and_the_file_small(form, made):
    folder, _ = made
    for name, count in (("dense", 1), ("residual", 5)):
        mended = graphs.read_graph(folder / f"{name}_{form}_mended.pb")
        assert [layer.int8 for layer in graphs.layers(mended)] == [True] * count
        assert not [node.name for node in mended.node if node.op == "HostConst"]


@pytest.mark.skipif(machine.int8_level() == "none", reason="sums stay float without VNNI")
def test_linear_sums_are_in_the_layers_before_them(made):
    """As exact as INC's, which are float, but for a sum that a padding of zeros would read."""
    folder, answers = made
    left = {"raw": {}, "mended": {}}
    for name in ("inverted", "padded"):
        for kind, counts in left.items():
            graph_def = graphs.read_graph(folder / f"{name}_fused_{kind}.pb")
            counts[name] = [node.op for node in graph_def.node].count("AddV2")
        with np.load(folder / f"{name}.npz") as stored:
            raw, mended = (
                stats.sqnr_db(stored["fp32"], answers[f"{name}_fused_{kind}"]) for kind in left
            )
        assert mended > raw - 1 and mended > 25
    assert left == {"raw": {"inverted": 2, "padded": 2}, "mended": {"inverted": 0, "padded": 2}}
    fused = graphs.read_graph(folder / "inverted_fused_mended.pb")
    assert [node.op for node in fused.node].count("QuantizeV2") == 1  # that of the input
    assert [layer.int8 for layer in graphs.layers(fused)] == [True] * 8


@pytest.mark.parametrize("form", FORMS)
def test_what_tensorflow_cannot_run_is_written_in_another_way(form, made):
    folder, answers = made
    mended = graphs.read_graph(folder / f"unusual_{form}_mended.pb")
    assert [layer.int8 for layer in graphs.layers(mended)] == [True, False, True]
    with np.load(folder / "unusual.npz") as stored:
        assert stats.sqnr_db(stored["fp32"], answers[f"unusual_{form}_mended"]) > 25


def test_every_tensorflow_gives_the_same_outputs(made):
    folder, answers = made
    if not os.access(CURRENT, os.X_OK):
        pytest.skip("needs env_current/ (./set_env.sh --current)")
    for python in PYTHONS.values():
        call(python, "run", folder)
    files = sorted(folder.glob("outputs_*.npz"))
    assert len(files) == 2
    one, other = (dict(np.load(path)) for path in files)
    for name in [name for name in answers if name.endswith(("raw", "mended"))]:
        assert stats.sqnr_db(one[name], other[name]) > 50, name


def test_it_is_a_runtime_of_the_benchmark(made, tmp_path):
    folder, _ = made
    if not os.access(CURRENT, os.X_OK):
        pytest.skip("needs env_current/ (./set_env.sh --current)")
    graph = folder / "residual_fused_mended.pb"
    chosen = [Candidate("FP32", folder / "residual.pb", stock=True), current(graph)]
    with np.load(folder / "residual.npz") as stored:
        x = stored["x"]
    effort = {"seconds": 0.02, "min_rounds": 1, "max_rounds": 1, "progress": False}
    result = benchmark.measure(chosen, tmp_path, x, batch_sizes=[8], **effort)
    base, int8 = result["candidates"]
    release = result["software"]["tensorflow_current"]
    assert int8["name"] == f"INT8, TensorFlow {release.rpartition('.')[0]}"
    assert int8["kernels"]["s8"]["count"] == 5 and set(base["kernels"]) == {"f32"}
    assert int8["layers"] == {"int8": 5, "all": 5} and int8["runtime"] == "tensorflow-current"
    assert int8["environment"]["TF_ENABLE_ONEDNN_OPTS"] == "1"
    assert [ratio["candidate"] for ratio in result["ratios"]] == [int8["name"]]


def test_an_unknown_form_is_told(tmp_path):
    with pytest.raises(UserError, match="no form 'new'; there are 'fused' and 'old'"):
        integer.quantize(tmp_path / "a.pb", np.zeros((8, 3)), tmp_path / "b.pb", form="new")
