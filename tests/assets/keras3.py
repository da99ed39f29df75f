"""Make keras3_saved_model/ and keras3.npz: what Keras 3 exports, for the tests of TensorFlow 2.15.

In env_current/ (./set_env.sh --current): env_current/bin/python -m tests.assets.keras3
"""

import shutil
from pathlib import Path

import keras
import numpy as np

from helpers import datasets

HERE = Path(__file__).parent
EXAMPLES = 16


def network():
    """A small convolutional network with batch norms, one layer of it depthwise."""
    layers = keras.layers
    steps = [
        *(
            layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem"),
            layers.BatchNormalization(momentum=0.9),
        ),
        *(layers.ReLU(), layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)),
        *(layers.BatchNormalization(momentum=0.9), layers.ReLU()),
        *(
            layers.Conv2D(16, 1, name="pointwise"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ),
        *(
            layers.Conv2D(16, 3, use_bias=False, name="last"),
            layers.BatchNormalization(momentum=0.9),
        ),
        *(layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(10, name="logits")),
    ]
    return keras.Sequential([layers.Input((28, 28, 1), name="image"), *steps])


def main():
    keras.utils.set_random_seed(19)
    mnist, model = datasets.load_mnist(), network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(mnist.train.images[:20_000], mnist.train.labels[:20_000], epochs=2, verbose=2)
    print("accuracy:", model.evaluate(mnist.test.images, mnist.test.labels, verbose=0)[1])
    folder = HERE / "keras3_saved_model"
    shutil.rmtree(folder, ignore_errors=True)
    model.export(folder, verbose=False)
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    images = mnist.test.images[:EXAMPLES]
    pixels = np.round(images * 255).astype(np.uint8)
    outputs = model(images, training=False).numpy()
    np.savez_compressed(HERE / "keras3.npz", pixels=pixels, outputs=outputs)


if __name__ == "__main__":
    main()
