"""Solutions of notebook 02."""

import numpy as np
from exercises import main, slow

from helpers import UserError
from helpers.run import cli


@slow("downloads Fashion-MNIST, trains on it and quantizes")
def exercise_1(output):
    """How do notebooks 02 to 04 do on Fashion-MNIST?"""
    import tensorflow as tf

    folder = output / "fashion"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (x, y), (x_test, y_test) = tf.keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        raise UserError(f"Keras could not download Fashion-MNIST ({error}).") from error
    data = folder / "fashion.npz"
    np.savez(data, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    parameters = {"profile": "quick", "output": str(folder), "data_path": str(data)}
    for book in cli.notebooks(["02_", "03_", "04_"]):
        failed = cli.execute(book, folder / "notebooks" / book.name, parameters)
        if failed:
            raise UserError(failed)
        print(f"  {folder / 'notebooks' / book.name}")


def exercise_2(output):
    """What becomes of a small update of a weight in bfloat16?"""
    import tensorflow as tf

    bfloat16 = tf.bfloat16.as_numpy_dtype
    sums = {kind.__name__: kind(1) + kind(0.001) for kind in (np.float32, bfloat16)}
    after = np.nextafter(bfloat16(1), bfloat16(2))
    for name, total in sums.items():
        print(f"  1 + 0.001 in {name} is {total}")
    print(f"  the number after 1 in bfloat16 is {after}")
    assert sums["float32"] > 1 and sums["bfloat16"] == 1


def exercise_3(output):
    """How much of an accuracy on 10,000 images is chance?"""
    count, accuracy = 10_000, 0.99
    deviation = 100 * np.sqrt(accuracy * (1 - accuracy) / count)
    print(
        f"  One image is {100 / count} points. By chance alone the accuracy varies by about",
        end=" ",
    )
    print(f"±{2 * deviation:.1f} points (two standard deviations).")
    drawn = 100 * np.random.default_rng(0).binomial(count, accuracy, 1_000) / count
    inside = (abs(drawn - 100 * accuracy) <= 2 * deviation).mean()
    print(f"  Of 1,000 sets of images that were drawn, {inside:.0%} lie within that.")
    assert 0.92 < inside < 0.98


if __name__ == "__main__":
    main(__file__, globals())
