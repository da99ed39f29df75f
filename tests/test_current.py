"""From a Keras 3 file to INT8 in TensorFlow's own integer operations: run in env_current/."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from helpers import UserError, benchmark, datasets, graphs, machine, stats
from helpers.quantize import forms, freeze, reading

pytestmark = pytest.mark.skipif(
    machine.has_itex(), reason="env_current's Python runs this file (tests/run.sh)"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a .keras file of a small depthwise-separable network trained here, its data)."""
    folder = tmp_path_factory.mktemp("mine")
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    separable = [
        layers.DepthwiseConv2D(3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.8),
        layers.ReLU(6),
        layers.Conv2D(32, 1, use_bias=False),
        layers.BatchNormalization(momentum=0.8),
        layers.ReLU(),
    ]
    model = tf.keras.Sequential(
        [
            layers.Input((28, 28, 1), name="digit"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            *separable,
            layers.MaxPool2D(2),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="which"),
        ]
    )
    x, y, *_ = raw_mnist()
    model.compile(tf.keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(x[:2000], y[:2000], batch_size=50, epochs=4, verbose=0)
    model.save(folder / "mine.keras")
    np.savez(folder / "data.npz", x_train=x[:2000], y_train=y[:2000],
             x_test=x[2000:3000], y_test=y[2000:3000])  # fmt: skip
    return folder / "mine.keras", folder / "data.npz"


def raw_mnist():
    with np.load(datasets.MNIST) as stored:
        x, y = stored["x_train"], stored["y_train"]
    return x.reshape(-1, 28, 28, 1).astype(np.float32), y.astype(int)


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """The output folder of the command, and what it said."""
    model, data = trained
    output = tmp_path_factory.mktemp("own")
    words = [sys.executable, "-m", "helpers.quantize", model, "--data", data, "--output", output]
    words += ["--runtime", "tensorflow", "--quick", "--limit", "2", "--tolerance", "5"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return output, done.stdout


def test_a_keras_3_file_becomes_int8_that_is_proved_and_judged(made):
    output, text = made
    assert "Keras model with 4 convolutions and matrix products; input 'digit'" in text
    assert "4 of 4 layers run in INT8 (per channel)." in text and "INT8 is " in text
    result = json.loads((output / "result.json").read_text())
    base, *_, int8 = result["candidates"]
    assert int8["kernels"]["s8"]["count"] == 4 == int8["layers"]["int8"]
    assert base["accuracy"]["top1"] > 0.8 and set(base["kernels"]) == {"f32"}
    assert result["software"]["tensorflow"] == tf.__version__ and not result["software"]["itex"]
    rows = json.loads((output / "layers.json").read_text())
    assert [row["op"] for row in rows].count("DepthwiseConv2dNative") == 1
    assert all(row["int8"] and row["share"] > 0 and row["sqnr_db"] > 10 for row in rows)


LOADS = """\
import sys
import numpy as np
import tensorflow as tf
tf.config.optimizer.set_experimental_options({"use_plugin_optimizers": False})
loaded = tf.saved_model.load(sys.argv[1])
answer = loaded.signatures["serving_default"]
((key, spec),) = answer.structured_input_signature[1].items()
request = tf.constant(np.load(sys.argv[2]), spec.dtype)
np.save(sys.argv[3], next(iter(answer(**{key: request}).values())))
"""


def serve(python, folder, request, answer):
    """What serve.py answers in a fresh process, from a folder where `helpers` is not."""
    words = [python, folder / "serve.py", request, "--to", answer]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=answer.parent, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(answer)


def test_every_tensorflow_serves_what_was_measured(made, tmp_path):
    output, _ = made
    script = (output / "serve.py").read_text()
    assert "ITEX" not in script and "TF_ENABLE_ONEDNN_OPTS" in script
    np.save(tmp_path / "request.npy", raw_mnist()[0][3000:3032])
    request = np.load(tmp_path / "request.npy")
    wanted = benchmark.outputs(output / "models" / "int8.pb", request, 32)
    here = serve(sys.executable, output, tmp_path / "request.npy", tmp_path / "here.npy")
    assert np.array_equal(here, wanted)
    other = ROOT / "env_intel_tf" / "bin" / "python"
    if not os.access(other, os.X_OK):
        pytest.skip("needs env_intel_tf/ (./set_env.sh)")
    there = serve(other, output, tmp_path / "request.npy", tmp_path / "there.npy")
    assert (there.argmax(1) == wanted.argmax(1)).all() and stats.sqnr_db(wanted, there) > 50
    words = [other, "-c", LOADS, output / "saved_model", tmp_path / "request.npy", "loaded.npy"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "loaded.npy"), there)


def test_a_padding_before_a_depthwise_layer_is_no_part_of_it_in_what_is_simulated(tmp_path):
    """As Keras Applications have it before strides of two."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    steps = [
        layers.Conv2D(8, 3, activation="relu"),
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        layers.DepthwiseConv2D(3, strides=2, activation="relu"),
        layers.Conv2D(4, 1),
    ]
    model = tf.keras.Sequential([layers.Input((11, 11, 3)), *steps])
    x = np.random.default_rng(0).random((16, 11, 11, 3), np.float32)
    fp32 = freeze(model, tmp_path / "fp32.pb")
    form = forms.Integer(fp32, x, tmp_path)
    made = form.make("int8", fp32, [])
    simulated = graphs.read_graph(form.simulated(made))
    assert [layer.int8 for layer in graphs.layers(simulated)] == [True] * 3
    assert len(form.int8_layers(made)) == 3
    wanted = graphs.FrozenGraph(fp32)(x)
    ratios = [stats.sqnr_db(wanted, graphs.FrozenGraph(one)(x)) for one in (simulated, made)]
    assert min(ratios) > 25 and abs(ratios[0] - ratios[1]) < 6
    _, middle, _ = form.int8_layers(made)
    again = form.without(made, [middle], tmp_path / "without.pb")
    assert middle not in form.int8_layers(again) and len(form.int8_layers(again)) == 2
    nothing = form.without(made, form.int8_layers(made), tmp_path / "nothing.pb")
    assert np.array_equal(graphs.FrozenGraph(nothing)(x), wanted)


def test_names_that_keras_3_gives_its_ends_and_what_it_cannot_make(tmp_path):
    layers = tf.keras.layers
    given = layers.Input((8, 8, 3), name="picture")
    model = tf.keras.Model(given, layers.Conv2D(4, 3, name="answer")(given))
    for suffix in (".keras", ".h5"):
        model.save(tmp_path / f"net{suffix}")
        source = reading.read(tmp_path / f"net{suffix}")
        assert (source.input_name, source.output_name) == ("picture", "answer")
    two = layers.Input((8, 8, 3))
    several = tf.keras.Model([given, two], layers.Add()([model(given), model(two)]))
    several.save(tmp_path / "several.keras")
    with pytest.raises(UserError, match="has 2 inputs"):
        reading.read(tmp_path / "several.keras")
