"""The user's inputs, read and split: to calibrate on, to decide on, to report on."""

import math
import zipfile
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

import numpy as np

from helpers import UserError, datasets, graphs

CALIBRATION, DECISION, REPORT = 200, 2_000, 5_000
QUICK = 100, 500, 1_000
ENOUGH = 50
MADE_UP = 64  # to decide and to report on, where the speed is all that counts
PART_BYTES = 2**30  # of one part in memory: 1,783 images of 224 x 224 x 3 in FP32
FORMS = (
    "an .npz with x_train, y_train, x_test and y_test, an .npy of inputs, or a folder that has a "
    "folder of images for each class"
)
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class Data:
    """Three parts without overlap, of the shape and dtype that the network takes.

    `calibration`, `decision` and `report` are arrays (N, …). Labels are arrays (N,), int64, from 0,
    or None where there are none. `made_up` tells that the inputs are of nothing.
    """

    calibration: np.ndarray
    decision: np.ndarray
    decision_labels: np.ndarray | None
    report: np.ndarray
    report_labels: np.ndarray | None
    made_up: bool


def read(path, shape, dtype, classes, scale=None, quick=False, seed=0):
    """Read inputs from an .npz, an .npy or a folder of images, or make some up: a Data.

    `shape` and `dtype` are those of the network's input, the shape without the batch; `classes` is
    how many it tells apart (1: two, by one number), None where it tells no classes apart: then
    labels are left out. An .npz has x_train and x_test, or only one of them or x, which is split
    in three; labels (y_train and y_test, or y) are optional, numbers (N,) or (N, 1) or one-hot
    (N, classes). A folder has a folder per class, whose order by name gives the labels, or images
    only. Images are resized to `shape` bilinearly, their values are 0 to 255.

    `scale` "SCALE" or "SCALE,OFFSET" (numbers or fractions, as in "1/255" or "1/127.5,-1") makes
    value · SCALE + OFFSET of every value read; without it values stay as they are. With `path`
    None inputs are made up: images in [0, 1] (0 to 255 for uint8), which `scale` takes as 0 to 255,
    or normally distributed numbers where the shape is not that of an image.

    At most 200 are for calibration, 2,000 to decide on and 5,000 to report on (`quick`: 100, 500,
    1,000; made up: no more than 500 and 1,000), and none takes more than 1 GiB. The choice depends
    on `seed` and has the classes in the proportions of the data. Raises UserError for what cannot
    be read, does not fit the network, is not finite, or is too little: less than 50.
    """
    shape, dtype = tuple(shape), np.dtype(dtype)
    factors = None if scale is None else _parse_scale(scale)
    if factors is not None and dtype.kind != "f":
        raise UserError(f"The network takes {dtype} as it is: leave out --scale.")
    wanted = _wanted(shape, dtype, quick)
    if path is None:
        return _made_up(shape, dtype, factors, wanted, seed)
    path = Path(path)
    if not path.exists():
        raise UserError(f"There are no data at {path}. Give {FORMS}.")
    if path.is_dir():
        sets = [_pictures(path, shape, classes)]
    elif path.suffix.lower() == ".npz":
        sets = _arrays(path, shape, classes)
    elif path.suffix.lower() == ".npy":
        sets = [_Inputs(path, _fit(path, _load(path, mmap_mode="r"), shape), None)]
    else:
        raise UserError(f"{path} cannot be read here. Give {FORMS}.")
    for inputs in sets:
        if len(inputs) < ENOUGH:
            raise UserError(
                f"{inputs.name} has {len(inputs)} inputs; {ENOUGH} or more are needed to calibrate "
                "and to compare. Give more of what the network will see."
            )
    parts = [
        (_convert(inputs, chosen, dtype, factors), inputs.labels_of(chosen))
        for inputs, chosen in _split(sets, wanted, seed)
    ]
    (calibration, _), (decision, decided), (report, reported) = parts
    return Data(calibration, decision, decided, report, reported, made_up=False)


def read_for(source, path=None, scale=None, quick=False):
    """As `read`, of the shape, type and classes of a reading.Source."""
    signature = graphs.find_signature(source.graph_def)
    answer = source.predict(np.zeros((1, *signature.shape), signature.dtype), 1)
    classes = answer.shape[1] if answer.ndim == 2 else None
    return read(path, signature.shape, signature.dtype, classes, scale, quick)


def store(given, folder):
    """Write a Data for another process, an .npy for each of its arrays.

    Raises UserError where the disk of the temporary folder is full.
    """
    try:
        for name, value in vars(given).items():
            if value is not None:
                np.save(folder / f"{name}.npy", value)
    except OSError as error:  # of a full disk NumPy gives no errno
        raise UserError(
            f"The inputs do not fit into {folder.parent} ({error}). Set TMPDIR to a folder with "
            "more room."
        ) from error


def stored(folder):
    """The Data that `store` wrote, its arrays mapped from their files."""
    paths = {field.name: folder / f"{field.name}.npy" for field in fields(Data)}
    found = {
        name: np.load(path, mmap_mode="r") if path.exists() else None
        for name, path in paths.items()
    }
    return Data(**{**found, "made_up": bool(found["made_up"])})


def _wanted(shape, dtype, quick):
    """How many inputs there are to be at most to calibrate on, decide on and report on."""
    fit = max(ENOUGH, PART_BYTES // (math.prod(shape) * max(dtype.itemsize, 4)))
    return [min(count, fit) for count in (QUICK if quick else (CALIBRATION, DECISION, REPORT))]


def _parse_scale(scale):
    """(factor, offset) of "SCALE" or "SCALE,OFFSET"."""
    try:
        parts = scale if isinstance(scale, tuple) else str(scale).split(",")
        numbers = [_number(str(part)) for part in parts]
        factor, offset = numbers if len(numbers) > 1 else (*numbers, 0.0)
    except (ValueError, ZeroDivisionError, OverflowError):
        factor = 0
    if not factor:
        raise UserError(
            f"--scale {scale} is no factor. Give SCALE or SCALE,OFFSET, as in 1/255 or 1/127.5,-1: "
            "each value becomes value · SCALE + OFFSET."
        )
    return factor, offset


def _number(text):
    """The number in a text, which may be a fraction."""
    above, slash, below = text.partition("/")
    return float(Fraction(above.strip()) / Fraction(below.strip() if slash else 1))


class _Inputs:
    """Inputs (N, …) of one array, in memory or in a file, with labels (N,) or None."""

    def __init__(self, name, array, labels):
        self.name, self.array, self.labels = name, array, labels

    def __len__(self):
        return len(self.array)

    def labels_of(self, chosen):
        return None if self.labels is None else self.labels[chosen]

    def values_of(self, chosen):
        return np.asarray(self.array[chosen])


class _Pictures(_Inputs):
    """Images in files, of which only those that are asked for are decoded."""

    def __init__(self, name, files, labels, shape):
        super().__init__(name, np.array(files, dtype=object), labels)
        self.shape = shape

    def values_of(self, chosen):
        images = np.empty((len(chosen), *self.shape), np.float32)
        for index, file in enumerate(self.array[chosen]):
            images[index] = _decode(file, self.shape)
        return images


def _decode(file, shape):
    """The image in a file: float32 (height, width, channels), 0 to 255."""
    import tensorflow as tf

    try:
        image = tf.io.decode_image(file.read_bytes(), shape[2], expand_animations=False)
        return tf.image.resize(image, shape[:2]).numpy()
    except (tf.errors.OpError, ValueError, OSError) as error:
        raise UserError(f"{file} is no image that can be read. Remove or replace it.") from error


def _pictures(path, shape, classes):
    """The images below a folder, labelled where they lie in class folders."""
    if len(shape) != 3 or shape[2] not in (1, 3, 4):
        raise UserError(
            f"The network takes inputs of the shape {shape}, which images are not. Give an .npz or "
            ".npy of such inputs."
        )
    folders = sorted(each for each in path.iterdir() if each.is_dir() and each.name[0] != ".")
    found = [(file, label) for label, folder in enumerate(folders) for file in _files(folder)]
    if not found:
        direct = _files(path)
        if not direct:
            raise UserError(
                f"{path} has no images ({', '.join(PICTURES)}), nor has any folder in it. Give the "
                "folder that has the folder of each class directly in it."
            )
        return _Pictures(path, direct, None, shape)
    count = 2 if classes == 1 else classes
    if count is not None and len(folders) != count:
        raise UserError(
            f"{path} has {len(folders)} class folders, the network tells {count} classes apart. "
            "Their order by name gives the labels: give one folder per class, empty ones, too."
        )
    files, labels = zip(*found)
    labels = None if classes is None else np.array(labels, np.int64)
    if labels is not None:
        _check_several(path, labels)
    return _Pictures(path, files, labels, shape)


def _files(folder):
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)


def _load(path, **how):
    """The array of an .npy, or {name: array} of an .npz."""
    try:
        stored = np.load(path, allow_pickle=False, **how)
        if isinstance(stored, np.ndarray):
            return stored
        with stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise UserError(
                f"{path} holds Python objects, which can run code when they are read. Save plain "
                "arrays of numbers: numpy.asarray(x, numpy.float32)."
            ) from error
        raise UserError(f"{path} is not a whole {path.suffix} file. Save it again.") from error


def _arrays(path, shape, classes):
    """The sets in an .npz: that to train and that to test, or one."""
    arrays = _load(path)
    if not isinstance(arrays, dict):
        raise UserError(f"{path} is an .npy by its content. Give it that ending.")
    names = [name for name in ("x_train", "x_test") if name in arrays] or ["x"]
    if names == ["x"] and "x" not in arrays:
        listed = ", ".join(arrays) or "none"
        raise UserError(f"{path} has the arrays {listed}; x_train and x_test, or x, are needed.")
    labels = [name.replace("x", "y", 1) for name in names]
    missing = [name for name in labels if name not in arrays]
    if missing and len(missing) < len(labels):
        raise UserError(f"{path} has no {missing[0]}. Store the labels of both sets, or of none.")
    sets = []
    for name, label in zip(names, labels):
        title = f"{name} in {path}"
        array = _fit(title, arrays[name], shape)
        known = label in arrays and classes is not None
        known = _labels(f"{label} in {path}", arrays[label], len(array), classes) if known else None
        sets.append(_Inputs(title, array, known))
    return sets


def _fit(name, array, shape):
    """The array with inputs of the network's shape; UserError where they have another."""
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} holds {array.dtype}. Store numbers, as the network takes them.")
    if shape and shape[-1] == 1 and array.ndim and array.shape[1:] == shape[:-1]:
        array = array[..., None]
    if array.ndim == 0 or array.shape[1:] != shape:
        needed = ", ".join(["N", *map(str, shape)])
        hint = "Give inputs as the network takes them."
        if len(shape) == 3 and array.shape[1:] == (shape[2], *shape[:2]):
            hint = "Channels come last: store numpy.moveaxis(x, 1, -1)."
        raise UserError(f"{name} has the shape {array.shape}; ({needed}) is needed. {hint}")
    return array


def _labels(name, labels, count, classes):
    """Labels as int64 (N,), from numbers (N,) or (N, 1) or one-hot (N, classes)."""
    if labels.dtype.kind not in "biuf":
        raise UserError(f"{name} holds {labels.dtype}; store the numbers of the classes, from 0.")
    if labels.shape[:1] != (count,):
        raise UserError(
            f"{name} has the shape {labels.shape} for {count} inputs. Store one label per input."
        )
    highest = max(classes, 2) - 1
    if labels.shape == (count, highest + 1):
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise UserError(f"{name} is not one-hot: each row needs one 1 among zeros. Mend it.")
        labels = labels.argmax(1)
    if labels.shape not in ((count,), (count, 1)):
        raise UserError(
            f"{name} has the shape {labels.shape}; ({count},) or one-hot ({count}, {highest + 1}) "
            "is needed. Store one label per input."
        )
    labels = labels.reshape(count)
    if not np.isfinite(labels).all() or (labels != np.round(labels)).any():
        raise UserError(f"{name} has labels that are no whole numbers. Store classes from 0.")
    if count and (labels.min() < 0 or labels.max() > highest):
        raise UserError(
            f"{name} has labels from {labels.min()} to {labels.max()}; the network tells classes "
            f"from 0 to {highest} apart. Number them from 0, or give data of this network."
        )
    _check_several(name, labels)
    return labels.astype(np.int64)


def _check_several(name, labels):
    if len(labels) >= ENOUGH and len(np.unique(labels)) == 1:
        raise UserError(
            f"All labels in {name} are {int(labels[0])}: accuracy on one class says nothing. Give "
            "inputs of several classes."
        )


def _split(sets, wanted, seed):
    """[(inputs, indices)] of the three parts: of one set all, or of the second the last."""
    calibration, decision, report = wanted
    rng = np.random.default_rng(seed)
    orders = [_order(inputs, rng) for inputs in sets]
    first = min(calibration, len(orders[0]) // 3)
    rest = orders[0][first:]
    if len(sets) == 1:
        second = min(decision, len(rest) // 2)
        chosen = [orders[0][:first], rest[:second], rest[second : second + report]]
    else:
        chosen = [orders[0][:first], rest[:decision], orders[1][:report]]
    # in the order of the file, which a file on disk is read in
    return [(part, np.sort(indices)) for part, indices in zip([sets[0]] * 2 + sets[-1:], chosen)]


def _order(inputs, rng):
    """All indices at random, but so that each stretch has the classes in their proportions."""
    order = rng.permutation(len(inputs))
    if inputs.labels is None:
        return order
    labels, place = inputs.labels[order], np.empty(len(order))
    for label in np.unique(labels):
        of_label = np.flatnonzero(labels == label)
        count = len(of_label)
        place[of_label] = (np.arange(count) + rng.uniform(size=count)) / count
    return order[np.argsort(place)]


def _convert(inputs, chosen, dtype, factors):
    """The inputs chosen, scaled, as the network's dtype."""
    values = inputs.values_of(chosen)
    if dtype.kind in "iu":
        values = np.round(values) if isinstance(inputs, _Pictures) else values
        limits = np.iinfo(dtype)
        fits = np.isfinite(values).all() and (values == np.round(values)).all()
        if not fits or values.min() < limits.min or values.max() > limits.max:
            raise UserError(
                f"{inputs.name} has values that are no {dtype}, which the network takes. Give "
                f"whole numbers from {limits.min} to {limits.max}."
            )
        return values.astype(dtype)
    with np.errstate(over="ignore"):  # told below
        values = values.astype(dtype)
        if factors is not None:
            values *= dtype.type(factors[0])
            values += dtype.type(factors[1])
    bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
    if bad.any():
        raise UserError(
            f"{inputs.name} has values that are not finite (NaN or infinite) in {bad.sum()} of the "
            f"{len(values)} inputs looked at, the first at index {chosen[bad][0]}. Remove or mend "
            "them."
        )
    return values


def _made_up(shape, dtype, factors, wanted, seed):
    """Inputs of nothing: images where the shape is that of some, or else normal numbers."""
    if dtype.kind != "f" and (dtype != np.uint8 or len(shape) != 3):
        raise UserError(
            f"The network takes {dtype}, whose meaning nobody can make up. Give inputs of yours "
            f"with --data: {FORMS}."
        )
    counts = [min(pair) for pair in zip(wanted, (CALIBRATION, MADE_UP, MADE_UP))]
    seeds = np.random.SeedSequence(seed).generate_state(3)
    parts = []
    for count, part_seed in zip(counts, map(int, seeds)):
        if len(shape) == 3:
            images = datasets.dummy_images(count, *shape, seed=part_seed) + np.float32(128)
            factor, offset = factors or (1 if dtype == np.uint8 else 1 / 255, 0)
            parts.append((images * np.float32(factor) + np.float32(offset)).astype(dtype))
        else:
            values = np.random.default_rng(part_seed).standard_normal((count, *shape), np.float32)
            parts.append(values.astype(dtype))
    calibration, decision, report = parts
    return Data(calibration, decision, None, report, None, made_up=True)
