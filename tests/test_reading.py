"""Reading trained models: each form there is, and a sentence for each that cannot be taken."""

import json
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from helpers import UserError, graphs, stats
from helpers.quantize import freeze, quantize, reading

layers = tf.keras.layers


def sequential(shape, *steps, **options):
    return tf.keras.Sequential([layers.Input(shape, **options), *steps])


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def convolutions():
    model = sequential(
        (8, 8, 3),
        *(layers.Conv2D(4, 3, use_bias=False), layers.BatchNormalization(momentum=0.0)),
        *(layers.ReLU(), layers.Conv2D(8, 3, groups=2)),
        *(layers.Flatten(), layers.Dense(5, activation="softmax")),
    )
    model(numbers(16, 8, 8, 3), training=True)  # statistics other than 0 and 1
    return model


def one_dimension():
    steps = layers.Conv1D(4, 3), layers.ReLU(), layers.GlobalAveragePooling1D(), layers.Dense(3)
    return sequential((16, 3), *steps)


def attention():
    x = layers.Input((8, 16))
    y = layers.MultiHeadAttention(2, 8)(x, x)
    keys = layers.Dense(16)(y)
    y = tf.matmul(tf.nn.softmax(tf.matmul(keys, keys, transpose_b=True)), keys)
    return tf.keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.LayerNormalization()(x + y))))


def preprocessing():
    norm = layers.Normalization()
    norm.adapt(numbers(10, 8, 8, 3) + 0.5)
    noise = layers.GaussianNoise(0.5), layers.Dropout(0.5)  # in training only
    return sequential((8, 8, 3), layers.Rescaling(1 / 255), norm, *noise, layers.Conv2D(4, 3))


def unrolled():
    return sequential((6, 3), layers.LSTM(4, unroll=True), layers.Dense(3))


def pixels():
    return sequential((8, 8, 3), layers.Rescaling(1 / 255), layers.Conv2D(4, 3), dtype="uint8")


def words():
    return sequential(
        (8,), layers.Embedding(10, 4), layers.Flatten(), layers.Dense(3), dtype="int32"
    )


NETWORKS = [convolutions, one_dimension, attention, preprocessing, unrolled, pixels, words]


def inputs_of(model, count=13):
    (tensor,) = model.inputs
    if tensor.dtype.is_integer:
        return np.random.default_rng(0).integers(
            0, 10, (count, *tensor.shape[1:]), tensor.dtype.name
        )
    return numbers(count, *tensor.shape[1:], seed=1)


def export(model, folder):
    model.export(str(folder))
    return folder


def saved(model, path):
    model.save(path)
    return path


WRITERS = {
    "keras": lambda model, folder: saved(model, folder / "model.keras"),
    "h5": lambda model, folder: saved(model, folder / "model.h5"),
    "SavedModel": lambda model, folder: export(model, folder / "exported"),
    "SavedModel of save": lambda model, folder: saved(model, folder / "saved"),
    "pb": lambda model, folder: freeze(model, folder / "model.pb"),
}


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_frozen_graph_computes_what_the_original_does(network, form, tmp_path):
    tf.keras.utils.set_random_seed(0)
    model = network()
    x = inputs_of(model)
    if form == "pb" and x.dtype != np.float32:
        pytest.skip("freeze is for networks of float inputs")
    path = WRITERS[form](model, tmp_path)
    before = content(tmp_path)
    source = reading.read(path)
    assert content(tmp_path) == before
    expected = model(x).numpy()
    assert expected.std() > 1e-3 and source.predict(x, 5).shape == expected.shape
    assert np.allclose(source.predict(x, 5), expected, atol=1e-4)
    # stock: ITEX is off by 2e-3 in a LayerNormalization of a residual sum
    frozen = graphs.FrozenGraph(source.graph_def, stock=True)
    assert np.allclose(frozen.predict(x, 5), expected, atol=1e-4)
    assert frozen.signature.shape == x.shape[1:] and frozen.signature.dtype == x.dtype.name
    ops = {node.op for node in source.graph_def.node}
    assert not source.graph_def.library.function
    assert not [
        op
        for op in ops
        if "PartitionedCall" in op or ("BatchNorm" in op and network is convolutions)
    ]


@pytest.mark.parametrize("form", WRITERS)
def test_a_source_tells_what_the_original_names_its_ends(form, tmp_path):
    x = layers.Input((8, 8, 3), name="picture")
    model = tf.keras.Model(x, layers.Conv2D(4, 3, name="answer")(x))
    source = reading.read(WRITERS[form](model, tmp_path))
    assert (source.kind, source.input_name, source.output_name) == {
        "keras": ("Keras model", "picture", "answer"),
        "h5": ("Keras model", "picture", "answer"),
        "SavedModel": ("SavedModel", "picture", "output_0"),
        "SavedModel of save": ("SavedModel", "picture", "answer"),
        "pb": ("frozen graph", "input", "predict"),
    }[form]


class Subclass(tf.keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.layer = layers.Conv2D(4, 3, activation="relu")
        self.end = layers.Dense(3)

    def call(self, x):
        return {"scores": self.end(layers.Flatten()(self.layer(x)))}


@tf.keras.saving.register_keras_serializable()
class Registered(tf.keras.Model):
    """Its class is known, its input not."""

    def __init__(self, **options):
        super().__init__(**options)
        self.layer = layers.Conv2D(4, 3)

    def call(self, x):
        return self.layer(x)


def test_a_subclass_of_model_is_read_as_a_saved_model(tmp_path):
    model = Subclass()
    x = numbers(7, 8, 8, 3)
    expected = model(x)["scores"].numpy()
    model.save(tmp_path / "model")
    source = reading.read(tmp_path / "model")
    assert source.output_name == "scores"
    assert np.allclose(source.predict(x, 3), expected, atol=1e-5)
    assert np.allclose(graphs.FrozenGraph(source.graph_def)(x), expected, atol=1e-5)


class Keras3(tf.Module):
    """A SavedModel as Keras 3 writes it: its batch norms are products and sums of variables."""

    def __init__(self):
        super().__init__()
        self.kernel, self.gamma = tf.Variable(numbers(3, 3, 3, 4)), tf.Variable(numbers(4, seed=1))
        self.mean, self.variance = (
            tf.Variable(numbers(4, seed=2)),
            tf.Variable([1.0, 2.0, 3.0, 0.5]),
        )

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32, "x")])
    def serve(self, x):
        x = tf.nn.conv2d(x, self.kernel, 1, "VALID")
        return tf.nn.batch_normalization(x, self.mean, self.variance, 0.5, self.gamma, 1e-3)


def write_module(module, folder):
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return folder


def test_a_decomposed_batch_norm_is_folded_and_an_open_shape_fixed(tmp_path):
    module = Keras3()
    path = write_module(module, tmp_path / "model")
    with pytest.raises(UserError, match=r"\(None, None, 3\).*--shape 224,224,3"):
        reading.read(path)
    for shape in ((9, 9), (9, 9, 4)):
        with pytest.raises(UserError, match=r"\(None, None, 3\).*--shape"):
            reading.read(path, shape)
    source = reading.read(path / "saved_model.pb", (9, 7, 3))
    assert graphs.find_signature(source.graph_def).shape == (9, 7, 3)
    ops = [node.op for node in source.graph_def.node if node.op != "Const"]
    assert sorted(ops) == ["BiasAdd", "Conv2D", "Identity", "Placeholder"]
    x = numbers(5, 9, 7, 3)
    assert np.allclose(source.predict(x, 2), module.serve(x), atol=1e-5)
    assert np.allclose(graphs.FrozenGraph(source.graph_def)(x), module.serve(x), atol=1e-4)


@pytest.mark.parametrize("form", ["keras", "SavedModel", "pb"])
def test_a_shape_too_small_for_the_network_gets_a_sentence(form, tmp_path):
    model = sequential((None, None, 3), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D())
    path = WRITERS[form](model, tmp_path)
    with pytest.raises(UserError, match="cannot be frozen.*Check --shape"):
        reading.read(path, (1, 1, 3))


@pytest.mark.parametrize("form", ["keras", "h5", "SavedModel", "pb"])
def test_an_open_shape_is_fixed_in_every_form(form, tmp_path):
    steps = layers.Conv2D(4, 3), layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(3)
    model = sequential((None, None, 3), *steps)
    path = WRITERS[form](model, tmp_path)
    with pytest.raises(UserError, match="--shape 224,224,3"):
        reading.read(path)
    source = reading.read(path, (9, 9, 3))
    assert any(node.op == "AvgPool" for node in source.graph_def.node)  # as for a known shape
    x = numbers(5, 9, 9, 3)
    assert np.allclose(graphs.FrozenGraph(source.graph_def)(x), model(x), atol=1e-4)


def test_a_shape_of_unknown_rank_in_a_frozen_graph_is_fixed(tmp_path):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, None, "pixels")
        tf.nn.relu(tf.nn.conv2d(x, numbers(3, 3, 3, 4), 1, "SAME"), name="scores")
    path = graphs.write_graph(graph.as_graph_def(), tmp_path / "model.pb")
    with pytest.raises(UserError, match="unknown.*--shape"):
        reading.read(path)
    source = reading.read(path, (8, 8, 3))
    assert graphs.find_signature(source.graph_def).shape == (8, 8, 3)
    assert (source.input_name, source.output_name) == ("pixels", "scores")


def test_functions_of_a_frozen_graph_are_inlined(tmp_path):
    @tf.function
    def inner(a, b):
        return tf.nn.relu(a) + b, a

    @tf.function
    def outer(x):
        first, second = inner(x, 2 * x)
        return tf.nn.conv2d(second, numbers(1, 1, 3, 3), 1, "SAME") - first

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 4, 4, 3), "x")
        tf.identity(outer(x), "y")
    original = graph.as_graph_def()
    assert {node.op for node in original.node} & {"PartitionedCall", "StatefulPartitionedCall"}
    source = reading.read(graphs.write_graph(original, tmp_path / "model.pb"))
    assert not source.graph_def.library.function
    x = numbers(3, 4, 4, 3)
    assert np.allclose(graphs.FrozenGraph(source.graph_def)(x), outer(x), atol=1e-5)
    assert np.allclose(source.predict(x, 2), outer(x), atol=1e-5)


# what follows makes files that cannot be read, each below a folder, and gives their path


def cut(name):
    def make(folder):
        path = WRITERS[name](one_dimension(), folder)
        file = path / "saved_model.pb" if path.is_dir() else path
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
        return path

    return make


def file(name, content=b"nothing of the kind"):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def without_variables(folder):
    path = export(one_dimension(), folder / "model")
    for part in (path / "variables").iterdir():
        part.unlink()
    return path


def folder_above(folder):
    export(one_dimension(), folder / "versions" / "1")
    return folder / "versions"


def keras_3_zip(folder):
    with zipfile.ZipFile(folder / "net.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.0"}))
        archive.writestr("config.json", "{}")
    return folder / "net.keras"


def keras_3_hdf5(folder):
    with h5py.File(folder / "net.h5", "w") as store:
        store.attrs["keras_version"], store.attrs["model_config"] = "3.15.0", "{}"
    return folder / "net.h5"


def zip_without_metadata(folder):
    with zipfile.ZipFile(folder / "net.keras", "w") as archive:
        archive.writestr("something.txt", "else")
    return folder / "net.keras"


def weights_only(folder):
    one_dimension().save_weights(folder / "net.h5")
    return folder / "net.h5"


class Doubling(layers.Layer):
    def call(self, x):
        return 2 * x


def own_layer(name):
    return lambda folder: saved(
        sequential((8, 8, 3), Doubling(), layers.Conv2D(4, 3)), folder / name
    )


def own_activation(folder):
    def triple(x):
        return 3 * x

    return saved(sequential((8, 8, 3), layers.Conv2D(4, 3, activation=triple)), folder / "m.keras")


def with_lambda(folder):
    steps = layers.Lambda(lambda x: x * 2), layers.Conv2D(4, 3)
    return saved(sequential((8, 8, 3), *steps), folder / "m.keras")


def input_unknown(folder):
    model = Registered()
    model(numbers(1, 8, 8, 3))
    return saved(model, folder / "m.keras")


def foreign_operation(folder):
    path = export(one_dimension(), folder / "model")
    file = path / "saved_model.pb"
    file.write_bytes(file.read_bytes().replace(b"Relu", b"Rolu"))
    return path


def two_inputs(form):
    def make(folder):
        a, b = layers.Input((4,), name="left"), layers.Input((4,), name="right")
        return WRITERS[form](tf.keras.Model([a, b], layers.Dense(3)(a + b)), folder)

    return make


def two_outputs(form):
    def make(folder):
        x = layers.Input((4,))
        ends = layers.Dense(3, name="kind")(x), layers.Dense(1, name="age")(x)
        return WRITERS[form](tf.keras.Model(x, ends), folder)

    return make


def two_ends_of_a_graph(folder):
    with tf.Graph().as_default() as graph:
        a, b = (tf.compat.v1.placeholder(tf.float32, (None, 4), name) for name in ("a", "b"))
        tf.matmul(a + b, numbers(4, 3), name="y")
    return graphs.write_graph(graph.as_graph_def(), folder / "model.pb")


def no_signature(folder):
    module = tf.Module()
    module.weight = tf.Variable(numbers(3))
    tf.saved_model.save(module, str(folder / "model"))
    return folder / "model"


class Function(tf.Module):
    """A SavedModel of one function."""

    def __init__(self, function, shape, dtype=tf.float32):
        super().__init__()
        self.weight = tf.Variable(numbers(4, 4))
        spec = [tf.TensorSpec(shape, dtype, "x")]
        self.serve = tf.function(lambda x: function(x, self.weight), input_signature=spec)


def function(*arguments):
    return lambda folder: write_module(Function(*arguments), folder / "model")


def keras(make, form="keras"):
    return lambda folder: WRITERS[form](make(), folder)


def texts(x, weight):
    return tf.strings.to_number(x)[:, None] @ weight[:1]


def looped(x, weight):
    return tf.while_loop(lambda y: tf.reduce_sum(y) < 100.0, lambda y: (y @ weight,), (x,))[0]


def branches(x, weight):
    return tf.cond(tf.reduce_sum(x) > 0, lambda: x @ weight, lambda: x)


def lookup():
    table = layers.IntegerLookup(vocabulary=[1, 2, 3], output_mode="multi_hot")
    return sequential((8,), table, layers.Dense(3), dtype="int64")


def nothing_to_quantize():
    return sequential((8, 8, 3), layers.MaxPooling2D(), layers.Activation("relu"), layers.Flatten())


def three_dimensions():
    return sequential((8, 8, 8, 3), layers.Conv3D(4, 3))


def half():
    steps = layers.Conv2D(4, 3, dtype="mixed_bfloat16"), layers.Flatten()
    return sequential((8, 8, 3), *steps)


def quantized(folder):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 4), "x")
        x = tf.quantization.fake_quant_with_min_max_args(x)
        tf.matmul(x, numbers(4, 3), name="y")
    return graphs.write_graph(graph.as_graph_def(), folder / "model.pb")


def with_variables(folder):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 4), "x")
        weights = tf.compat.v1.get_variable("w", initializer=numbers(4, 3), use_resource=False)
        tf.matmul(x, weights, name="y")
    return graphs.write_graph(graph.as_graph_def(), folder / "model.pb")


def with_python(x, weight):
    y = tf.numpy_function(lambda a: a, [x], tf.float32)
    return tf.ensure_shape(y, (None, 4)) @ weight


REFUSED = {
    "no file": (lambda folder: folder / "absent.keras", "There is no model at"),
    "other suffix": (file("net.onnx"), "no model that can be read here.*SavedModel"),
    "text as .keras": (file("net.keras"), "not a whole model.*neither"),
    "text as .h5": (file("net.h5"), "not a whole model.*neither"),
    "text as .pb": (file("net.pb"), "not a whole frozen"),
    "empty .keras": (file("net.keras", b""), "not a whole model"),
    "empty .pb": (file("net.pb", b""), "empty graph"),
    **{f"cut {form}": (cut(form), "not a whole") for form in ("keras", "h5", "SavedModel", "pb")},
    "no metadata": (zip_without_metadata, "not a whole model.*metadata.json"),
    "no saved_model.pb": (lambda folder: folder, "is no SavedModel.*Give a .keras"),
    "folder above": (folder_above, "is no SavedModel.*Give .*versions/1"),
    "no variables": (without_variables, "not a whole model"),
    "Keras 3 .keras": (
        keras_3_zip,
        r"(?s)Keras 3.15.0.*import keras\n.*load_model\(\"net.keras\"\).export.*_saved_model",
    ),
    "Keras 3 .h5": (keras_3_hdf5, r"(?s)Keras 3.15.0.*import keras\n.*load_model\(\"net.h5\"\)"),
    "weights only": (weights_only, "no model.*Save the whole model"),
    "own layer .keras": (own_layer("m.keras"), r"'Doubling'.*model.export\(\"folder\"\)"),
    "own layer .h5": (own_layer("m.h5"), r"'Doubling'.*model.export\(\"folder\"\)"),
    "own activation": (own_activation, r"'triple'.*model.export\(\"folder\"\)"),
    "lambda": (with_lambda, r"a Lambda layer.*model.export\(\"folder\"\)"),
    **{
        f"two inputs {form}": (two_inputs(form), r"2 inputs \(left, right\).*wrap or cut")
        for form in ("keras", "SavedModel of save")
    },
    **{
        f"two outputs {form}": (two_outputs(form), r"2 outputs \((kind, age|age, kind)\).*cut")
        for form in ("keras", "SavedModel of save")
    },
    "two inputs pb": (two_ends_of_a_graph, r"2 inputs \(a, b\).*wrap or cut"),
    "input unknown": (input_unknown, "does not tell its input.*model.export"),
    "foreign operation": (foreign_operation, "needs the operation Rolu.*where its package"),
    "no signature": (no_signature, "no signature serving_default.*Export the model again"),
    "texts": (function(texts, (None,), tf.string), "takes strings; numbers are needed"),
    "fixed batch": (function(tf.matmul, (2, 4)), "batches of 2 only.*None"),
    "While": (function(looped, (None, 4)), "control flow.*FP32, or in BF16"),
    "If": (function(branches, (None, 4)), "control flow.*FP32, or in BF16"),
    **{
        f"recurrent {form}": (
            keras(lambda: sequential((16, 3), layers.LSTM(4), layers.Dense(3)), form),
            "control flow, as recurrent layers have.*FP32, or in BF16",
        )
        for form in ("keras", "SavedModel")
    },
    **{
        f"lookup {form}": (keras(lookup, form), "looks values up in a table.*export the part")
        for form in ("keras", "SavedModel")
    },
    "random": (
        function(lambda x, weight: tf.nn.dropout(x, 0.5) @ weight, (None, 4)),
        "draws random numbers.*training=False",
    ),
    "flips": (
        keras(
            lambda: sequential((8, 8, 3), layers.RandomFlip(), layers.Conv2D(4, 3)), "SavedModel"
        ),
        "draws random numbers.*no layers that vary images",
    ),
    "Python": (function(with_python, (None, 4)), "code outside of TensorFlow"),
    "no layers": (keras(nothing_to_quantize), "no convolution or matrix product.*FP32, or in BF16"),
    "Conv3D": (keras(three_dimensions), "only Conv3D, which stay float.*FP32, or in BF16"),
    "bfloat16": (keras(half), "computes in bfloat16.*mixed-precision"),
    "quantized": (quantized, "is quantized already.*FP32 model"),
    "variables": (with_variables, "has variables.*SavedModel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_gets_a_sentence(case, tmp_path):
    make, sentence = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        reading.read(path)
    assert "Traceback" not in str(caught.value) and str(path) in str(caught.value)


def test_what_keras_3_exports_is_read_folded_and_quantized(tmp_path):
    """A network that today's TensorFlow trained and wrote: tests/assets/keras3.py."""
    assets = ROOT / "tests" / "assets"
    source = reading.read(assets / "keras3_saved_model")
    assert (source.kind, source.input_name) == ("SavedModel", "image")
    layers = [node.op for node in source.graph_def.node if node.op in graphs.LAYER_OPS]
    assert sorted(layers) == ["Conv2D"] * 3 + ["DepthwiseConv2dNative", "MatMul"]
    decomposed = {"Rsqrt", "Mul", "Sub", "AddV2", "FusedBatchNormV3"}
    assert not decomposed & {node.op for node in source.graph_def.node}
    with np.load(assets / "keras3.npz") as stored:
        images, outputs = stored["pixels"].astype(np.float32) / 255, stored["outputs"]
    assert np.allclose(source.predict(images), outputs, atol=1e-4)
    fp32 = graphs.write_graph(source.graph_def, tmp_path / "fp32.pb")
    assert np.allclose(graphs.FrozenGraph(fp32)(images), outputs, atol=1e-4)
    int8 = quantize(fp32, images, tmp_path / "int8.pb")
    assert [layer.int8 for layer in graphs.layers(graphs.read_graph(int8))] == [True] * 5
    assert stats.sqnr_db(outputs, graphs.FrozenGraph(int8)(images)) > 15


def test_the_layers_that_keras_applications_make_for_themselves_are_known(tmp_path):
    """Of ConvNeXt, whose branches are scaled and dropped, and InceptionResNetV2."""
    convnext, inception = (
        sys.modules[module.preprocess_input.__module__]
        for module in (tf.keras.applications.convnext, tf.keras.applications.inception_resnet_v2)
    )
    x = layers.Input((8, 8, 3))
    y = convnext.StochasticDepth(0.5)(convnext.LayerScale(0.1, 4)(layers.Conv2D(4, 3)(x)))
    model = tf.keras.Model(x, inception.CustomScaleLayer(0.2)([y, y]))
    model.save(tmp_path / "own.keras")
    source = reading.read(tmp_path / "own.keras")
    batch = numbers(4, 8, 8, 3)
    assert np.allclose(source.predict(batch), model(batch), atol=1e-6)
    assert not tf.config.functions_run_eagerly()
