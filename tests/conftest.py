"""What several test files share: a small real network, and nbval over a notebook."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import datasets, graphs, machine
from helpers.quantize import CalibrationLoader, freeze, integer, quiet
from helpers.run import cli

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (32, 32, 3)
# Nobody answers there, so that no test downloads: the weights of ResNet50 are made here everywhere.
os.environ["RESNET50_URL"] = "http://127.0.0.1:9"
# The order in which slow tests find what others have made: models, the outputs of the whole run.
FIRST = ["test_headless"]
LAST = ["test_notebooks", "test_faults", "test_browser", "test_cluster"]
# Their outputs in the whole run are compared; the other notebooks are executed once more for that.
LONG = [
    *("02_train_alexnet", "03_quantize_alexnet", "04_benchmark_alexnet", "05_benchmark_resnet50"),
    *("06_tune_inference", "07_inside_int8", "08_your_own_model"),
    *("09_compare_machines", "10_todays_tensorflow"),
]


def pytest_collection_modifyitems(items):
    rest = sorted({item.path.stem for item in items} - {*FIRST, *LAST})
    items.sort(key=lambda item: [*FIRST, *rest, *LAST].index(item.path.stem))


# for what is otherwise in env_current/, where tests/run.sh runs some files, too
itex_only = pytest.mark.skipif(not machine.has_itex(), reason="is of the form for ITEX")


# a namespace of its own; who is not root may have one, too, as its root
UNSHARE = ["unshare", "--mount"] + (["--map-root-user"] if os.geteuid() else [])


@functools.cache
def may_unshare():
    """Whether namespaces may be made here; containers mostly forbid it, whatever is installed."""
    try:
        return subprocess.run([*UNSHARE, "--net", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def needs(*tools):
    """Skip a test where a program is missing; in CI it has to be there, and the test fails.

    Where the right to use unshare is missing, which nobody can install, it is skipped in CI, too.
    """
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        skip, reason = "CI" not in os.environ, f"needs {', '.join(missing)}"
    else:
        skip, reason = "unshare" in tools and not may_unshare(), "may not make namespaces here"
    return pytest.mark.skipif(skip, reason=reason)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The output folder of the whole headless run, the same for all processes that test."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole" / "the output"


def reuse_resnet50(whole, output):
    """Copy what there is of the ResNet50 of the whole run, so that it need not be made again."""
    models = Path("resnet50", "models")
    if (whole / models).exists():
        unfinished = shutil.ignore_patterns("*.part", "*.tmp")
        shutil.copytree(whole / models, output / models, ignore=unfinished)


@pytest.fixture(scope="session")
def outputs(whole, tmp_path_factory):
    """An output folder with the AlexNet of the whole run and its result: notebooks 02 to 04.

    The whole run may be going on in the other process; without one, or when it has failed, the
    three notebooks are run here.
    """
    folder = tmp_path_factory.mktemp("outputs")
    made, end = Path("alexnet", "result.json"), time.monotonic() + 1200
    while whole.exists() and not (whole / made).exists() and time.monotonic() < end:
        if (whole / "index.html").exists():  # the end of a run
            break
        time.sleep(1)
    if (whole / made).exists():
        shutil.copytree(whole / "alexnet" / "models", folder / "alexnet" / "models")
        shutil.copy(whole / made, folder / made)
    else:
        for book in cli.notebooks(["02_", "03_", "04_"]):
            parameters = {"profile": "quick", "output": str(folder)}
            assert cli.execute(book, folder / book.name, parameters) is None
    return folder


@pytest.fixture
def resnet50(whole, tmp_path):
    """An output folder with the ResNet50 of the whole run."""
    reuse_resnet50(whole, tmp_path)
    if not (tmp_path / "resnet50").exists():
        pytest.skip("needs the whole run of test_headless.py")
    return tmp_path


def replayed(notebook, executed, folder):
    """Compare an executed notebook with what it stores by nbval, without executing it again."""
    spec = folder / "kernels" / "replay"
    spec.mkdir(parents=True)
    words = [sys.executable, str(ROOT / "tests" / "replay.py"), "-f", "{connection_file}"]
    spec = spec / "kernel.json"
    spec.write_text(json.dumps({"argv": words, "display_name": "replay", "language": "python"}))
    env = {"JUPYTER_PATH": str(folder), "REPLAY": str(executed)}
    return nbval(notebook, folder, folder, "--nbval-kernel-name", "replay", env=env)


def nbval(notebook, outputs, folder, *options, root=ROOT, env=(), limit=10):
    """Re-execute a notebook on quick settings below `folder` and compare with what it stores.

    It measures no longer than `limit` seconds where it may be told.
    """
    import papermill  # not in env_current/, where some of the tests run, too

    copy = folder / notebook.name
    parameters = {"profile": "quick", "output": str(outputs)}
    if "limit" in papermill.inspect_notebook(notebook):
        parameters["limit"] = limit
    papermill.execute_notebook(notebook, copy, parameters, prepare_only=True)
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider"]
    command += ["--nbval-sanitize-with", root / "tests" / "nbval_sanitize.cfg"]
    command += ["--nbval-cell-timeout", "900", "--rootdir", folder, "-c", "/dev/null"]
    return subprocess.run(
        [*command, *options, copy],
        env={**os.environ, "PYTHONPATH": str(root), **dict(env)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def keras_model():
    import tensorflow as tf

    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(momentum=0.0),
            layers.ReLU(),
            layers.Conv2D(16, 3, strides=2),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model(images(64), training=True)
    return model


def images(count, seed=0):
    return datasets.dummy_images(count, *SHAPE, seed=seed)


@pytest.fixture(scope="session")
def small(keras_model, tmp_path_factory):
    """{"fp32": path, "int8": path} of the small network."""
    folder = tmp_path_factory.mktemp("graphs")
    fp32 = freeze(keras_model, folder / "fp32.pb")
    if not machine.has_itex():  # in env_current/
        int8 = integer.quantize(fp32, images(32, seed=1), folder / "int8.pb")
        return {"fp32": fp32, "int8": int8, "log": folder / "int8.log"}
    loader = CalibrationLoader(images(32, seed=1), 8)
    with quiet(folder / "quantize.log"):
        from neural_compressor.tensorflow import StaticQuantConfig, quantize_model

        config = StaticQuantConfig(weight_granularity="per_channel")
        quantized = quantize_model(str(fp32), config, loader, len(loader))
    int8 = graphs.write_graph(quantized.graph_def, folder / "int8.pb")
    return {"fp32": fp32, "int8": int8, "log": folder / "quantize.log"}
