"""What test_integer.py looks at, in a process with oneDNN and without ITEX, in either environment.

python -m tests.integer_cases make FOLDER: quantizes two networks of a few layers in both forms of
INC's integer operations and writes what INC made, the same mended, inputs and outputs.
python -m tests.integer_cases run FOLDER: gives the outputs of what another TensorFlow made there.
"""

import os
import sys
from pathlib import Path

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"

import numpy as np
import tensorflow as tf

from helpers import graphs
from helpers.quantize import freezing, inc, integer

FORMS = ("old", "fused")


def numbers(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def layer(x, size, outputs, seed):
    kernel = numbers(size, size, x.shape[-1], outputs, seed=seed) / (size * np.sqrt(x.shape[-1]))
    return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), numbers(outputs, seed=seed + 1) / 4)


def dense(x):
    """A dense layer, whose inputs are all above zero."""
    return tf.nn.bias_add(tf.matmul(x, numbers(16, 8, seed=1)), numbers(8, seed=2))


def residual(x):
    """The first block of a stage of ResNet: both summands are convolutions without a Relu."""
    x = tf.nn.relu(layer(x, 3, 16, seed=1))
    x = tf.nn.relu(layer(x, 1, 16, seed=3) + layer(tf.nn.relu(layer(x, 3, 16, seed=5)), 1, 16, 7))
    return layer(x, 3, 8, seed=9)


def unusual(x):
    """What the fused form and what no form has a kernel for: an Elu, and a grouped convolution."""
    x = tf.nn.elu(layer(x, 3, 16, seed=1))
    grouped = tf.nn.conv2d(x, numbers(3, 3, 8, 16, seed=3) / 8, 1, "SAME")
    return layer(tf.nn.relu(tf.nn.bias_add(grouped, numbers(16, seed=4))), 1, 8, seed=5)


def inverted(x, kernel=1):
    """Two inverted residuals: sums without a Relu, the second of which adds to the first."""
    x = layer(x, 3, 16, seed=1)
    for seed in (3, 9):
        wide = tf.nn.relu(layer(tf.nn.relu(layer(x, 1, 32, seed)), 3, 32, seed + 2))
        x = x + layer(wide, 1, 16, seed + 4)
    return layer(x, kernel, 8, seed=15)


def padded(x):
    """As `inverted`, but the last sum is read by a layer whose windows reach into a padding."""
    return inverted(x, kernel=3)


def pooled(x):
    """A pool behind a layer with neither bias nor Relu, as between the stages of DenseNet."""
    x = tf.nn.conv2d(tf.nn.relu(layer(x, 3, 16, seed=1)), numbers(1, 1, 16, 16, seed=3), 1, "SAME")
    return layer(tf.nn.relu(tf.nn.avg_pool2d(x, 2, 2, "VALID")), 1, 8, seed=5)


def signed(x):
    """One layer without a bias, which reads floats of either sign."""
    return tf.nn.conv2d(x, numbers(3, 3, 3, 8, seed=1) / 5, 1, "SAME")


def inputs():
    """{name: (network, inputs)}."""
    return {
        "dense": (dense, 2 + np.random.default_rng(0).random((64, 16), np.float32)),
        "residual": (residual, numbers(32, 8, 8, 3, seed=0)),
        "unusual": (unusual, numbers(32, 8, 8, 3, seed=0)),
        "inverted": (inverted, numbers(32, 8, 8, 3, seed=0)),
        "padded": (padded, numbers(32, 8, 8, 3, seed=0)),
        "pooled": (pooled, numbers(32, 8, 8, 3, seed=0)),
        "signed": (signed, numbers(32, 8, 8, 3, seed=0)),
    }


def make(folder):
    for name, (network, x) in inputs().items():
        graph_def = freezing.freeze_traced(freezing.trace(network, x.shape[1:]))
        source = graphs.write_graph(graph_def, folder / f"{name}.pb")
        np.savez(folder / f"{name}.npz", x=x, fp32=outputs(graph_def, x))
        for form in FORMS if name not in ("inverted", "padded", "pooled") else ["fused"]:
            path = folder / f"{name}_{form}_mended.pb"
            integer.quantize(source, x, path, form=form)
            if name == "unusual":  # in the fused form it does not run
                continue
            with integer._fused_form(form == "fused", folder / "log"):
                inc.quantize(source, x, folder / f"{name}_{form}_raw.pb", form="legacy")


def outputs(graph_def, x):
    return graphs.FrozenGraph(graph_def, stock=True)(x)


def largest_sum(graph_def, x):
    """The largest value that a sum with a signed summand gives; NaN where there is none."""
    sums = [node.name for node in graph_def.node if integer._is_signed_sum(node)]
    if not sums:
        return np.nan
    session = graphs._session(graph_def, stock=True)
    codes, high = session.run([f"{sums[0]}:0", f"{sums[0]}:2"], {"input:0": x})
    return codes.astype(np.float32).max() / 255 * high


def run(folder):
    answers = {}
    for path in sorted(folder.glob("*_*.pb")):
        graph_def = graphs.read_graph(path)
        with np.load(folder / f"{path.stem.split('_')[0]}.npz") as stored:
            answers[path.stem] = outputs(graph_def, stored["x"])
            answers[path.stem + "_largest"] = largest_sum(graph_def, stored["x"])
    np.savez(folder / f"outputs_{tf.__version__}.npz", **answers)


if __name__ == "__main__":
    work = {"make": make, "run": run}[sys.argv[1]]
    work(Path(sys.argv[2]))
