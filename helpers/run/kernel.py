"""One INT8 convolution in a process of its own, with the log of oneDNN that the pre-flight reads.

python -m helpers.run.kernel qdq|integer|float: "qdq" is the form that ITEX takes, a convolution
between Dequantize and QuantizeV2; "integer" is an operation of TensorFlow itself. Prints how far
the outputs are from FP32.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from helpers import graphs, stats

SHAPE, FILTER = (8, 8, 16), (3, 3, 16, 16)


def qdq(x, weights):
    import tensorflow as tf

    def through_bytes(values):
        parts = tf.quantization.quantize(values, -1.0, 1.0, tf.qint8, mode="SCALED")
        return tf.raw_ops.Dequantize(
            input=parts.output,
            min_range=parts.output_min,
            max_range=parts.output_max,
            mode="SCALED",
        )

    return convolution(through_bytes(x), through_bytes(weights))


def integer(x, weights):
    import tensorflow as tf

    given = tf.quantization.quantize(x, 0.0, 1.0, tf.quint8)
    result = tf.raw_ops.QuantizedConv2DWithBiasAndRequantize(
        input=given.output,
        filter=tf.constant(np.round(127 * weights), tf.qint8),
        bias=tf.zeros(FILTER[-1:]),
        min_input=given.output_min,
        max_input=given.output_max,
        min_filter=-1.0,
        max_filter=1.0,
        min_freezed_output=-16.0,
        max_freezed_output=16.0,
        strides=[1, 1, 1, 1],
        padding="VALID",
        out_type=tf.qint8,
    )
    return tf.raw_ops.Dequantize(
        input=result.output,
        min_range=result.min_output,
        max_range=result.max_output,
        mode="SCALED",
    )


def convolution(x, weights):
    import tensorflow as tf

    return tf.nn.conv2d(x, weights, 1, "VALID")


FORMS = {"qdq": qdq, "integer": integer, "float": convolution}


def weights():
    """Those of the convolution: half of the range that they are quantized in.

    Without VNNI oneDNN adds two products of bytes in 16 bits, where those of larger weights may
    not fit.
    """
    return np.random.default_rng(0).uniform(-0.5, 0.5, FILTER).astype(np.float32)


def graph_of(form):
    """The GraphDef of the convolution, from "input" to "predict"."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, *SHAPE), "input")
        tf.identity(FORMS[form](x, weights()), "predict")
    graph_def = graph.as_graph_def()
    for node in graph_def.node:
        # as INC writes the ranges: from a Const, TensorFlow computes the bytes back to floats
        # beforehand, and nothing is left that ITEX takes for INT8
        if node.op == "Const" and not node.attr["value"].tensor.tensor_shape.dim and form == "qdq":
            node.op = "HostConst"
    return graph_def


def expected(images):
    """The same convolution in FP32, by NumPy."""
    windows = np.lib.stride_tricks.sliding_window_view(images, FILTER[:2], axis=(1, 2))
    return np.einsum("nyxcij,ijco->nyxo", windows, weights())


def main(form):
    images = np.random.default_rng(1).random((2, *SHAPE), np.float32)
    with tempfile.TemporaryDirectory(prefix="kernel_") as scratch:
        path = graphs.write_graph(graph_of(form), Path(scratch) / f"{form}.pb")
        outputs = graphs.FrozenGraph(path)(images)
    print(f"sqnr_db {stats.sqnr_db(expected(images), outputs):.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
