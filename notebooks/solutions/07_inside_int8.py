"""Solutions of notebook 07."""

import numpy as np
from exercises import made, main

from helpers import graphs, stats, zoo
from helpers.benchmark import report


def symmetric(x, axis=None, top=127):
    """Weights as they are kept: rounded to steps of max|x| / top, −top … top."""
    scale = np.abs(x).max(axis=axis) / top
    return np.clip(np.round(x / scale), -top, top) * scale


def weights_of(output):
    """{layer: weights} of AlexNet."""
    fp32 = graphs.read_graph(zoo.alexnet(output / "alexnet"))
    return {name: kernel for name, (kernel, _) in graphs.weights(fp32).items()}


def exercise_1(output):
    """Which layer suffers most from one weight that is ten times the largest?"""
    left = {}
    for name, kernel in weights_of(output).items():
        place = np.abs(kernel).argmax()
        outlier = kernel.ravel().copy()
        outlier[place] *= 10
        others = np.delete(kernel.ravel(), place)
        before = stats.sqnr_db(others, np.delete(symmetric(kernel).ravel(), place))
        left[name] = stats.sqnr_db(others, np.delete(symmetric(outlier), place))
        print(
            f"  {name:24} {before:5.1f} dB before, {left[name]:5.1f} dB after, of the other weights"
        )
        assert 12 < before - left[name] < 25
    print(f"  most: {min(left, key=left.get)}")


def exercise_2(output, points=0.5):
    """Which is the fastest model that loses no more than half a point?

    From the results of notebook 07. There all images are test images: in earnest choose with
    validation images, and report with test images.
    """
    for key in "ab":
        result = report.read(made(output / "alexnet" / "inside" / key / "result.json", "07"))
        fp32, *others = result["candidates"]
        speed = {
            one["name"]: report.ratio(result, one["name"], 50)["throughput_times"]["median"]
            for one in others
            if 100 * (fp32["accuracy"]["top1"] - one["accuracy"]["top1"]) <= points
        }
        best = max(speed, key=speed.get, default="none")
        print(f"  break ({key}): {best}, out of {', '.join(speed)}")
        assert "per tensor" not in speed


def exercise_3(output):
    """How much SQNR is left with weights of 4 bits?"""
    for name, kernel in weights_of(output).items():
        axes = tuple(range(kernel.ndim - 1))
        eight, four = (stats.sqnr_db(kernel, symmetric(kernel, top=top)) for top in (127, 7))
        channels = stats.sqnr_db(kernel, symmetric(kernel, axes, 7))
        print(f"  {name:24} {eight:5.1f} dB, with 4 bits {four:5.1f}, per channel {channels:5.1f}")
        assert 18 < eight - four < 30 and channels > four


if __name__ == "__main__":
    main(__file__, globals())
