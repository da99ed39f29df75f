from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import tensorflow as tf
from conftest import images

from helpers import UserError, datasets, files, graphs


def test_dummy_images_are_seeded_and_in_range():
    first, again = datasets.dummy_images(4), datasets.dummy_images(4)
    assert first.shape == (4, 224, 224, 3) and first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, datasets.dummy_images(4, seed=1))
    assert -128 <= first.min() < -60 and 60 < first.max() <= 128
    assert first.std(axis=(1, 2, 3)).std() > 1, "images should differ in contrast"


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
    freezing.fold_paddings(graph_def)
    plain = graphs.extract(graph_def, ["predict"])
    assert any(node.op == "Pad" for node in plain.node) != folds
    found = graphs.FrozenGraph(plain, "input", "predict")(x)
    assert found.shape == expected.shape and np.allclose(found, expected, atol=1e-5)
    freezing.unfold_paddings(plain)
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
    freezing.fold_paddings(both)
    assert np.allclose(graphs.FrozenGraph(both, "input", "predict")(x), expected, rtol=1e-5)


def means(axes, keep, before=tf.identity):
    """A GraphDef with a mean over some axes of images (N, 9, 7, 4)."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 9, 7, 4), "input")
        tf.identity(tf.reduce_mean(before(x), axes, keepdims=keep), "predict")
    return graph.as_graph_def()


@pytest.mark.parametrize(
    "pools, axes, keep",
    [
        (True, [1, 2], False),
        (True, [-2, 1], True),
        (False, [1], False),
        (False, [1, 2, 3], False),
        (False, [2, 3], False),
        (False, [0, 1, 2], False),
    ],
)
def test_means_of_whole_images_become_average_pools(pools, axes, keep):
    graph_def = means(axes, keep)
    x = np.random.default_rng(0).standard_normal((3, 9, 7, 4), np.float32)
    freezing.pool_means(graph_def)
    assert any(node.op == "AvgPool" for node in graph_def.node) == pools
    assert any(node.op == "Mean" for node in graph_def.node) != pools
    found = graphs.FrozenGraph(graphs.extract(graph_def, ["predict"]), "input", "predict")(x)
    expected = x.mean(tuple(axes), keepdims=keep)
    assert found.shape == expected.shape and np.allclose(found, expected, atol=1e-6)


def test_a_mean_over_images_of_any_size_stays():
    graph_def = means([1, 2], False, lambda x: tf.compat.v1.placeholder_with_default(x, [None] * 4))
    freezing.pool_means(graph_def)
    assert not any(node.op == "AvgPool" for node in graph_def.node)


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
    path = freezing.freeze(model, tmp_path / "padded.pb")
    assert not any(node.op == "Pad" for node in graphs.read_graph(path).node)
    x = np.random.default_rng(0).standard_normal((3, 9, 9, 4), np.float32)
    assert np.allclose(graphs.FrozenGraph(path)(x), model(x).numpy(), atol=1e-5)


def test_resnet50_with_random_weights_tells_images_apart():
    model = zoo.keras_resnet50("random")
    probabilities = model(datasets.dummy_images(16, seed=5)).numpy()
    assert np.isfinite(probabilities).all()
    assert len(set(probabilities.argmax(axis=1))) > 8


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x0a\xff\xff\xff\xff\x0f"])
def test_wrong_files_are_refused(tmp_path, content):
    path = tmp_path / "wrong.pb"
    path.write_bytes(content)
    with pytest.raises(UserError, match="Delete it"):
        graphs.read_graph(path)


def test_truncated_and_missing_graphs_are_refused(tmp_path, small):
    path = tmp_path / "cut.pb"
    path.write_bytes(small["fp32"].read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a whole frozen"):
        graphs.read_graph(path)
    with pytest.raises(UserError, match="no model at"):
        graphs.read_graph(tmp_path / "absent.pb")


def test_unclear_signatures_are_asked_for(tmp_path):
    with tf.Graph().as_default() as graph:
        a = tf.compat.v1.placeholder(tf.float32, (None, 4), "a")
        b = tf.compat.v1.placeholder(tf.float32, None, "b")
        tf.add(a, 1.0, "sum")
        tf.add(b, 1.0, "other")
    graph_def = graph.as_graph_def()
    with pytest.raises(UserError, match="--input-name"):
        graphs.find_signature(graph_def)
    with pytest.raises(UserError, match="--output-name"):
        graphs.find_signature(graph_def, "a")
    with pytest.raises(UserError, match="no node 'c'"):
        graphs.find_signature(graph_def, "c", "sum")
    assert graphs.find_signature(graph_def, "a", "sum").shape == (4,)
    assert graphs.find_signature(graph_def, "b", "other").shape is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.pb"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="disk is full"), files.whole(tmp_path / "x"):
        with open("/dev/full", "w") as full:
            full.write("x" * 10_000)


def test_a_missing_alexnet_names_the_notebook(tmp_path):
    with pytest.raises(UserError, match="Run notebook 02_train_alexnet first"):
        zoo.alexnet(tmp_path)
    with pytest.raises(UserError, match="Run notebook 03_quantize_alexnet first"):
        zoo.alexnet(tmp_path, "int8")


def test_several_tensors_at_once(small):
    graph_def, x = graphs.read_graph(small["fp32"]), images(10, seed=8)
    relus = [node.name for node in graph_def.node if node.op == "Relu"]
    found = graphs.Tensors(graph_def, ["input", *relus])(x, batch_size=4)
    assert list(found) == ["input", *relus] and np.array_equal(found["input"], x)
    for name in relus:
        alone = graphs.FrozenGraph(graphs.extract(graph_def, [name])).predict(x)
        assert np.allclose(found[name], alone, atol=1e-5) and found[name].min() == 0


def test_a_piece_starts_at_the_node_named(small):
    graph_def, x = graphs.read_graph(small["fp32"]), images(6, seed=8)
    first, second = [node.name for node in graph_def.node if node.op == "Relu"]
    whole = graphs.Tensors(graph_def, [first, second])(x)
    piece = graphs.piece(graph_def, first, second)
    assert "input" not in {node.name for node in piece.node}
    assert np.allclose(graphs.FrozenGraph(piece)(whole[first]), whole[second], atol=1e-5)


def test_graphs_side_by_side(small):
    fp32, x = graphs.read_graph(small["fp32"]), images(6, seed=8)
    weights = graphs.weights(fp32)
    first = next(iter(weights))
    weights[first][0] *= 0.5
    three = [fp32, graphs.with_weights(fp32, weights), graphs.read_graph(small["int8"])]
    together, outputs = graphs.side_by_side(three)
    assert together.ByteSize() < 1.2 * fp32.ByteSize(), "equal constants are there twice"
    found = graphs.Tensors(together, outputs)(x)
    for graph_def, output in zip(three, outputs):
        assert np.allclose(found[output], graphs.FrozenGraph(graph_def)(x), atol=1e-5)
    assert not np.allclose(found[outputs[0]], found[outputs[1]], atol=1e-2)


def largest_error_of_many_graphs():
    """Of 300 small INT8 convolutions in five graphs."""
    rng = np.random.default_rng(0)
    kernels = rng.uniform(-1, 1, (300, 1, 1, 4, 4)).astype(np.float32)
    x = rng.uniform(0, 1, (1, 2, 2, 4)).astype(np.float32)
    largest = 0

    def as_bytes(values, low, high, kind):
        return tf.quantization.dequantize(
            *tf.quantization.quantize(values, low, high, kind, mode="SCALED"), mode="SCALED"
        )

    for start in range(0, len(kernels), 60):
        with tf.Graph().as_default() as graph:
            source = tf.compat.v1.placeholder(tf.float32, (None, 2, 2, 4), name="input")
            layers = []
            for index, kernel in enumerate(kernels[start : start + 60], start):
                inputs = as_bytes(source, 0.0, 1 + 1e-6 * index, tf.quint8)  # none like another
                weights = as_bytes(tf.constant(kernel), -1.0, 1.0, tf.qint8)
                layers.append(tf.nn.relu(tf.nn.conv2d(inputs, weights, 1, "SAME")))
            tf.stack(layers, name="predict")
        found = graphs.FrozenGraph(graph.as_graph_def())(x)
        right = np.maximum(np.einsum("bhwi,nio->nbhwo", x, kernels[start : start + 60, 0, 0]), 0)
        largest = max(largest, np.abs(found - right).max())
    return largest


def test_weights_of_one_graph_are_not_taken_for_those_of_another():
    # which ones oneDNN's cache of constants mixes up depends on all that the process loaded before
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        error = pool.submit(largest_error_of_many_graphs).result()
    assert error < 3  # without VNNI pairs of products saturate; mixed up, it was 50,000 and more


def test_weights_are_read_and_written_back(small):
    graph_def, x = graphs.read_graph(small["fp32"]), images(6, seed=8)
    weights = graphs.weights(graph_def)
    shapes = [kernel.shape for kernel, _ in weights.values()]
    assert shapes == [(3, 3, 3, 16), (3, 3, 16, 16), (3600, 10)]
    assert graphs.with_weights(graph_def, weights) == graph_def
    last = list(weights)[-1]
    weights[last][1] = weights[last][1] + np.eye(10)[3] * 50
    changed = graphs.FrozenGraph(graphs.with_weights(graph_def, weights))(x)
    assert set(changed.argmax(1)) == {3}
    assert set(graphs.FrozenGraph(graph_def)(x).argmax(1)) != {3}, "the original changed"
