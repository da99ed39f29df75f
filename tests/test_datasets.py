import numpy as np
import pytest

from helpers import UserError, datasets


@pytest.fixture(scope="module")
def mnist():
    return datasets.load_mnist()


def test_mnist_splits(mnist):
    sizes = [len(split) for split in (mnist.train, mnist.validation, mnist.test)]
    assert sizes == [55_000, 5_000, 10_000]
    for split in (mnist.train, mnist.validation, mnist.test):
        assert split.images.shape == (len(split), 28, 28, 1) and split.images.dtype == np.float32
        assert split.images.min() == 0 and split.images.max() == 1
        assert set(split.labels) == set(range(10))
    with np.load(datasets.MNIST) as raw:
        assert np.array_equal(mnist.train.labels, raw["y_train"][:55_000])
        assert np.array_equal(mnist.validation.labels, raw["y_train"][55_000:])
        assert np.array_equal(mnist.test.labels, raw["y_test"])


def test_splits_do_not_overlap(mnist):
    """A handful of digits occur twice in MNIST itself; a leaking split would share thousands."""
    seen = {image.tobytes() for image in mnist.train.images}
    assert sum(image.tobytes() in seen for image in mnist.validation.images) < 5
    assert sum(image.tobytes() in seen for image in mnist.test.images) < 5


GOOD = {
    "x_train": np.zeros((5100, 28, 28), np.uint8),
    "y_train": np.zeros(5100, np.uint8),
    "x_test": np.zeros((10, 28, 28), np.uint8),
    "y_test": np.zeros(10, np.uint8),
}


def test_another_file_of_the_same_layout(tmp_path):
    np.savez_compressed(tmp_path / "fashion.npz", **GOOD)
    data = datasets.load_mnist(tmp_path / "fashion.npz")
    assert (len(data.train), len(data.validation), len(data.test)) == (100, 5_000, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": None}, "no array x_test; it has: x_train"),
        ({"x_train": np.zeros((5100, 28, 27), np.uint8)}, r"x_train .*uint8 \(N, 28, 28\)"),
        ({"x_train": np.zeros((5100, 28, 28), np.float32)}, "float32"),
        ({"y_train": np.zeros(5099, np.uint8)}, "y_train"),
        ({"y_test": np.full(10, 10, np.uint8)}, "0 to 9"),
        ({"y_test": np.zeros(10, np.float64)}, "y_test"),
        ({"x_train": GOOD["x_train"][:9], "y_train": GOOD["y_train"][:9]}, "more than 5000"),
    ],
)
def test_wrong_arrays_are_told(tmp_path, change, message):
    arrays = {key: value for key, value in (GOOD | change).items() if value is not None}
    np.savez_compressed(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message):
        datasets.load_mnist(tmp_path / "bad.npz")


def test_damaged_and_missing_files_are_told(tmp_path, monkeypatch):
    cut = tmp_path / "cut.npz"
    cut.write_bytes(datasets.MNIST.read_bytes()[:-5000])
    with pytest.raises(UserError, match="not a whole"):
        datasets.load_mnist(cut)
    monkeypatch.setattr(datasets, "MNIST", cut)
    with pytest.raises(UserError, match="damaged.*git checkout"):
        datasets.load_mnist()
    with pytest.raises(UserError, match="no data set"):
        datasets.load_mnist(tmp_path / "absent.npz")
