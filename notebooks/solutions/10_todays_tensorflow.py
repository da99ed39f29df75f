"""Solutions of notebook 10."""

import subprocess
import sys

import numpy as np
from exercises import ROOT, made, main, slow

from helpers import datasets, graphs, stats, zoo
from helpers.quantize import integer, quantize


def mended(raw, factor=255 / 127, dense=True):
    """The graph with the range of its signed sums `factor` times as large, and the dense layer."""
    import tensorflow as tf

    changed = type(raw)()
    changed.CopyFrom(raw)
    network = graphs.Network(changed)

    def put(name, value):
        attr = network.nodes[name].attr
        tensor = tf.make_tensor_proto(value)
        tensor.dtype = attr["dtype"].type
        attr["value"].tensor.CopyFrom(tensor)

    for node in changed.node:
        if "SignedSum" in node.op:
            put(node.input[8], np.float32(network.value(node.input[8]) * factor))
        if dense and node.op == "QuantizedMatMulWithBiasAndDequantize":
            quantizer = network.nodes[node.input[0]]
            low, high = (float(network.value(name)) for name in quantizer.input[1:3])
            weights = network.value(node.input[1]).view(np.int8).astype(np.int64)
            bias = network.value(node.input[2]).view(np.int32)
            lacking = weights.sum(axis=0)[: bias.size] * 255 * low / (high - low)
            put(quantizer.input[1], np.float32(0))
            put(node.input[2], np.rint((bias - lacking) * (high - low) / high).astype(np.int32))
    return changed


def judge(output):
    """The graph as INC writes it, and a function that gives the SQNR of another in dB."""
    folder = output / "today" / "models"
    test = datasets.load_mnist().test.images[:1_000]
    reference = graphs.FrozenGraph(made(folder / "fp32.pb", "10"), stock=True).predict(test)

    def sqnr(graph_def):
        return stats.sqnr_db(reference, graphs.FrozenGraph(graph_def, stock=True).predict(test))

    return graphs.read_graph(made(folder / "raw.pb", "10")), sqnr


def exercise_1(output):
    """How much does the mending of the sums bring without that of the dense layer?"""
    raw, sqnr = judge(output)
    ways = {"neither": (1, False), "the sums": (255 / 127, False), "both": (255 / 127, True)}
    db = {name: sqnr(mended(raw, *way)) for name, way in ways.items()}
    for name, value in db.items():
        print(f"  mended: {name:9} {value:5.1f} dB")
    assert db["both"] - db["the sums"] > db["the sums"] - db["neither"]


def exercise_2(output):
    """Which range of the sums is best, and why not the ends?"""
    raw, sqnr = judge(output)
    db = {factor: sqnr(mended(raw, factor)) for factor in (1, 1.5, 255 / 127, 3, 6)}
    for factor, value in db.items():
        print(f"  {factor:4.2f} times: {value:5.1f} dB")
    assert max(db, key=db.get) not in (1, 6)


@slow("quantizes and measures for minutes")
def exercise_3(output):
    """AlexNet in the table: run with env_current/ and env_peers/."""
    folder = output / "alexnet"
    fp32, images = zoo.alexnet(folder), datasets.load_mnist().train.images[:200]
    qdq = quantize(fp32, images, folder / "models" / "today_qdq.pb")
    int8 = integer.quantize(fp32, images, folder / "models" / "today_integer.pb")
    words = ["--fp32", fp32, "--int8", qdq, "--integer", int8, "--peers", "--quick"]
    words += ["--output", output / "exercise"]
    subprocess.run([sys.executable, "-m", "helpers.benchmark", *words], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(__file__, globals())
