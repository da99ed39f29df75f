import numpy as np
import pytest

from helpers import UserError, datasets, files, zoo
from helpers.quantize import freezing


def test_dummy_images_are_seeded_and_in_range():
    first, again = datasets.dummy_images(4), datasets.dummy_images(4)
    assert first.shape == (4, 224, 224, 3) and first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, datasets.dummy_images(4, seed=1))
    assert -128 <= first.min() < -60 and 60 < first.max() <= 128
    assert first.std(axis=(1, 2, 3)).std() > 1, "images should differ in contrast"


def test_resnet50_with_random_weights_tells_images_apart():
    model = zoo.keras_resnet50("random")
    probabilities = model(datasets.dummy_images(16, seed=5)).numpy()
    assert np.isfinite(probabilities).all()
    assert len(set(probabilities.argmax(axis=1))) > 8


def test_a_missing_alexnet_names_the_notebook(tmp_path):
    with pytest.raises(UserError, match="Run notebook 02_train_alexnet first"):
        zoo.alexnet(tmp_path)
    with pytest.raises(UserError, match="Run notebook 03_quantize_alexnet first"):
        zoo.alexnet(tmp_path, "int8")


def test_a_missing_dense_network_names_the_notebook(tmp_path):
    with pytest.raises(UserError, match="Run notebook 03_quantize_alexnet first"):
        zoo.dense(tmp_path)


def test_standardized_pixels_have_mean_0_and_deviation_1_and_constant_ones_stay():
    known = np.random.default_rng(0).uniform(0, 1, (500, 28, 28, 1)).astype(np.float32)
    known[:, 0, 0] = 0.25
    rows = zoo.standardize(known, known)
    assert rows.shape == (500, 784) and rows.dtype == np.float32
    assert np.allclose(rows.mean(axis=0), 0, atol=1e-4)
    assert np.allclose(rows.std(axis=0), [0] + 783 * [1], atol=1e-4)
    brighter = zoo.standardize(known + 0.5, known)  # by what is known, not by their own
    assert np.allclose(brighter[:, 0], 0.5) and brighter.mean() > 1


def test_the_resnet50_made_here_is_made_again_by_other_code(tmp_path, monkeypatch):
    made = []

    def freeze(model, path):
        made.append(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("graph")
        return path

    monkeypatch.setattr(zoo, "keras_resnet50", lambda weights: f"model of {weights}")
    monkeypatch.setattr(freezing, "freeze", freeze)
    for _ in range(2):
        resnet50 = zoo.resnet50("random", tmp_path)
    assert made == ["model of random"] and resnet50.fp32.exists() and resnet50.int8 is None
    (tmp_path / "resnet50_fp32_random.pb").write_text("tampered")
    zoo.resnet50("random", tmp_path)
    assert len(made) == 2
    monkeypatch.setattr(files.inspect, "getsource", lambda thing: "edited")
    zoo.resnet50("random", tmp_path)
    assert len(made) == 3
    monkeypatch.setattr(zoo.metadata, "version", lambda name: "another TensorFlow")
    zoo.resnet50("random", tmp_path)
    assert len(made) == 4
