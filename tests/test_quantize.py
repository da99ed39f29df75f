import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, images

from helpers import UserError, graphs, stats
from helpers.quantize import CalibrationLoader, freeze, inc, quantize, quiet, sensitivity, tune


def test_loader_gives_whole_batches():
    loader = CalibrationLoader(images(20), 8)
    shapes = [batch.shape for batch, _ in loader]
    assert shapes == [(8, 32, 32, 3)] * 2 and len(loader) == 2
    with pytest.raises(ValueError, match="do not fill"):
        CalibrationLoader(images(4), 8)


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


def test_quiet_logs_everything_and_restores(tmp_path, capfd):
    before = dict(os.environ)
    with quiet(tmp_path / "log"):
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
    loader = CalibrationLoader(images(8), 8)
    with quiet(tmp_path / "log"):
        from neural_compressor.tensorflow import StaticQuantConfig, quantize_model

        for _ in range(2):
            quantize_model(str(small["fp32"]), StaticQuantConfig(), loader, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


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
    ranking = sensitivity(quantized, reference, x)
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
    trials = tune(attempts, lambda path: accuracy[path.name], 0.959, 0.1)
    assert made == ["a", "b"], "an attempt after the one that passes was made"
    assert [trial.passed for trial in trials] == [False, True]
    assert trials[1].drop == 0.1  # exactly as much as may be lost
    assert "loses too much" in capsys.readouterr().out


def test_tuning_admits_that_nothing_passes(tmp_path):
    attempts = [(name, lambda: tmp_path) for name in "ab"]
    trials = tune(attempts, lambda path: 0.98, 0.99, 0.1)
    assert len(trials) == 2 and not any(trial.passed for trial in trials)


def test_scales_by_hand_are_those_in_the_graph(small):
    """Weights per channel: the largest absolute value over 127, in INC's graph as in numpy."""
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
    loader = CalibrationLoader(x, 8)
    with quiet(tmp_path / "log"):
        from neural_compressor.tensorflow import StaticQuantConfig, quantize_model

        config = StaticQuantConfig(weight_granularity="per_channel")
        ruined = quantize_model(str(path), config, loader, len(loader)).graph_def
    assert stats.sqnr_db(fp32, graphs.FrozenGraph(ruined)(x)) < 10


def test_tuning_gives_the_attempts_in_their_order(tmp_path):
    """Where nothing passes the last one tried is the last, though an earlier one was better."""
    accuracy = {"a": 0.90, "b": 0.97, "c": 0.80}
    attempts = [(f"attempt {name}", lambda name=name: tmp_path / name) for name in "abc"]
    trials = tune(attempts, lambda path: accuracy[path.name], 0.99, 0.1)
    assert [trial.graph.name for trial in trials] == ["a", "b", "c"]
    assert [trial.accuracy for trial in trials] == [0.90, 0.97, 0.80]
    assert [trial.drop for trial in trials] == [9.0, 2.0, 19.0]
    assert trials[-1].name == "attempt c" and not trials[-1].passed


def model_of(tmp_path, *middle, end=10, size=16):
    """A frozen graph and the Keras model: Conv2D, other layers, dense."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    source = layers.Input((size, size, 3))
    x = layers.Conv2D(8, 3, name="first__conv")(source)
    for layer in middle:
        x = layer(x)
    x = layers.Dense(end, name="last__dense")(x)
    model = tf.keras.Model(source, x)
    return freeze(model, tmp_path / "fp32.pb"), model


def sixteen(count, seed=0):
    return images(count, seed)[:, ::2, ::2] / 256


def test_quantize_gives_what_the_written_out_steps_give(small, tmp_path):
    path = quantize(small["fp32"], images(32, seed=1), tmp_path / "int8.pb")
    assert path == tmp_path / "int8.pb"
    x = images(8, seed=2)
    by_hand = graphs.FrozenGraph(small["int8"])(x)
    assert np.allclose(graphs.FrozenGraph(path)(x), by_hand, atol=1e-6)
    assert "Start to apply static_quant" in (tmp_path / "int8.log").read_text()


def test_quantize_makes_a_graph_again_when_anything_it_depends_on_changes(
    small, tmp_path, monkeypatch
):
    made = []

    def fake(graph_def, loader, settings, name, log):
        made.append(settings)
        return graph_def

    monkeypatch.setattr(inc, "_quantized", fake)
    path, calibration = tmp_path / "int8.pb", images(16)

    def makes(source=small["fp32"], inputs=calibration, **settings):  # how often: 0 or 1
        before = len(made)
        quantize(source, inputs, path, **settings)
        return len(made) - before

    layer = next(iter(graphs.weights(graphs.read_graph(small["fp32"]))))
    others = [
        {"granularity": "per_tensor"},
        {"inputs": images(16, seed=1)},
        {"inputs": images(8)},
        {"source": small["int8"]},
        {"batch_size": 4},
        {"form": "legacy"},
        {"algorithm": "kl"},
        {"float_layers": [layer]},
    ]
    for other in others:
        assert (makes(), makes(), makes(**other), makes(**other)) == (1, 0, 1, 0), other
    assert makes(float_layers=(layer,)) == 0
    assert (makes(), makes()) == (1, 0)
    path.write_bytes(path.read_bytes()[:-100])
    assert (makes(), makes()) == (1, 0)
    monkeypatch.setattr(inc.metadata, "version", lambda name: "another")
    assert (makes(), makes()) == (1, 0)
    monkeypatch.setattr(inc.files.inspect, "getsource", lambda module: "edited")
    assert (makes(), makes()) == (1, 0)


def test_ranges_by_kl_leave_the_current_folder_alone(small, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    quantize(small["fp32"], images(8), tmp_path / "int8.pb", algorithm="kl")
    assert not list((tmp_path / "here").iterdir())


def test_a_failed_quantization_leaves_no_graph(small, tmp_path, monkeypatch):
    path = tmp_path / "int8.pb"
    path.write_text("of an earlier run")

    def fail(*_):
        raise UserError("no")

    monkeypatch.setattr(inc, "_quantized", fail)
    for _ in range(2):
        with pytest.raises(UserError, match="no"):
            quantize(small["fp32"], images(16), path)
    assert not (tmp_path / "int8.pb.json").exists()


def test_layers_with_double_underscores_are_quantized_and_keep_their_names(tmp_path):
    layers = tf.keras.layers
    fp32, model = model_of(
        tmp_path,
        layers.ReLU(name="relu__1"),
        layers.DepthwiseConv2D(3, name="block__0___depthwise", activation="relu"),
        layers.Conv2D(8, 1, name="a_requant__conv", activation="relu"),
        layers.Flatten(name="flat__ten"),
    )
    path = quantize(fp32, sixteen(16), tmp_path / "int8.pb")
    expected = [layer.name for layer in graphs.layers(graphs.read_graph(fp32))]
    listed = graphs.layers(graphs.read_graph(path))
    assert len(expected) == 4 and all("__" in name for name in expected)
    assert [layer.name for layer in listed if layer.int8] == expected
    x = sixteen(8, seed=3)
    assert stats.sqnr_db(model(x).numpy(), graphs.FrozenGraph(path)(x)) > 15


def test_layers_named_stay_float_and_no_others(tmp_path):
    """INC takes a name for the beginning of names: Conv2D for Conv2D_1, too."""
    kernel = np.random.default_rng(0).uniform(-1, 1, (3, 3, 3, 3)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 16, 16, 3), "input")
        for name in ("a__b", "a__b_1", "a__b_2"):
            x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME", name=name), [0.1] * 3))
        tf.identity(x, "predict")
    fp32 = graphs.write_graph(graph.as_graph_def(), tmp_path / "fp32.pb")
    path = quantize(fp32, sixteen(8), tmp_path / "x.pb", float_layers=["a__b"])
    listed = {layer.name: layer.int8 for layer in graphs.layers(graphs.read_graph(path))}
    assert listed == {"a__b": False, "a__b_1": True, "a__b_2": True}
    with pytest.raises(UserError, match="fp32.pb has no layer a__c"):
        quantize(fp32, sixteen(8), tmp_path / "x.pb", float_layers=["a__c"])


def test_the_legacy_form_has_operations_of_its_own(small, tmp_path):
    x = images(32, seed=1)
    path = quantize(small["fp32"], x, tmp_path / "legacy.pb", form="legacy")
    listed = graphs.layers(graphs.read_graph(path))
    assert len(listed) == 3 and all(layer.int8 for layer in listed)
    assert all("Quantized" in layer.op for layer in listed)
    low, high = graphs.input_range(graphs.read_graph(path))
    assert low <= x.min() * 0.99 and high >= x.max() * 0.99
    with pytest.raises(UserError, match="no form 'onnx'"):
        quantize(small["fp32"], x, tmp_path / "x.pb", form="onnx")


@pytest.mark.parametrize("pool", ["MaxPooling2D", "AveragePooling2D"])
def test_pools_between_two_kinds_of_bytes_do_not_end_the_process(pool, tmp_path):
    """A pool of signed bytes before a dense layer, which has unsigned ones, aborts in oneDNN."""
    layers = tf.keras.layers
    middle = layers.Activation("tanh"), getattr(layers, pool)(4), layers.Flatten()
    fp32, model = model_of(tmp_path, *middle)
    path = quantize(fp32, sixteen(16), tmp_path / "int8.pb")
    assert all(layer.int8 for layer in graphs.layers(graphs.read_graph(path)))
    x = sixteen(8, seed=3)
    outputs = outputs_of_a_process(path, x, tmp_path)
    assert stats.sqnr_db(model(x).numpy(), outputs) > 15


def test_grouped_convolutions_do_not_end_the_process(tmp_path):
    """In INT8 oneDNN throws a std::length_error; depthwise ones are written as such and run."""
    layers = tf.keras.layers
    depthwise, grouped = layers.Conv2D(8, 3, groups=8), layers.Conv2D(8, 3, groups=2)
    middle = layers.ReLU(), depthwise, layers.ReLU(), grouped, layers.ReLU(), layers.Flatten()
    fp32, model = model_of(tmp_path, *middle)
    path = quantize(fp32, sixteen(16), tmp_path / "int8.pb")
    listed = graphs.layers(graphs.read_graph(path))
    assert [layer.int8 for layer in listed] == [True, True, False, True]
    x = sixteen(8, seed=3)
    outputs = outputs_of_a_process(path, x, tmp_path)
    assert stats.sqnr_db(model(x).numpy(), outputs) > 15


def test_pools_of_one_kind_of_bytes_stay_int8(tmp_path):
    layers = tf.keras.layers
    middle = layers.ReLU(), layers.MaxPooling2D(4), layers.Flatten()
    fp32, _ = model_of(tmp_path, *middle)
    int8 = graphs.read_graph(quantize(fp32, sixteen(16), tmp_path / "int8.pb"))
    nodes = {node.name: node for node in int8.node}
    (pool,) = (node for node in int8.node if node.op == "MaxPool")
    assert nodes[pool.input[0]].op == "Dequantize"


def test_what_an_elu_gives_keeps_its_sign(tmp_path):
    """INC takes it for positive; with unsigned bytes all below zero would be lost (2 dB)."""
    layers = tf.keras.layers
    middle = layers.Activation("elu"), layers.Conv2D(8, 3), layers.Flatten()
    fp32, model = model_of(tmp_path, *middle)
    path = quantize(fp32, sixteen(16), tmp_path / "int8.pb")
    x = sixteen(8, seed=3)
    assert stats.sqnr_db(model(x).numpy(), graphs.FrozenGraph(path)(x)) > 15


def outputs_of_a_process(graph, x, folder):
    """The outputs of a frozen graph, run where native code that aborts fails the test only."""
    np.save(folder / "x.npy", x)
    code = (
        "import sys, numpy; from helpers import graphs; "
        "numpy.save(sys.argv[3], graphs.FrozenGraph(sys.argv[1])(numpy.load(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, graph, folder / "x.npy", folder / "y.npy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    return np.load(folder / "y.npy")


def test_a_graph_that_inc_cannot_read_is_told_in_a_sentence(tmp_path):
    """A call of a function that is not there: INC gives a model whose graph is None."""
    kernel = np.ones((3, 3, 3, 3), np.float32)
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 16, 16, 3), "input")
        inner = tf.function(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME"))
        tf.identity(inner(tf.nn.conv2d(x, kernel, 1, "SAME")), "predict")
    graph_def = graph.as_graph_def()
    graph_def.library.Clear()
    fp32 = graphs.write_graph(graph_def, tmp_path / "fp32.pb")
    with pytest.raises(UserError, match="gives no INT8 graph for fp32.pb.*stands in"):
        quantize(fp32, sixteen(8), tmp_path / "int8.pb")
    assert not (tmp_path / "int8.pb").exists()


def test_what_holds_itself_is_given_back_too():
    class Graph:
        pass

    graph = Graph()
    graph.operations = [graph]
    gone = weakref.ref(graph)
    gc.disable()
    try:
        del graph
        assert gone() is not None
        inc.give_memory_back()
        assert gone() is None
    finally:
        gc.enable()
