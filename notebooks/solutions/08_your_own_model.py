"""Solutions of notebook 08."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from exercises import ROOT, made, main, slow

from helpers import datasets, graphs
from helpers.quantize import layers, quantize, reading
from helpers.run import cli


def exercise_1(output):
    """Which number tells that the scale of the inputs is wrong?"""
    folder = output / "own" / "models"
    network = graphs.FrozenGraph(made(folder / "fp32.pb", "08"))
    with np.load(made(folder / "mnist.npz", "08")) as data:
        pixels, labels = data["x_test"][:1_000].astype(np.float32), data["y_test"][:1_000]
    accuracy = {}
    for scale, images in {"1/255": pixels / 255, "1/127.5,-1": pixels / 127.5 - 1}.items():
        accuracy[scale] = (network.predict(images).argmax(1) == labels).mean()
        print(f"  scale {scale}: FP32 {accuracy[scale]:.1%}")
    assert accuracy["1/255"] > accuracy["1/127.5,-1"] + 0.02


@slow("runs notebook 08 once more")
def exercise_2(output):
    """What is left when INT8 has to be a point better than FP32?"""
    folder = output / "impossible"
    book = cli.notebooks(["08_"])[0]
    parameters = {"profile": "quick", "output": str(folder), "tolerance": -1}
    said = cli.execute(book, folder / book.name, parameters)
    print(f"  {said}")
    left = [
        name
        for name in ("models/int8.pb", "serve.py", "result.json")
        if (folder / "own" / name).exists()
    ]
    print(f"  left of int8.pb, serve.py and result.json: {', '.join(left) or 'nothing'}")
    assert "INT8 does not hold" in said and not left


def attention():
    """A small network with attention between its convolutions and its dense layer."""
    import tensorflow as tf

    new = tf.keras.layers
    image = new.Input((28, 28, 1))
    x = new.Conv2D(32, 3, 7, "same", activation="relu")(image)
    x = new.Conv2D(128, 1, activation="relu")(x)
    x = new.Reshape((16, 128))(x)
    x = new.Attention()([x, x])
    x = new.GlobalAveragePooling1D()(x)
    return tf.keras.Model(image, new.Dense(10, activation="softmax")(x))


def exercise_3(output):
    """Which layers stay in float with attention, and why?"""
    with tempfile.TemporaryDirectory() as scratch:
        attention().save(f"{scratch}/attention.keras")
        source = reading.read(f"{scratch}/attention.keras")
        fp32 = graphs.write_graph(source.graph_def, Path(scratch) / "fp32.pb")
        images = datasets.load_mnist().train.images[:32]
        int8 = graphs.read_graph(quantize(fp32, images, Path(scratch) / "int8.pb"))
    left = layers.reasons_in(int8)
    for name, why in left.items():
        print(f"  {name}: {why}")
    assert sum("product of two activations" in why for why in left.values()) == 2


@slow("quantizes and measures for minutes")
def exercise_4(output):
    """The command, with the stand-in of notebook 08 in the place of a model of yours."""
    folder = output / "own" / "models"
    words = ["-m", "helpers.quantize", made(folder / "stand_in.keras", "08"), "--quick"]
    words += ["--data", folder / "mnist.npz", "--scale", "1/255", "--output", output / "exercise"]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(__file__, globals())
