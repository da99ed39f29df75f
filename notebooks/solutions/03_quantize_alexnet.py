"""Solutions of notebook 03."""

import numpy as np
from exercises import main, slow

from helpers import datasets, graphs, stats, zoo
from helpers.quantize import quantize
from helpers.run import cli


def exercise_1(output):
    """What if one weight of the first convolution were 10 times as large as the largest?"""
    fp32 = graphs.read_graph(zoo.alexnet(output / "alexnet"))
    kernel, _ = next(iter(graphs.weights(fp32).values()))
    scale = np.abs(kernel).max() / 127
    place = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    outlier = kernel.copy()
    outlier[place] *= 10
    larger = np.abs(outlier).max() / 127
    others = np.delete(outlier.ravel(), np.ravel_multi_index(place, kernel.shape))
    used = np.unique(np.round(others / larger)).size
    print(f"  The scale is {larger:.5f} instead of {scale:.5f};", end=" ")
    print(f"the other weights use {used} integers.")
    assert np.isclose(larger, 10 * scale) and used <= 27


@slow("runs notebook 03 once more")
def exercise_2(output):
    """What happens when INT8 has to be a point better than FP32?"""
    folder = output / "impossible"
    models = folder / "alexnet" / "models"
    graphs.write_graph(
        graphs.read_graph(zoo.alexnet(output / "alexnet")), models / "alexnet_fp32.pb"
    )
    book = cli.notebooks(["03_"])[0]
    parameters = {"profile": "quick", "output": str(folder), "tolerance": -1}
    said = cli.execute(book, folder / book.name, parameters)
    print(f"  {said}")
    assert "No attempt stays within -1 points" in said
    assert not (models / "alexnet_int8.pb").exists()


@slow("quantizes three times")
def exercise_3(output):
    """How few calibration images are enough?"""
    fp32, data = zoo.alexnet(output / "alexnet"), datasets.load_mnist()
    images = data.validation.images[:200]
    wanted = np.log(graphs.FrozenGraph(fp32).predict(images) + 1e-9)
    for count in (1, 10, 100):
        path = output / "alexnet" / "models" / f"calibrated_on_{count}.pb"
        made = quantize(fp32, data.train.images[:count], path, granularity="per_tensor")
        found = np.log(graphs.FrozenGraph(made).predict(images) + 1e-9)
        same = (wanted.argmax(1) == found.argmax(1)).mean()
        print(f"  {count:3} images: {stats.sqnr_db(wanted, found):5.1f} dB, same class {same:.1%}")


if __name__ == "__main__":
    main(__file__, globals())
