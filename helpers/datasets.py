"""Data for the notebooks: dummy images for ResNet50."""

import numpy as np


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
