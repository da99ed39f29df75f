"""Reading the user's inputs: each form, the split, and a sentence for each that cannot be used."""

import io
import resource

import numpy as np
import pytest
import tensorflow as tf

from helpers import UserError
from helpers.quantize import data

SHAPE, CLASSES = (6, 5, 3), 4
RNG = np.random.default_rng(0)


def pixels(count, shape=SHAPE):
    """Images that differ: the first three values count them."""
    images = RNG.integers(0, 256, (count, *shape)).astype(np.uint8)
    flat = images.reshape(count, int(np.prod(shape)))
    flat[:, 0], flat[:, 1] = np.arange(count) // 256, np.arange(count) % 256
    return images


def labels(count):
    return np.arange(count) % CLASSES


def stored(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def whole(folder, **changed):
    """An .npz of 300 and 200 images; `changed` arrays (None: none) in the place of its own."""
    arrays = {
        "x_train": pixels(300),
        "y_train": labels(300),
        "x_test": pixels(200),
        "y_test": labels(200),
    }
    arrays.update(changed)
    return stored(folder, **{name: value for name, value in arrays.items() if value is not None})


def read(path, **changed):
    how = {"shape": SHAPE, "dtype": "float32", "classes": CLASSES, **changed}
    return data.read(path, **how)


def numbers_of(images):
    """Which image each is, as `pixels` counts them."""
    flat = np.asarray(images).reshape(len(images), -1)
    return (flat[:, 0] * 256 + flat[:, 1]).astype(int)


def counts(given):
    return [len(part) for part in (given.calibration, given.decision, given.report)]


def test_train_and_test_of_an_npz(tmp_path):
    x_train, x_test = pixels(300), pixels(200)
    given = read(whole(tmp_path, x_train=x_train, x_test=x_test))
    assert counts(given) == [100, 200, 200] and not given.made_up
    first, second = numbers_of(given.calibration), numbers_of(given.decision)
    assert sorted([*first, *second]) == list(range(300))
    assert np.array_equal(given.calibration, x_train[first])  # as they are: no scale was given
    assert given.calibration.dtype == np.float32
    assert np.array_equal(given.decision_labels, second % CLASSES)
    report = numbers_of(given.report)
    assert np.array_equal(given.report, x_test[report])
    assert np.array_equal(given.report_labels, report % CLASSES)
    assert given.report_labels.dtype == np.int64


@pytest.mark.parametrize(
    "quick, expected", [(False, [200, 2_000, 5_000]), (True, [100, 500, 1_000])]
)
@pytest.mark.parametrize("form", ["npz", "x", "npy"])
def test_the_parts_are_no_larger_than_stated_and_do_not_overlap(form, quick, expected, tmp_path):
    x = pixels(9_000, (2, 2, 1))
    if form == "npy":
        path = tmp_path / "data.npy"
        np.save(path, x)
    else:
        path = stored(tmp_path, **({"x": x} if form == "x" else {"x_train": x, "x_test": x}))
    given = read(path, shape=(2, 2, 1), quick=quick)
    assert counts(given) == expected
    assert given.decision_labels is None and given.report_labels is None
    parts = [set(numbers_of(part)) for part in (given.calibration, given.decision, given.report)]
    assert [len(part) for part in parts] == expected
    assert not parts[0] & parts[1]
    assert form == "npz" or not (parts[0] | parts[1]) & parts[2]


def test_a_part_takes_no_more_than_a_gibibyte(monkeypatch):
    assert data._wanted((224, 224, 3), np.dtype("float32"), False) == [200, 1783, 1783]
    assert data._wanted((4096, 4096, 3), np.dtype("float32"), False) == [50, 50, 50]


def test_few_inputs_are_split_in_three(tmp_path):
    np.save(tmp_path / "data.npy", pixels(50))
    assert counts(read(tmp_path / "data.npy")) == [16, 17, 17]


def test_the_split_depends_on_the_seed_alone(tmp_path):
    path = whole(tmp_path)
    first, again, other = (numbers_of(read(path, seed=seed).calibration) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_every_part_has_the_classes_in_their_proportions(tmp_path):
    y = np.repeat([0, 1, 2, 3], [700, 200, 80, 20])  # in order, as files often are
    given = read(stored(tmp_path, x=pixels(1_000), y=y))
    calibration = y[numbers_of(given.calibration)]
    for part in (calibration, given.decision_labels, given.report_labels):
        share = np.bincount(part, minlength=4) / len(part)
        assert np.allclose(share, [0.7, 0.2, 0.08, 0.02], atol=0.012)


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y[:, None],
        lambda y: y.astype(np.float64),
        lambda y: np.eye(CLASSES)[y],
        lambda y: np.eye(CLASSES, dtype=bool)[y],
        lambda y: y.astype(np.uint8)[:, None],
    ],
    ids=["column", "float", "one-hot", "one-hot bool", "column of bytes"],
)
def test_labels_of_every_form(form, tmp_path):
    path = whole(tmp_path, y_train=form(labels(300)), y_test=form(labels(200)))
    given = read(path)
    assert np.array_equal(given.decision_labels, numbers_of(given.decision) % CLASSES)
    assert np.array_equal(given.report_labels, numbers_of(given.report) % CLASSES)


def test_one_output_tells_two_classes_apart(tmp_path):
    y = labels(300) % 2
    assert set(read(stored(tmp_path, x=pixels(300), y=y), classes=1).decision_labels) == {0, 1}
    with pytest.raises(UserError, match="from 0 to 1 apart"):
        read(stored(tmp_path, x=pixels(300), y=labels(300)), classes=1)
    assert set(read(classes_of(30, 30)(tmp_path), classes=1).report_labels) == {0, 1}


def test_without_classes_labels_are_left_out(tmp_path):
    given = read(whole(tmp_path, y_train=RNG.normal(size=(300, 7))), classes=None)
    assert given.decision_labels is None and given.report_labels is None


def test_a_missing_channel_is_added(tmp_path):
    path = stored(tmp_path, x=pixels(60, (6, 5)))
    assert read(path, shape=(6, 5, 1)).calibration.shape == (20, 6, 5, 1)


def test_inputs_that_are_no_images(tmp_path):
    given = read(stored(tmp_path, x=RNG.normal(size=(60, 7))), shape=(7,))
    assert given.calibration.shape == (20, 7) and given.calibration.dtype == np.float32


@pytest.mark.parametrize(
    "scale, factor, offset",
    [("1/255", 1 / 255, 0), ("0.5", 0.5, 0), ("1/127.5,-1", 1 / 127.5, -1), ("1e-2, 3", 0.01, 3)],
)
def test_a_scale_is_applied_to_every_form(scale, factor, offset, tmp_path):
    x = pixels(60)
    np.save(tmp_path / "data.npy", x)
    for path in (stored(tmp_path, x=x), tmp_path / "data.npy", pictures(tmp_path / "flat", x)):
        plain, scaled = read(path), read(path, scale=scale)
        assert np.allclose(scaled.report, plain.report * factor + offset, atol=1e-4)
        assert scaled.report.dtype == np.float32


def test_a_network_of_bytes_gets_bytes(tmp_path):
    given = read(whole(tmp_path), dtype="uint8")
    assert given.report.dtype == np.uint8 and given.report.max() > 200
    with pytest.raises(UserError, match="uint8 as it is: leave out --scale"):
        read(whole(tmp_path), dtype="uint8", scale="1/255")
    for values in (pixels(60) / 255.0, pixels(60).astype(int) + 1, np.full((60, *SHAPE), np.nan)):
        with pytest.raises(UserError, match="no uint8.*from 0 to 255"):
            read(stored(tmp_path, x=values), dtype="uint8")


def pictures(folder, images, name="{}.png", encode=tf.io.encode_png):
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        (folder / name.format(f"{index:04}")).write_bytes(encode(image).numpy())
    return folder


def test_a_folder_for_each_class(tmp_path):
    for label, name in enumerate(["ant", "bee", "cat", "dog"]):
        pictures(tmp_path / name, np.full((30 + label, 6, 5, 3), 50 * label, np.uint8))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    given = read(tmp_path)
    assert counts(given) == [42, 42, 42]
    for images, found in (
        (given.decision, given.decision_labels),
        (given.report, given.report_labels),
    ):
        assert set(found) == {0, 1, 2, 3}
        assert np.array_equal(images[:, 0, 0, 0], 50 * found)
    assert read(tmp_path, classes=None).report_labels is None


def test_pictures_are_decoded_and_resized(tmp_path):
    grey = np.broadcast_to(np.linspace(0, 250, 20).astype(np.uint8)[:, None, None], (20, 10, 1))
    pictures(tmp_path / "images", [grey] * 30)
    folder = tmp_path / "images"
    for index in range(30):
        (folder / f"more{index}.JPG").write_bytes(tf.io.encode_jpeg(grey, quality=100).numpy())
    given = read(folder, shape=(10, 10, 3))
    assert counts(given) == [20, 20, 20] and given.decision_labels is None
    expected = grey.reshape(10, 2, 10, 1).mean(1)
    assert np.abs(given.report - expected).max() < 5  # JPEG
    assert read(folder, shape=(10, 10, 1), dtype="uint8").report.shape == (20, 10, 10, 1)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_made_up_images(dtype):
    given = read(None, shape=(8, 9, 3), dtype=dtype)
    assert given.made_up and given.decision_labels is None and given.report_labels is None
    assert counts(given) == [200, 64, 64]
    assert counts(read(None, quick=True)) == [100, 64, 64]
    high = 1 if dtype == "float32" else 255
    for part in (given.calibration, given.decision, given.report):
        assert part.shape[1:] == (8, 9, 3) and part.dtype == dtype
        assert 0 <= part.min() < 0.2 * high and 0.8 * high < part.max() <= high
    assert not np.array_equal(given.calibration[:64], given.decision)
    assert np.array_equal(given.report, read(None, shape=(8, 9, 3), dtype=dtype).report)
    assert not np.array_equal(given.report, read(None, shape=(8, 9, 3), dtype=dtype, seed=1).report)


def test_made_up_images_are_scaled_as_read_ones_are():
    given = read(None, scale="1/127.5,-1")
    assert -1 <= given.report.min() < -0.8 and 0.8 < given.report.max() <= 1


def test_made_up_numbers():
    given = read(None, shape=(40,), classes=None)
    assert counts(given) == [200, 64, 64] and given.report.dtype == np.float32
    assert abs(given.report.mean()) < 0.05 and abs(given.report.std() - 1) < 0.05
    with pytest.raises(UserError, match="int32.*nobody can make up.*--data"):
        read(None, shape=(40,), dtype="int32")


def text(folder):
    (folder / "data.txt").write_text("1 2 3")
    return folder / "data.txt"


def cut(name):
    def make(folder):
        if name == "npy":
            np.save(folder / "data.npy", pixels(60))
        else:
            whole(folder)
        path = folder / f"data.{name}"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    return make


def objects(folder):
    np.save(folder / "data.npy", np.array([{"an": "object"}] * 60), allow_pickle=True)
    return folder / "data.npy"


def renamed(folder):
    buffer = io.BytesIO()
    np.save(buffer, pixels(60))
    (folder / "data.npz").write_bytes(buffer.getvalue())
    return folder / "data.npz"


def other(**arrays):
    return lambda folder: whole(folder, **arrays)


def only(**arrays):
    return lambda folder: stored(folder, **arrays)


def spoilt(value):
    def make(folder):
        images = pixels(300).astype(np.float32)
        images[:, 2, 1, 0] = value
        return whole(folder, x_train=images)

    return make


def classes_of(*counts):
    def make(folder):
        for label, count in enumerate(counts):
            pictures(folder / "set" / f"class{label}", pixels(count))
        return folder / "set"

    return make


def broken_picture(folder):
    pictures(folder / "set", pixels(60))
    for file in (folder / "set").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    return folder / "set"


def with_one(wrong):
    return np.where(np.arange(300) == 7, wrong, labels(300))


REFUSED = {
    "no file": (lambda folder: folder / "absent.npz", "no data at.*Give an .npz"),
    "other suffix": (text, "cannot be read here.*Give an .npz"),
    "cut npz": (cut("npz"), "not a whole .npz file.*again"),
    "cut npy": (cut("npy"), "not a whole .npy file.*again"),
    "objects npy": (objects, "holds Python objects.*plain arrays"),
    "objects npz": (
        only(x=np.array([{1: 2}] * 60, dtype=object)),
        "holds Python objects.*plain arrays",
    ),
    "npy called npz": (renamed, "an .npy by its content"),
    "no x": (only(images=pixels(60)), "the arrays images; x_train and x_test, or x, are needed"),
    "one y": (other(y_test=None), "has no y_test.*of both sets, or of none"),
    "shape": (other(x_test=pixels(200, (7, 5, 3))), r"x_test.*\(200, 7, 5, 3\); \(N, 6, 5, 3\)"),
    "one image": (only(x=np.zeros(SHAPE)), r"\(6, 5, 3\); \(N, 6, 5, 3\) is needed"),
    "no shape": (only(x=np.float32(3)), r"\(\); \(N, 6, 5, 3\) is needed"),
    "channels first": (only(x=pixels(60, (3, 6, 5))), r"Channels come last.*moveaxis"),
    "texts": (only(x=np.full((60, *SHAPE), "a")), "holds <U1. Store numbers"),
    "NaN": (spoilt(np.nan), "not finite.*100 of the 100 inputs.*first at index 0"),
    "infinite": (spoilt(np.inf), "not finite.*Remove or mend"),
    "too large": (only(x=np.full((60, *SHAPE), 1e300)), "not finite"),
    "fewer labels": (other(y_train=labels(299)), r"\(299,\) for 300 inputs"),
    "label too high": (other(y_train=with_one(4)), "from 0 to 4;.*from 0 to 3"),
    "from one": (other(y_test=labels(200) + 1), "y_test.*from 1 to 4;.*from 0 to 3.*from 0"),
    "label negative": (other(y_train=with_one(-1)), "from -1 to 3;"),
    "label and a half": (other(y_train=with_one(0.5)), "no whole numbers"),
    "label NaN": (other(y_train=with_one(np.nan)), "no whole numbers"),
    "names": (other(y_train=np.full(300, "cat")), "numbers of the classes"),
    "two hot": (other(y_train=np.ones((300, CLASSES))), "is not one-hot"),
    "probabilities": (other(y_train=np.full((300, CLASSES), 0.25)), "is not one-hot"),
    "wide labels": (other(y_train=np.zeros((300, 7))), r"\(300, 7\).*one-hot \(300, 4\)"),
    "one class": (other(y_train=np.full(300, 2)), "All labels in y_train.* are 2.*several classes"),
    "ten": (only(x=pixels(10)), "has 10 inputs; 50 or more"),
    "ten to test": (other(x_test=pixels(10), y_test=labels(10)), "x_test.* has 10 inputs; 50"),
    "49": (only(x=pixels(49), y=labels(49)), "has 49 inputs; 50 or more"),
    "no images": (classes_of(0, 0, 0, 0), "has no images.*folder of each class directly"),
    "three folders": (classes_of(30, 30, 30), "has 3 class folders.*4 classes"),
    "few pictures": (classes_of(3, 3, 3, 1), "has 10 inputs; 50 or more"),
    "one class of pictures": (classes_of(60, 0, 0, 0), "All labels in .* are 0"),
    "broken picture": (broken_picture, r"\d+.png is no image that can be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_gets_a_sentence(case, tmp_path):
    make, sentence = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_images_for_a_network_that_takes_none(tmp_path):
    with pytest.raises(UserError, match=r"shape \(7,\), which images are not"):
        read(pictures(tmp_path / "set", pixels(60)), shape=(7,))


@pytest.mark.parametrize("scale", ["", "a", "1/0", "1/", "1,2,3", "0", "nan", "inf", "1/255,"])
def test_a_scale_that_is_none(scale):
    with pytest.raises(UserError, match="is no factor. Give SCALE or SCALE,OFFSET"):
        read(None, scale=scale)


@pytest.mark.parametrize("labelled", [True, False])
def test_data_pass_to_another_process_through_files(labelled, tmp_path):
    path = whole(tmp_path) if labelled else None
    given = data.read(path, SHAPE, np.uint8, CLASSES)
    (tmp_path / "passed").mkdir()
    data.store(given, tmp_path / "passed")
    again = data.stored(tmp_path / "passed")
    assert again.made_up is not labelled
    for name in ("calibration", "decision", "decision_labels", "report", "report_labels"):
        assert np.array_equal(getattr(again, name), getattr(given, name))
        assert getattr(again, name) is None or isinstance(getattr(again, name), np.memmap)


def test_data_that_do_not_fit_into_the_temporary_folder_are_told(tmp_path):
    given = data.read(None, SHAPE, np.uint8, CLASSES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a disk that is full
    try:
        with pytest.raises(UserError, match="inputs do not fit into .* Set TMPDIR to a folder"):
            data.store(given, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
