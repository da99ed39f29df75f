"""Data for the notebooks: MNIST, bundled and checked, and dummy images for ResNet50."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import UserError, files

MNIST = Path(__file__).parent / "assets" / "mnist.npz"
MNIST_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"
VALIDATION = 5_000


@dataclass(frozen=True)
class Split:
    """Images (N, 28, 28, 1), float32 in [0, 1], and their labels (N,), int64 in 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three splits without overlap: train on the first, tune on the second, report on the third."""

    train: Split
    validation: Split
    test: Split


def load_mnist(path=None):
    """MNIST as train 55,000, validation 5,000 and test 10,000 images: a Dataset.

    The validation split is the end of the original training set (its order is random). `path`
    names another .npz of the same arrays, Fashion-MNIST for one; then N may differ. Raises
    UserError for a file that is missing, damaged or laid out differently.
    """
    path = Path(path or MNIST)
    try:
        if path == MNIST and files.sha256(path) != MNIST_SHA256:
            raise UserError(f"{path} is damaged (sha256 differs). Restore it: git checkout {path}")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise UserError(f"There is no data set at {path}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a whole .npz file: {error}") from error
    splits = [_split(path, arrays, part) for part in ("train", "test")]
    train, test = splits
    if len(train) <= VALIDATION:
        raise UserError(f"{path} has {len(train)} training images; more than {VALIDATION} needed.")
    return Dataset(
        Split(train.images[:-VALIDATION], train.labels[:-VALIDATION]),
        Split(train.images[-VALIDATION:], train.labels[-VALIDATION:]),
        test,
    )


def _split(path, arrays, part):
    """The arrays x_<part> and y_<part>, checked and scaled."""
    missing = [name for name in (f"x_{part}", f"y_{part}") if name not in arrays]
    if missing:
        raise UserError(f"{path} has no array {missing[0]}; it has: {', '.join(arrays) or 'none'}.")
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise UserError(
            f"x_{part} in {path} is {images.dtype} {images.shape}; uint8 (N, 28, 28) is needed."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.max() > 9:
        raise UserError(
            f"y_{part} in {path} is {labels.dtype} {labels.shape}; {len(images)} classes from 0 "
            "to 9 are needed."
        )
    return Split(images[..., None].astype(np.float32) / np.float32(255), labels.astype(np.int64))


def dummy_images(count, height=224, width=224, channels=3, seed=0):
    """Seeded images of nothing: float32, shape (count, height, width, channels), in [-128, 127].

    Each image mixes random blocks of several sizes with weights of its own, so that images differ
    in colour, contrast and detail as photographs do and a network answers them differently; white
    noise would look the same to it every time. The range is that of ImageNet pixels after the
    mean has been subtracted. `seed` picks another set (calibration and comparison use different
    ones); image i of a seed depends on `count` too.
    """
    rng = np.random.default_rng(seed)
    images = np.zeros((count, height, width, channels), np.float32)
    blocks = 1
    while blocks <= max(height, width):
        values = rng.standard_normal((count, blocks, blocks, channels), np.float32)
        values *= rng.uniform(0, 2, (count, 1, 1, 1)).astype(np.float32)
        rows = np.arange(height) * blocks // height
        columns = np.arange(width) * blocks // width
        images += values[:, rows][:, :, columns]
        blocks *= 2
    return np.clip(images * (60 / images.std()), -128, 127)
