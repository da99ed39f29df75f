import itertools
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, images

from helpers import graphs, stats
from helpers.quantize import CalibrationLoader, folding, freeze, quiet


def test_frozen_graph_computes_what_keras_computes(keras_model, small):
    graph = graphs.FrozenGraph(small["fp32"])
    x = images(20, seed=3)
    assert np.allclose(graph.predict(x, 8), keras_model(x).numpy(), atol=1e-5)
    assert graph.signature == graphs.Signature("input", "predict", (32, 32, 3), "float32")


def test_batch_norms_are_folded(small):
    ops = {node.op for node in graphs.read_graph(small["fp32"]).node}
    assert "Conv2D" in ops and not any("BatchNorm" in op for op in ops)


KERNEL = np.random.default_rng(1).standard_normal((3, 3, 4, 5), np.float32)


def padded(layer, paddings, before=tf.identity):
    """A GraphDef: input (N, 9, 9, 4), `before`, zero padding, `layer`."""
    with tf.Graph().as_default() as graph:
        x = before(tf.compat.v1.placeholder(tf.float32, (None, 9, 9, 4), "input"))
        tf.identity(layer(tf.pad(x, paddings)), "predict")
    return graph.as_graph_def()


def convolution(padding="VALID"):
    return lambda x: tf.nn.conv2d(x, KERNEL, 2, padding)


def max_pool(size=3):
    return lambda x: tf.nn.max_pool2d(x, size, 2, "VALID")


@pytest.mark.parametrize(
    "folds, layer, paddings, before",
    [
        (True, convolution(), [(0, 0), (3, 1), (0, 2), (0, 0)], tf.identity),
        (True, max_pool(), [(0, 0), (1, 1), (1, 2), (0, 0)], tf.nn.relu),
        (True, max_pool(), [(0, 0), (2, 0), (0, 1), (0, 0)], tf.nn.relu6),
        # would change the outputs: it pads already, it may see negative values, it would have
        # windows of nothing but padding, and more than rows and columns are padded
        (False, convolution("SAME"), [(0, 0), (1, 1), (1, 1), (0, 0)], tf.identity),
        (False, max_pool(), [(0, 0), (1, 1), (1, 1), (0, 0)], tf.identity),
        (False, max_pool(), [(0, 0), (3, 0), (0, 0), (0, 0)], tf.nn.relu),
        (False, max_pool(), [(0, 0), (1, 1), (1, 1), (0, 2)], tf.nn.relu),
        (False, convolution(), [(1, 0), (1, 1), (1, 1), (0, 0)], tf.identity),
    ],
)
def test_paddings_fold_only_where_no_output_changes(folds, layer, paddings, before):
    graph_def = padded(layer, paddings, before)
    x = np.random.default_rng(0).standard_normal((3, 9, 9, 4), np.float32) - 0.5
    expected = graphs.FrozenGraph(graph_def, "input", "predict")(x)
    folding.fold_paddings(graph_def)
    plain = graphs.extract(graph_def, ["predict"])
    assert any(node.op == "Pad" for node in plain.node) != folds
    found = graphs.FrozenGraph(plain, "input", "predict")(x)
    assert found.shape == expected.shape and np.allclose(found, expected, atol=1e-5)
    graphs.unfold_paddings(plain)
    assert "EXPLICIT" not in str(plain)  # to ask for node.attr["padding"] would give all nodes one
    again = graphs.FrozenGraph(plain, "input", "predict")(x)
    assert again.shape == expected.shape and np.allclose(again, expected, atol=1e-5)


def test_a_padding_that_something_else_reads_stays_for_it():
    both = padded(
        lambda x: tf.reduce_sum(convolution()(x), (1, 2, 3)) + tf.cast(tf.shape(x)[1], tf.float32),
        [(0, 0), (1, 1), (1, 1), (0, 0)],
    )
    x = np.ones((2, 9, 9, 4), np.float32)
    expected = graphs.FrozenGraph(both, "input", "predict")(x)
    folding.fold_paddings(both)
    assert np.allclose(graphs.FrozenGraph(both, "input", "predict")(x), expected, rtol=1e-5)


def test_freezing_folds_the_paddings_of_keras(tmp_path):
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input((9, 9, 4)),
            layers.ZeroPadding2D(3),
            layers.Conv2D(5, 7, strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.ZeroPadding2D(1),
            layers.MaxPooling2D(3, strides=2),
        ]
    )
    path = freeze(model, tmp_path / "padded.pb")
    assert not any(node.op == "Pad" for node in graphs.read_graph(path).node)
    x = np.random.default_rng(0).standard_normal((3, 9, 9, 4), np.float32)
    assert np.allclose(graphs.FrozenGraph(path)(x), model(x).numpy(), atol=1e-5)


CHANNELS = 6


def numbers(*shape, low=-1.0, high=1.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def convolve(x, kernel=None):
    return tf.nn.conv2d(x, numbers(3, 3, 4, CHANNELS) if kernel is None else kernel, 1, "SAME")


def depthwise(x):  # two outputs per channel: the scale's order matters
    return tf.nn.depthwise_conv2d(x, numbers(3, 3, 4, 2, seed=1), (1, 1, 1, 1), "SAME")


def dense(x):
    return tf.matmul(tf.reshape(x, (-1, 8 * 8 * 4)), numbers(256, CHANNELS, seed=2))


def dense_turned(x):
    x = tf.reshape(x, (-1, 8 * 8 * 4))
    return tf.matmul(x, numbers(CHANNELS, 256, seed=2), transpose_b=True)


def statistics(x, seed=5):
    shape = (x.shape[-1],)
    return (
        numbers(*shape, low=0.5, high=2.0, seed=seed),
        numbers(*shape, seed=seed + 1),
        numbers(*shape, seed=seed + 2),
        numbers(*shape, low=0.1, high=3.0, seed=seed + 3),
    )


def fused(x, version="V3", training=False):
    gamma, beta, mean, variance = statistics(x)
    op = getattr(tf.raw_ops, f"FusedBatchNorm{version}")
    norm = op(
        x=x,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=1e-3,
        is_training=training,
    )
    return norm[0]


def keras3(x):
    """As tf.nn.batch_normalization writes it, which Keras 3 calls."""
    gamma, beta, mean, variance = map(tf.constant, statistics(x, seed=7))
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)


def subtracted(x):
    """Another order: (x - mean) / deviation * gamma + beta, with constants (1, …, C)."""
    shape = (1,) * (x.shape.rank - 1) + (-1,)
    gamma, beta, mean, variance = (tf.reshape(a, shape) for a in statistics(x))
    return gamma * ((x - mean) / tf.sqrt(variance + 1e-3)) + beta


def biased(x):
    return tf.nn.bias_add(x, numbers(x.shape[-1], seed=9))


def added(x):
    return numbers(x.shape[-1], seed=9) + x


def turned(x):
    return 1.5 - 2 * x


def chain(*steps, input_shape=(8, 8, 4)):
    """A GraphDef: an input, steps one behind the other, a Relu, the output."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, *input_shape), "input")
        for step in steps:
            x = step(x)
        tf.identity(tf.nn.relu(x), "predict")
    return graph.as_graph_def()


def folded(graph_def, shape=(5, 8, 8, 4)):
    """The GraphDef after folding, and the SQNR of its outputs to those before in dB."""
    x = numbers(*shape, seed=20)
    before = graphs.FrozenGraph(graph_def)(x)
    assert before.std() > 0.1
    folding.fold_batch_norms(graph_def)
    after = graphs.FrozenGraph(graph_def)(x)
    return graph_def, stats.sqnr_db(before, after)


def operations_of(graph_def):
    return Counter(node.op for node in graph_def.node if node.op not in ("Const", "Reshape"))


BEHIND = [
    *itertools.product((convolve, depthwise), (None, biased, added), (fused, keras3, subtracted)),
    *itertools.product((dense, dense_turned), (None, biased, added), (keras3, subtracted)),
]


@pytest.mark.parametrize("layer, bias, norm", BEHIND)
def test_every_norm_behind_a_layer_is_folded(layer, bias, norm):
    graph_def, sqnr = folded(chain(*filter(None, (layer, bias, norm))))
    assert sqnr > 100
    (op,) = {layer.op for layer in graphs.layers(graph_def)}
    expected = {"Placeholder": 1, op: 1, "BiasAdd": 1, "Relu": 1, "Identity": 1}
    assert operations_of(graph_def) == expected
    ((_, bias),) = graphs.weights(graph_def).values()
    assert bias.shape == (8,) if layer is depthwise else bias.shape == (CHANNELS,)
    assert graphs.with_weights(graph_def, graphs.weights(graph_def)) == graph_def


@pytest.mark.parametrize("version", ["", "V2", "V3"])
def test_every_version_of_the_fused_norm_is_folded(version):
    graph_def, sqnr = folded(chain(convolve, lambda x: fused(x, version)))
    assert sqnr > 100 and "BatchNorm" not in str(operations_of(graph_def))


def test_norms_in_a_row_are_folded():
    graph_def, sqnr = folded(chain(convolve, fused, turned, biased, keras3, fused))
    expected = {"Placeholder": 1, "Conv2D": 1, "BiasAdd": 1, "Relu": 1, "Identity": 1}
    assert sqnr > 100 and operations_of(graph_def) == expected


def test_a_norm_that_is_the_output_keeps_its_name():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 4), "input")
        norm = fused(biased(convolve(x)))
    graph_def, sqnr = folded(graph.as_graph_def())
    assert graphs.find_signature(graph_def).output == norm.op.name
    assert sqnr > 100 and operations_of(graph_def)["BiasAdd"] == 1


def test_a_norm_before_a_layer_stays():
    """As in ResNet50V2 and DenseNet: the Relu between norm and layer forbids to fold."""
    graph_def, sqnr = folded(chain(fused, tf.nn.relu, convolve))
    assert sqnr > 100 and operations_of(graph_def)["FusedBatchNormV3"] == 1
    graph_def, sqnr = folded(chain(convolve, fused, tf.nn.relu, fused, tf.nn.relu))
    assert sqnr > 100 and operations_of(graph_def)["FusedBatchNormV3"] == 1


def both(x):  # the convolution is read twice
    x = convolve(x)
    return fused(x) + x


def two_norms(x):
    x = convolve(x)
    return fused(x) * keras3(x)


def by_pixel(x):  # a constant that differs in more than the channel
    x = convolve(x)
    return x * numbers(8, 8, CHANNELS, seed=30)


def by_column(x):  # as many numbers as there are channels, but along the width
    x = depthwise(x)
    return x * numbers(x.shape[-1], 1, seed=30)


def one_over(x):
    return 1.0 / (tf.abs(x) + 1.0)


@pytest.mark.parametrize(
    "steps",
    [
        (both,),
        (two_norms,),
        (by_pixel,),
        (by_column,),
        (convolve, one_over),
        (convolve, lambda x: 2.0 / x, tf.sigmoid),
        (convolve, lambda x: x * x),
        (convolve, lambda x: fused(x, training=True)),
        (convolve, lambda x: tf.reshape(x, (-1, 8, CHANNELS, 8)), keras3),
    ],
)
def test_what_cannot_be_folded_stays_and_stays_right(steps):
    graph_def = chain(*steps)
    before = operations_of(graph_def)
    graph_def, sqnr = folded(graph_def)
    assert sqnr > 100
    for op in ("FusedBatchNormV3", "RealDiv"):
        assert operations_of(graph_def)[op] == before[op]
    assert "BiasAdd" not in operations_of(graph_def)


def test_a_norm_whose_statistics_are_read_stays():
    def statistics_read(x):
        return tf.raw_ops.FusedBatchNormV3(
            x=convolve(x),
            **dict(zip(("scale", "offset", "mean", "variance"), statistics(convolve(x)))),
            is_training=False,
        ).batch_mean

    graph_def = chain(statistics_read)
    folding.fold_batch_norms(graph_def)
    assert operations_of(graph_def)["FusedBatchNormV3"] == 1


def test_shared_weights_are_folded_once_for_each_reader():
    kernel, bias = numbers(3, 3, 4, 4), numbers(4, seed=9)

    def twice(x):
        shared, offset = tf.constant(kernel), tf.constant(bias)
        x = fused(tf.nn.bias_add(tf.nn.conv2d(x, shared, 1, "SAME"), offset))
        x = tf.nn.conv2d(tf.nn.relu(x), shared, 1, "SAME")
        return keras3(tf.nn.bias_add(x, offset)) + tf.reduce_sum(shared)

    graph_def, sqnr = folded(chain(twice))
    assert sqnr > 100 and "FusedBatchNormV3" not in operations_of(graph_def)
    first, second = graphs.weights(graph_def).values()
    assert not np.allclose(first[0], second[0]) and not np.allclose(first[1], second[1])


def test_channels_first_is_left_alone():
    """No CPU kernel of stock TensorFlow computes it; the graph has to stay as it was."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 4, 8, 8), "input")
        x = tf.nn.conv2d(x, numbers(3, 3, 4, 8), 1, "SAME", data_format="NCHW")
        x = x * numbers(8)  # along the width, which would be taken for the channels
        x = tf.nn.bias_add(x, numbers(8), data_format="NC..")
        tf.identity(x, "predict")
    graph_def = graph.as_graph_def()
    before = operations_of(graph_def)
    folding.fold_batch_norms(graph_def)
    assert operations_of(graph_def) == before


def test_a_network_of_every_kind_from_keras_has_no_norm_left(tmp_path):
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)

    def norm():
        return layers.BatchNormalization(momentum=0.0)

    model = tf.keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            *(layers.Conv2D(8, 3, use_bias=False), norm(), layers.ReLU()),
            *(layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False), norm()),
            *(layers.SeparableConv2D(8, 3), norm(), layers.ReLU()),
            *(layers.GlobalAveragePooling2D(), layers.Dense(10), norm()),
            *(layers.Dense(10, use_bias=False), norm()),
        ]
    )
    x = numbers(16, 16, 16, 3)
    model(x, training=True)
    graph_def = graphs.read_graph(freeze(model, tmp_path / "model.pb"))
    found = operations_of(graph_def)
    assert found["BiasAdd"] == 5 and not found.keys() & {"FusedBatchNormV3", "Mul", "AddV2", "Sub"}
    assert stats.sqnr_db(model(x).numpy(), graphs.FrozenGraph(graph_def)(x)) > 100


def test_functions_that_keras_calls_are_part_of_the_frozen_graph(tmp_path):
    """For grouped convolutions, as in ConvNeXt and RegNet."""
    layers = tf.keras.layers
    grouped = [layers.Conv2D(8 * n, 3, groups=groups) for n, groups in ((2, 8), (1, 2))]
    model = tf.keras.Sequential([layers.Input((8, 8, 8)), *grouped])
    graph_def = graphs.read_graph(freeze(model, tmp_path / "grouped.pb"))
    assert [layer.op for layer in graphs.layers(graph_def)] == ["DepthwiseConv2dNative", "Conv2D"]
    assert not graph_def.library.function
    assert list(folding.grouped_convolutions(graph_def).values()) == [16]
    x = numbers(4, 8, 8, 8)
    assert np.allclose(graphs.FrozenGraph(graph_def)(x), model(x).numpy(), atol=1e-5)
    assert not tf.config.functions_run_eagerly()


def means(axes, keep, before=tf.nn.relu, end="dense"):
    """A GraphDef with a mean over some axes of images (N, 9, 7, 4), and what reads it."""
    with tf.Graph().as_default() as graph:
        x = before(tf.compat.v1.placeholder(tf.float32, (None, 9, 7, 4), "input"))
        mean = tf.reduce_mean(x, axes, keepdims=keep)
        if end == "dense":
            mean = tf.matmul(tf.reshape(mean, (-1, mean.shape[-1] or 1)), numbers(4, 3))
        elif end == "conv":
            mean = tf.nn.conv2d(mean, numbers(1, 1, 4, 3), 1, "SAME")
        elif end == "reshaped conv":
            mean = tf.nn.conv2d(tf.reshape(mean, (-1, 1, 1, 4)), numbers(1, 1, 4, 3), 1, "SAME")
        elif end == "excite":
            mean = x * tf.nn.conv2d(mean, numbers(1, 1, 4, 4), 1, "SAME")
        tf.identity(mean, "predict")
    return graph.as_graph_def()


@pytest.mark.parametrize(
    "pools, axes, keep, before, end",
    [
        (True, [1, 2], False, tf.nn.relu, "dense"),
        (True, [-2, 1], True, tf.nn.relu6, "dense"),
        (True, [1, 2], True, tf.nn.relu, "conv"),
        # pools would take and give bytes of two kinds, or be read in float anyway
        (False, [1, 2], False, tf.tanh, "dense"),
        (False, [1, 2], True, tf.nn.relu, "reshaped conv"),
        (False, [1, 2], False, tf.nn.relu, "reshaped conv"),
        (False, [1, 2], True, tf.nn.relu, "excite"),
        (False, [1, 2], False, tf.nn.relu, "nothing"),
        # not of the whole image
        (False, [0, 1, 2], False, tf.nn.relu, "dense"),
        (False, [1], True, tf.nn.relu, "conv"),
        (False, [1, 2, 3], True, tf.nn.relu, "nothing"),
        (False, [2, 3], False, tf.nn.relu, "nothing"),
    ],
)
def test_means_of_whole_images_become_average_pools(pools, axes, keep, before, end):
    graph_def = means(axes, keep, before, end)
    x = np.random.default_rng(0).standard_normal((3, 9, 7, 4), np.float32)
    expected = graphs.FrozenGraph(graph_def, "input", "predict")(x)
    folding.pool_means(graph_def)
    assert any(node.op == "AvgPool" for node in graph_def.node) == pools
    assert any(node.op == "Mean" for node in graph_def.node) != pools
    outputs = graphs.FrozenGraph(graphs.extract(graph_def, ["predict"]), "input", "predict")(x)
    assert outputs.shape == expected.shape and np.allclose(outputs, expected, atol=1e-6)


def test_a_mean_over_images_of_any_size_stays():
    def any_size(x):
        return tf.nn.relu(tf.compat.v1.placeholder_with_default(x, [None, None, None, 4]))

    graph_def = means([1, 2], False, any_size)
    folding.pool_means(graph_def)
    assert not any(node.op == "AvgPool" for node in graph_def.node)


def run_in_a_process_of_its_own(graph, x, folder):
    """The outputs of a frozen graph; native code may end the process, which fails the test."""
    np.save(folder / "x.npy", x)
    code = (
        "import sys, numpy; from helpers import graphs; "
        "numpy.save(sys.argv[3], graphs.FrozenGraph(sys.argv[1])(numpy.load(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, graph, folder / "x.npy", folder / "y.npy"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    return np.load(folder / "y.npy")


def squeeze_and_excite(x, layers):
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    excited = layers.Conv2D(8, 1, activation="relu")(squeezed)
    return x * layers.Conv2D(8, 1, activation="sigmoid")(excited)


@pytest.mark.parametrize("kind", ["MobileNet", "EfficientNet"])
def test_means_stay_where_int8_would_end_the_process(kind, tmp_path):
    """Written as an average pool, each of them aborts in oneDNN: partition compile failed."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    source = layers.Input((16, 16, 8))
    x = layers.Conv2D(8, 3, activation="relu" if kind == "MobileNet" else "swish")(source)
    if kind == "MobileNet":
        x = layers.GlobalAveragePooling2D(keepdims=True)(x)
        x = layers.Flatten()(layers.Conv2D(10, 1)(x))
    else:
        x = layers.Conv2D(8, 3)(squeeze_and_excite(x, layers))
        x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    model = tf.keras.Model(source, x)
    fp32 = freeze(model, tmp_path / "fp32.pb")
    x = numbers(16, 16, 16, 8)
    with quiet(tmp_path / "log"):
        from neural_compressor.tensorflow import StaticQuantConfig, quantize_model

        loader = CalibrationLoader(x, 8)
        int8 = quantize_model(str(fp32), StaticQuantConfig(), loader, 2).graph_def
    path = graphs.write_graph(int8, tmp_path / "int8.pb")
    assert all(layer.int8 for layer in graphs.layers(int8))
    outputs = run_in_a_process_of_its_own(path, x, tmp_path)
    assert stats.sqnr_db(model(x).numpy(), outputs) > 10
