"""A small real network, frozen and quantized once for all tests."""

from pathlib import Path

import pytest

from helpers import datasets, models, quantization

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (32, 32, 3)


@pytest.fixture(scope="session")
def keras_model():
    import tensorflow as tf

    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(momentum=0.0),
            layers.ReLU(),
            layers.Conv2D(16, 3, strides=2),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model(images(64), training=True)
    return model


def images(count, seed=0):
    return datasets.dummy_images(count, *SHAPE, seed=seed)


@pytest.fixture(scope="session")
def graphs(keras_model, tmp_path_factory):
    """{"fp32": path, "int8": path} of the small network."""
    folder = tmp_path_factory.mktemp("graphs")
    fp32 = models.freeze(keras_model, folder / "fp32.pb")
    loader = quantization.CalibrationLoader(images(32, seed=1), 8)
    with quantization.quiet(folder / "quantize.log"):
        from neural_compressor.tensorflow import StaticQuantConfig, quantize_model

        config = StaticQuantConfig(weight_granularity="per_channel")
        quantized = quantize_model(str(fp32), config, loader, len(loader))
    int8 = models.write_graph(quantized.graph_def, folder / "int8.pb")
    return {"fp32": fp32, "int8": int8, "log": folder / "quantize.log"}
