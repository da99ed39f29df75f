"""The networks of the notebooks: ResNet50 from wherever it can be had, and AlexNet made before."""

import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from helpers import UserError, datasets, download, files, graphs
from helpers.quantize import folding, freezing


def keras_resnet50(weights="random", seed=0):
    """Keras' ResNet50 with `weights` "imagenet" (downloaded by Keras) or "random" (seeded).

    Random weights get the statistics of a working network from one pass over dummy images: batch
    norms see realistic ranges, residual branches are damped, and the last layer is scaled so that
    images get different classes. Speed does not depend on the weights; comparing the outputs of
    FP32 and INT8 does, and would mean nothing on activations that overflow or are all alike.
    """
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    if weights == "imagenet":
        try:
            return tf.keras.applications.ResNet50(weights="imagenet")
        except Exception as error:  # Keras raises a bare Exception when a download fails
            raise UserError(
                f"Keras could not download its ImageNet weights ({error}). Without network use "
                "weights 'random', or a folder that holds the two .pb files."
            ) from error
    model = tf.keras.applications.ResNet50(weights=None)
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the moving statistics become those of the next batch
            if layer.name.endswith("_3_bn"):
                layer.gamma.assign(tf.fill(layer.gamma.shape, 0.3))
    images = datasets.dummy_images(32, seed=seed)
    model(images, training=True)
    features = tf.keras.Model(model.input, model.layers[-1].input)(images).numpy()
    kernel, _ = model.layers[-1].get_weights()
    logits = features @ kernel
    scale = 3 / logits.std(axis=0).mean()
    model.layers[-1].set_weights([kernel * scale, -logits.mean(axis=0) * scale])
    return model


def alexnet(folder, precision="fp32"):
    """Path of the AlexNet an earlier notebook made below `folder`; UserError where it did not."""
    notebook = {"fp32": "02_train_alexnet", "int8": "03_quantize_alexnet"}[precision]
    return _made(folder, f"alexnet_{precision}", notebook)


def dense(folder, form="fp32"):
    """Path of a form of the dense network that notebook 03 made; UserError where it did not."""
    return _made(folder, "dense_" + form.replace(" ", "_"), "03_quantize_alexnet")


def _made(folder, name, notebook):
    path = Path(folder) / "models" / f"{name}.pb"
    if not path.exists():
        raise UserError(
            f"There is no {path}. Run notebook {notebook} first: all of it, or "
            f"./run_all.sh {notebook[:2]} with the same --output and --quick as here."
        )
    return path


def standardize(images, known):
    """What the dense network takes: `images` (N, 28, 28, 1) as float32 rows (N, 784).

    Each pixel less its mean over the images `known`, divided by its standard deviation over them;
    one that is the same in all of them is only centred (as scikit-learn's StandardScaler does it).
    """
    deviation = known.std(axis=0)
    scaled = (images - known.mean(axis=0)) / np.where(deviation == 0, 1, deviation)
    return scaled.reshape(len(images), -1).astype(np.float32)


@dataclass(frozen=True)
class Resnet50:
    """Frozen graphs of one ResNet50; `int8` is None where it has yet to be quantized."""

    fp32: Path
    int8: Path | None
    weights: str


def resnet50(weights, folder):
    """The ResNet50 to measure, as frozen graphs below `folder`.

    `weights`: "published" (the pair Intel published, FP32 and INT8), "imagenet" (Keras' own
    pretrained weights), "random" (seeded), a folder that holds fp32.pb and int8.pb (or the
    published file names), or "auto": published where cached or reachable, random otherwise.
    Raises UserError when what was asked for by name cannot be had.
    """
    folder = Path(folder)
    if weights in ("auto", "published"):
        try:
            paths = download.published(folder)
            return Resnet50(paths["fp32"], _if_it_runs(paths["int8"]), "published")
        except UserError as error:
            if weights == "published":
                raise
            print(error)
            print("So this run makes ResNet50 here, with seeded random weights.")
            weights = "random"
    if weights in ("random", "imagenet"):
        path = folder / f"resnet50_fp32_{weights}.pb"
        code = (sys.modules[__name__], freezing, folding, graphs, datasets.dummy_images)
        files.made_from(
            path,
            ("ResNet50", weights, metadata.version("tensorflow"), *code),
            lambda: freezing.freeze(keras_resnet50(weights), path),
        )
        return Resnet50(path, None, "random, seed 0" if weights == "random" else weights)
    given = {}
    for kind, name in download.PUBLISHED.items():
        paths = [Path(weights) / file_name for file_name in (f"{kind}.pb", name)]
        given[kind] = next((path for path in paths if path.exists()), None)
        if not given[kind]:
            raise UserError(
                f"weights='{weights}' is neither auto, published, imagenet or random, nor a "
                f"folder that holds {paths[0].name} or {name}."
            )
    return Resnet50(given["fp32"], given["int8"], f"folder {Path(weights).name}")


def _if_it_runs(path):
    """`path`, or None where this TensorFlow cannot run it (graphs of 2018 use ops of 2018)."""
    import tensorflow as tf

    try:
        graphs.FrozenGraph(path)(datasets.dummy_images(1))
        return path
    except (UserError, ValueError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0][:200]
        print(f"The published INT8 graph does not run here ({reason}); it is made anew instead.")
        return None
