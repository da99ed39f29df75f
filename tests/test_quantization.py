import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SHAPE, images

from helpers import benchmark, graphs, quantization


def test_loader_gives_whole_batches():
    loader = quantization.CalibrationLoader(images(20), 8)
    shapes = [batch.shape for batch, _ in loader]
    assert shapes == [(8, 32, 32, 3)] * 2 and len(loader) == 2
    with pytest.raises(ValueError, match="do not fill"):
        quantization.CalibrationLoader(images(4), 8)


def test_int8_graph_is_quantized_and_close(small):
    layers = graphs.layers(graphs.read_graph(small["int8"]))
    assert [layer.op for layer in layers] == ["Conv2D", "Conv2D", "MatMul"]
    assert all(layer.int8 for layer in layers)
    x = images(64, seed=4)
    fp32 = graphs.FrozenGraph(small["fp32"]).predict(x)
    int8 = graphs.FrozenGraph(small["int8"]).predict(x)
    assert not np.array_equal(fp32, int8)
    assert stats.sqnr_db(fp32, int8) > 15


def test_fp32_graph_has_no_int8_layers(small):
    layers = graphs.layers(graphs.read_graph(small["fp32"]))
    assert len(layers) == 3 and not any(layer.int8 for layer in layers)


def test_the_mean_at_the_end_runs_in_int8(tmp_path):
    """As an average pool from bytes to bytes: what ResNet50's last stage depends on."""
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(16, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    fp32 = freezing.freeze(model, tmp_path / "fp32.pb")
    with quantization.quiet(tmp_path / "log"):
        from neural_compressor.tensorflow import StaticQuantConfig, quantize_model

        loader = quantization.CalibrationLoader(images(16), 8)
        int8 = quantize_model(str(fp32), StaticQuantConfig(), loader, 2).graph_def
    path = graphs.write_graph(int8, tmp_path / "int8.pb")
    ((_, lines),) = kernels.onednn_log(path, images(4), [4], calls=1)[4]
    (pool,) = [line for line in lines if ",primitive,exec,cpu,pooling," in line]
    assert "src_u8" in pool and "dst_u8" in pool and "alg:pooling_avg" in pool


def test_quiet_logs_everything_and_restores(tmp_path, capfd):
    before = dict(os.environ)
    with quantization.quiet(tmp_path / "log"):
        print("from python")
        print("to stderr", file=sys.stderr)
        subprocess.run(["echo", "from a child"])
        os.environ["ITEX_REMAPPER"] = "0"
    print("after")
    assert dict(os.environ) == before
    log = (tmp_path / "log").read_text()
    assert "from python" in log and "to stderr" in log and "from a child" in log
    assert capfd.readouterr() == ("after\n", "")


def test_log_of_the_quantizer_is_kept(small):
    assert "Start to apply static_quant" in small["log"].read_text()
    assert not (ROOT / "nc_workspace").exists(), "INC wrote into the current folder"


def test_the_second_quantization_leaves_the_current_folder_alone(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loader = quantization.CalibrationLoader(images(8), 8)
    with quantization.quiet(tmp_path / "log"):
        from neural_compressor.tensorflow import StaticQuantConfig, quantize_model

        for _ in range(2):
            quantize_model(str(small["fp32"]), StaticQuantConfig(), loader, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_kernels_that_ran_are_read_from_onednn(small):
    def weights(name):
        return {kind for _, kind, _ in benchmark.executed_kernels(small[name], images(4))}

    assert weights("int8") == {"s8"}
    assert weights("fp32") == {"f32"}
    ran = benchmark.executed_kernels(small["int8"], images(4))
    assert sum(ran.values()) == 3


def test_leaving_layers_float(small):
    quantized = graphs.read_graph(small["int8"])
    names = [layer.name for layer in graphs.layers(quantized)]
    partly = graphs.leave_float(quantized, names[:1])
    assert [layer.int8 for layer in graphs.layers(partly)] == [False, True, True]
    assert all(layer.int8 for layer in graphs.layers(quantized)), "the original changed"
    x = images(16, seed=6)
    fp32 = graphs.FrozenGraph(small["fp32"]).predict(x)
    all_float = graphs.FrozenGraph(graphs.leave_float(quantized, names)).predict(x)
    assert np.allclose(all_float, fp32, atol=1e-4)


def test_sensitivity_ranks_the_worst_layer_first(small):
    x = images(64, seed=7)
    reference = graphs.FrozenGraph(small["fp32"]).predict(x)
    quantized = graphs.read_graph(small["int8"])
    ranking = quantization.sensitivity(quantized, reference, x)
    assert [ratio for ratio, _ in ranking] == sorted(ratio for ratio, _ in ranking)
    names = [layer.name for layer in graphs.layers(quantized)]
    assert sorted(name for _, name in ranking) == sorted(names)
    for ratio, name in ranking:
        rest = graphs.leave_float(quantized, [other for other in names if other != name])
        alone = graphs.FrozenGraph(rest).predict(x)
        right = stats.sqnr_db(np.log(reference + 1e-9), np.log(alone + 1e-9))
        assert ratio == pytest.approx(right, abs=0.5)


def test_tuning_stops_at_the_first_that_passes(tmp_path, capsys):
    made = []

    def attempt(name):
        return name, lambda: made.append(name) or tmp_path / name

    accuracy = {"a": 0.90, "b": 0.958, "c": 0.959}
    attempts = [attempt(name) for name in "abc"]
    trials = quantization.tune(attempts, lambda path: accuracy[path.name], 0.959, 0.1)
    assert made == ["a", "b"], "an attempt after the one that passes was made"
    assert [trial.passed for trial in trials] == [False, True]
    assert trials[1].drop == 0.1  # exactly as much as may be lost
    assert "loses too much" in capsys.readouterr().out


def test_tuning_admits_that_nothing_passes(tmp_path):
    attempts = [(name, lambda: tmp_path) for name in "ab"]
    trials = quantization.tune(attempts, lambda path: 0.98, 0.99, 0.1)
    assert len(trials) == 2 and not any(trial.passed for trial in trials)


def test_kl_cuts_off_outliers_and_only_those():
    values = np.abs(np.random.default_rng(0).normal(size=200_000))
    assert quantization.kl_threshold(np.minimum(values, 3)) > 2.5
    outliers = np.append(values, [40.0, 60.0])
    assert 2 < quantization.kl_threshold(outliers) < 12


def test_scales_by_hand_are_those_in_the_graph(small):
    """Weights per channel: the largest absolute value over 127, in INC's graph as in numpy."""
    import tensorflow as tf

    quantized = graphs.read_graph(small["int8"])
    nodes = {node.name: node for node in quantized.node}
    kernels = [kernel for kernel, _ in graphs.weights(graphs.read_graph(small["fp32"])).values()]
    layers = [nodes[layer.name] for layer in graphs.layers(quantized)]
    for layer, kernel in zip(layers[:2], kernels):
        quantize = nodes[nodes[layer.input[1]].input[0]]
        assert quantize.attr["mode"].s == b"SCALED" and quantize.attr["axis"].i == 3
        low, high = (
            tf.make_ndarray(nodes[name].attr["value"].tensor) for name in quantize.input[1:3]
        )
        assert np.allclose(high, np.abs(kernel).max((0, 1, 2)), rtol=1e-6)
        assert np.array_equal(low, -high)


def test_rescaled_channels_leave_float_as_it_was_and_ruin_int8(small, tmp_path):
    """What notebook 07 builds on: powers of two through ReLU are exact, a shared scale is not."""
    graph_def, x = graphs.read_graph(small["fp32"]), images(32, seed=1)
    weights = graphs.weights(graph_def)
    first, second = list(weights)[:2]
    for index in (0, 1):
        weights[first][index][..., 0] *= 2.0**10
    weights[second][0][:, :, 0] /= 2.0**10
    changed = graphs.with_weights(graph_def, weights)
    fp32 = graphs.FrozenGraph(graph_def)(x)
    assert np.array_equal(graphs.FrozenGraph(changed)(x), fp32)
    path = graphs.write_graph(changed, tmp_path / "changed.pb")
    loader = quantization.CalibrationLoader(x, 8)
    with quantization.quiet(tmp_path / "log"):
        from neural_compressor.tensorflow import StaticQuantConfig, quantize_model

        config = StaticQuantConfig(weight_granularity="per_channel")
        ruined = quantize_model(str(path), config, loader, len(loader)).graph_def
    assert stats.sqnr_db(fp32, graphs.FrozenGraph(ruined)(x)) < 10
