"""The folder that serves the INT8 network without this package."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SHAPE, images

from helpers import UserError, graphs, machine
from helpers.benchmark.candidate import environment
from helpers.quantize import serving

FROZEN = """
import sys
import numpy as np
from helpers import graphs
graph = graphs.FrozenGraph(sys.argv[1])
np.save(sys.argv[3], graph(np.load(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder") / "to serve"
    return serving.save(small["int8"], folder, "serving_input", "dense/Softmax")


def run(folder, *words, cwd="/", **variables):
    """serve.py in a fresh process that knows nothing of the checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(folder / "serve.py"), *map(str, words)],
        env={**env, **variables},
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_the_keys_are_those_of_the_original(folder):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / "saved_model"))
    signature = loaded.signatures["serving_default"]
    ((key, spec),) = signature.structured_input_signature[1].items()
    assert (key, list(signature.structured_outputs)) == ("serving_input", ["dense/Softmax"])
    assert spec.shape.as_list() == [None, *SHAPE] and spec.dtype == tf.float32
    assert sorted(os.listdir(folder)) == ["saved_model", "serve.py"]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_are_those_of_the_frozen_graph(folder, small, batch_size, tmp_path):
    """Bit for bit, in processes with the same environment."""
    np.save(tmp_path / "request.npy", images(batch_size))
    variables = environment(2)
    command = [sys.executable, "-c", FROZEN, small["int8"], "request.npy", "frozen.npy"]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = {**variables, "PYTHONPATH": ""}
    done = run(folder, "request.npy", "--to", "answer.npy", cwd=tmp_path, **asked)
    assert done.returncode == 0, done.stderr
    answer = np.load(tmp_path / "answer.npy")
    assert answer.shape == (batch_size, 10)
    assert answer.tobytes() == np.load(tmp_path / "frozen.npy").tobytes()


def test_it_answers_random_numbers_from_any_folder(folder, tmp_path):
    done = run(folder, cwd=tmp_path, _ONEDNN_CONSTANT_CACHE="0", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "request (1, 32, 32, 3), answer (1, 10), 1 threads"
    assert second.endswith("ms a call (median of 20 after 6 to warm up)")
    assert not list(tmp_path.iterdir())


def test_what_has_to_be_set_is_set_before_tensorflow(folder):
    """And as the measuring processes have it."""
    code = "import os, serve; print(*map('='.join, os.environ.items()))"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "_ONEDNN_CONSTANT_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    before, _, after = (folder / "serve.py").read_text().partition("import tensorflow")
    assert "os.environ[" not in after.replace("os.environ['OMP", "") and "helpers" not in after
    for name, value in environment(1).items():
        cache = ["_ONEDNN"] * machine.has_itex()
        if name.startswith(("TF_ENABLE", "KMP_", "TF_NUM_INTER", *cache)):
            assert f"{name}={value}" in done.stdout.split() and name in before


def test_both_ways_are_measured(folder):
    cost = serving.measure(folder, images(2), threads=1)
    assert list(cost) == ["session_ms", "signature_ms"]
    assert all(0 < one["best"] <= one["median"] < 1000 for one in cost.values())
    assert cost["session_ms"]["best"] < cost["signature_ms"]["best"]


def test_turns_are_interleaved_and_turned_round(monkeypatch):
    asked = []

    class Server:
        def __init__(self, way):
            self.way = way

        def __enter__(self):
            def ask(word):
                asked.append(self.way)
                return [0.002, 0.001, 0.004]

            return ask

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(serving, "_server", lambda way, *rest: Server(way))
    cost = serving.measure("anywhere", images(1), threads=1)
    there, back = ["session_ms", "signature_ms"], ["signature_ms", "session_ms"]
    assert asked == there + (there + back) * (serving.ROUNDS // 2)
    assert cost == {way: {"best": 1.0, "median": 2.0} for way in there}


def test_an_older_folder_is_replaced_whole(folder, small, tmp_path):
    serving.save(small["int8"], tmp_path, "first", "answer")
    (tmp_path / "saved_model" / "left over").write_text("of an older one")
    serving.save(small["int8"], tmp_path, "second", "answer")
    assert sorted(os.listdir(tmp_path)) == ["saved_model", "serve.py"]
    assert "left over" not in os.listdir(tmp_path / "saved_model")
    assert b"second" in (tmp_path / "saved_model" / "saved_model.pb").read_bytes()


def test_a_failure_leaves_the_older_one(small, tmp_path, monkeypatch):
    serving.save(small["int8"], tmp_path, "first", "answer")

    def fail(graph_def, signature, keys, path):
        path.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serving, "_write", fail)
    with pytest.raises(UserError, match="disk is full"):
        serving.save(small["int8"], tmp_path, "second", "answer")
    assert sorted(os.listdir(tmp_path)) == ["saved_model", "serve.py"]
    assert b"first" in (tmp_path / "saved_model" / "saved_model.pb").read_bytes()


def test_failures_are_sentences(small, folder, tmp_path):
    with pytest.raises(UserError, match="needs a name"):
        serving.save(small["int8"], tmp_path / "new", "", "answer")
    with pytest.raises(UserError, match="no model at"):
        serving.save(tmp_path / "absent.pb", tmp_path / "new", "input", "answer")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=r"serve.py of .*nowhere was not measured: its process"):
        serving.measure(tmp_path / "nowhere", images(1), threads=1)


def test_inputs_without_a_fixed_shape_need_a_request(small, tmp_path):
    graph_def = graphs.read_graph(small["int8"])
    (source,) = (node for node in graph_def.node if node.op == "Placeholder")
    source.attr["shape"].shape.dim[1].size = -1
    graphs.write_graph(graph_def, tmp_path / "free.pb")
    folder = serving.save(tmp_path / "free.pb", tmp_path / "free", "input", "answer")
    done = run(folder)
    assert done.returncode == 2 and "give an .npy" in done.stderr


@pytest.mark.parametrize("form", [serving.QDQ, serving.INTEGER], ids=["qdq", "integer"])
def test_the_script_is_laid_out(form, tmp_path):
    ruff = f"{sys.prefix}/bin/ruff"
    if not os.path.exists(ruff):
        pytest.skip("needs the packages of tests/requirements.txt")
    (tmp_path / "serve.py").write_text(serving.script(form))
    how = ["--quiet", "--config", str(ROOT / "pyproject.toml")]
    for words in (["check", "--ignore", "E402"], ["format", "--check"]):
        command = [ruff, *words, *how, tmp_path / "serve.py"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    assert len(serving.script(form).splitlines()) < 70
