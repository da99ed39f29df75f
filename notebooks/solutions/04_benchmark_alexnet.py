"""Solutions of notebook 04."""

import numpy as np
from exercises import made, main

from helpers import datasets
from helpers.benchmark import report


def exercise_1(output):
    """Is FP32 or INT8 really better on the test images?"""
    folder = output / "alexnet"
    result = report.read(made(folder / "result.json", "04"))
    count = result["candidates"][0]["accuracy"]["images"]
    labels = datasets.load_mnist().test.labels[:count]
    answers = {n: np.load(folder / "predictions" / f"{n}.npy").argmax(1) for n in ("FP32", "INT8")}
    right = {name: classes == labels for name, classes in answers.items()}
    a = int((right["FP32"] & ~right["INT8"]).sum())
    b = int((right["INT8"] & ~right["FP32"]).sum())
    chance = np.sqrt(a + b)
    word = "chance explains it" if abs(b - a) <= chance else "more than chance"
    print(f"  {a} right in FP32 only, {b} in INT8 only: {b - a:+d} ± {chance:.1f} images, {word}")
    assert b - a == right["INT8"].sum() - right["FP32"].sum()


def exercise_2(output):
    """Which batch size for a service that has to answer within 20 ms?"""
    result = report.read(made(output / "alexnet" / "result.json", "04"))
    for candidate in result["candidates"]:
        fitting = []
        for batch in candidate["batches"]:
            ms = batch["latency_ms"]
            slowest = ms["p99"] or ms["p90"] or ms["p50"]  # of those that could be told
            fitting += [batch["batch_size"]] * (slowest < 20)
        print(f"  {candidate['name']}: {max(fitting, default='none of those measured')}")


if __name__ == "__main__":
    main(__file__, globals())
