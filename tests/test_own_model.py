"""python -m helpers.quantize, from a model's file to what serves it in INT8."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SHAPE, images

from helpers import UserError, benchmark, graphs, machine
from helpers.benchmark import candidate
from helpers.quantize import __main__ as command
from helpers.quantize import data, ladder, preparing, quantize, reading


@pytest.fixture(scope="module")
def trained(keras_model, tmp_path_factory):
    """(the file of a Keras model, the file of data that it labels as it should)."""
    folder = tmp_path_factory.mktemp("mine")
    keras_model.save(folder / "mine.keras")
    x = images(400, seed=7)
    y = keras_model.predict(x, verbose=0).argmax(1)
    np.savez(folder / "data.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    return folder / "mine.keras", folder / "data.npz"


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """The output folder of the command, called as people call it, and what it said."""
    model, data = trained
    output = tmp_path_factory.mktemp("own") / "a folder"
    words = [sys.executable, "-m", "helpers.quantize", model, "--data", data, "--output", output]
    done = subprocess.run(
        [*words, "--quick", "--limit", "1", "--tolerance", "20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return output, done.stdout


def test_it_says_what_became_of_the_model(made):
    output, text = made
    assert "Keras model with 3 convolutions and matrix products" in text
    assert "1. per channel" in text and "passes" in text
    assert "3 of 3 layers run in INT8 (per channel)." in text
    assert "Of 100 inputs that took part in no decision FP32 gets 100.00% right" in text
    assert "INT8 is " in text and str(output) in text


def test_it_leaves_what_it_says(made):
    output, _ = made
    for name in ("models/fp32.pb", "models/int8.pb", "fp32_int8_absolute.png", "serve.py"):
        assert (output / name).stat().st_size > 1000
    result = json.loads((output / "result.json").read_text())
    first, *_, last = result["candidates"]
    assert (first["name"], last["name"]) == ("FP32", "INT8")
    assert last["kernels"]["s8"]["count"] == 3
    rows = json.loads((output / "layers.json").read_text())
    assert len(rows) == 3 and all(row["int8"] and row["why"] is None for row in rows)
    assert all(20 < row["sqnr_db"] <= 200 and 0 < row["share"] < 1 for row in rows)


def test_what_serves_it_gives_what_was_measured(made, tmp_path):
    """In a fresh process, from another folder."""
    output, _ = made
    batch = images(4, seed=8)
    np.save(tmp_path / "request.npy", batch)
    words = [sys.executable, output / "serve.py", "request.npy", "--to", "answer.npy"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = benchmark.outputs(output / "models" / "int8.pb", batch, 4)
    assert np.array_equal(np.load(tmp_path / "answer.npy"), wanted)
    assert "ms a call" in done.stdout


def test_a_tolerance_that_cannot_be_met_is_admitted(trained, tmp_path, capfd):
    model, data = map(str, trained)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "int8.pb").write_text("of an earlier run")
    words = [model, "--data", data, "--quick", "--limit", "1", "--tolerance", "-1"]
    assert command.main([*words, "--output", str(tmp_path)]) == 1
    text = capfd.readouterr().out
    assert "INT8 does not hold: of " in text and "-1 may be lost" in text
    assert not (tmp_path / "models" / "int8.pb").exists()


def test_without_data_only_the_speed_counts(keras_model, tmp_path, capfd):
    keras_model.export(tmp_path / "exported")
    words = [
        str(tmp_path / "exported"),
        "--quick",
        "--limit",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    assert command.main(words) == 0
    text = capfd.readouterr().out
    assert "SavedModel with 3 convolutions" in text and "inputs are made up" in text
    assert "Whether it keeps the accuracy is not known without data" in text
    signature = graphs.find_signature(graphs.read_graph(tmp_path / "out" / "models" / "int8.pb"))
    assert signature.shape == (32, 32, 3)


@pytest.fixture(scope="module")
def ruined(tmp_path_factory):
    """Break (b) of notebook 07 in a Keras file: four channels between two layers are 1,024 times as
    large as the others, through a ReLU and a maximum pool, which leaves FP32 the same bit for bit.
    """
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPool2D(2),
            layers.Conv2D(32, 3, activation="relu"),
            layers.GlobalMaxPool2D(),
            layers.Dense(10),
        ]
    )
    x = images(200, seed=7) / 64
    healthy = model.predict(x, verbose=0)
    first, _, second, *_ = model.layers
    loud = np.where(np.arange(16) < 4, 2.0**10, 1).astype(np.float32)
    kernel, bias = first.get_weights()
    first.set_weights([kernel * loud, bias * loud])
    kernel, bias = second.get_weights()
    second.set_weights([kernel / loud[:, None], bias])
    assert np.array_equal(model.predict(x, verbose=0), healthy)
    path = tmp_path_factory.mktemp("ruined") / "ruined.keras"
    model.save(path)
    return path, x, healthy.argmax(1)


def test_a_keras_file_that_int8_ruins_is_mended_with_every_layer_in_int8(ruined, tmp_path):
    path, x, y = ruined
    source = reading.read(path)
    fp32 = graphs.write_graph(source.graph_def, tmp_path / "fp32.pb")
    assert reading.check(source, fp32, x[:32]) > 100
    judge = ladder.Judge(fp32, x[100:], y[100:])
    plain = quantize(fp32, x[:100], tmp_path / "plain.pb", granularity="per_tensor")
    assert judge.baseline == 1 and judge(plain) < 0.6
    trials, why = ladder.climb(fp32, x[:100], judge, 3.0, tmp_path / "trials")
    assert [trial.passed for trial in trials].count(True) == 1 and trials[-1].passed and not why
    assert trials[-1].name == "cross-layer equalization" and trials[0].drop > 10
    mended = graphs.layers(graphs.read_graph(trials[-1].graph))
    assert len(mended) == 3 and all(layer.int8 for layer in mended)
    ran = benchmark.executed_kernels(trials[-1].graph, x[:8])
    assert {weights for _, weights, _ in ran} == {"s8"}


def ratios(entries):
    """The `ratios` of candidates against FP32 at both batch sizes: {name: (median, half width)}."""
    for name, (median, half) in entries.items():
        for size in command.BATCH_SIZES:
            times = {"median": median, "low": median - half, "high": median + half}
            down = {"median": 1 / median, "low": 1 / times["high"], "high": 1 / times["low"]}
            found = {"throughput_times": times, "latency_times": down}
            yield {"candidate": name, "baseline": "FP32", "batch_size": size, **found}


def test_what_to_ship_is_of_those_that_hold_and_names_all_that_are_alike():
    accuracy = {"FP32": 0.95, "INT8": 0.945, "OpenVINO INT8": 0.80, "ONNX Runtime INT8": 0.95}
    result = {
        "candidates": [{"name": n, "accuracy": {"top1": top1}} for n, top1 in accuracy.items()],
        "agreement": {name: {"top1": 0.9} for name in list(accuracy)[1:]},
        "ratios": list(
            ratios(
                {"INT8": (2.0, 0.1), "OpenVINO INT8": (4.0, 0.1), "ONNX Runtime INT8": (2.15, 0.1)}
            )
        ),
    }
    text = command.to_ship(result, 1.0)
    assert "Within 1 points are FP32, INT8, ONNX Runtime INT8." in text
    assert text.count("INT8 or ONNX Runtime INT8 (their intervals overlap)") == 2
    result["ratios"] = list(ratios({"INT8": (3.0, 0.1), "ONNX Runtime INT8": (2.15, 0.1)}))
    assert "For throughput, at batch 32, ship INT8." in command.to_ship(result, 1.0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.keras"], "There is no model at nowhere.keras"),
        (["MODEL", "--data", "nowhere.npz"], "There are no data at nowhere.npz"),
        (["MODEL", "--data", "DATA", "--scale", "much"], "--scale much is no factor"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words, sentence, trained, tmp_path, capsys):
    names = {"MODEL": str(trained[0]), "DATA": str(trained[1])}
    words = [names.get(word, word) for word in words]
    assert command.main([*words, "--output", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {sentence}") and "Traceback" not in said.err


def started(trained, output, moment):
    """The command, as far as the line that begins with `moment`."""
    model, data = trained
    words = [sys.executable, "-m", "helpers.quantize", model, "--data", data, "--quick"]
    running = subprocess.Popen(
        [*map(str, words), "--tolerance", "20", "--output", str(output)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert any(line.startswith(moment) for line in running.stdout)
    return running


@pytest.mark.parametrize("moment", ["Read the model", "Quantize with", "Measure FP32"])
def test_an_interruption_is_one_line(moment, trained, tmp_path):
    running = started(trained, tmp_path, moment)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 130, errors
    assert errors.count("Interrupted; what was not finished was not written.") == 1
    assert "Traceback" not in errors
    assert not [path for path in Path(tmp_path).rglob("*") if path.suffix in (".part", ".tmp")]
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(("end", "status"), [("SIGINT", 130), ("SIGKILL", -signal.SIGKILL)])
def test_what_prepares_ends_with_the_command(end, status, trained, tmp_path):
    """Where only the command is told to end, as a scheduler or a time limit does."""
    running = started(trained, tmp_path, "Quantize with")
    running.send_signal(signal.Signals[end])
    _, errors = running.communicate(timeout=60)  # until nobody holds its pipes any more
    assert running.returncode == status and "Traceback" not in errors
    assert not (tmp_path / "models" / "int8.pb").exists()


def test_what_ends_the_process_that_prepares_is_said():
    with pytest.raises(UserError, match="reads and quantizes the model was ended by signal SIGAB"):
        preparing.apart(os.abort)
    with pytest.raises(UserError, match="There is no model at nowhere.pb"):
        preparing.apart(reading.read, Path("nowhere.pb"))
    assert preparing.apart(max, 3, 4) == 4


class Gone(Exception):
    """In the place of a process that another Python takes over."""


def handed_over(monkeypatch, words):
    """What env_current's Python would be started with: (path, arguments, environment)."""

    def leave(*how):
        raise Gone(*how)

    monkeypatch.setattr(candidate, "current_absent", lambda: None)
    monkeypatch.setattr(command.os, "execve", leave)
    with pytest.raises(Gone) as caught:
        command.main(words)
    return caught.value.args


def test_todays_tensorflow_goes_on_with_the_same_arguments(monkeypatch):
    words = ["net.pb", "--data", "x.npz", "--scale=1/127.5,-1", "--shape", "8,8,3", "--quick"]
    words += ["--tolerance=-1", "--output", "a folder"]
    python, given, variables = handed_over(monkeypatch, [*words, "--runtime", "tensorflow"])
    assert python == given[0] == str(ROOT / "env_current" / "bin" / "python")
    assert str(ROOT) in variables["PYTHONPATH"]
    again, before = command.parse(given[4:]), command.parse(words)
    assert vars(again) == {**vars(before), "runtime": "tensorflow"}


def test_a_file_of_keras_2_is_read_by_keras_2(keras_model, tmp_path, monkeypatch):
    keras_model.save(tmp_path / "mine.h5")
    words = [str(tmp_path / "mine.h5"), "--output", str(tmp_path / "out")]
    _, given, _ = handed_over(monkeypatch, [*words, "--runtime", "tensorflow"])
    folder = Path(given[4])
    assert (folder.name, folder.is_relative_to(tmp_path / "out")) == ("mine", True)
    source, x = reading.read(folder), images(5)
    names = keras_model.input_names[0], keras_model.output_names[0]
    assert (source.kind, source.input_name, source.output_name) == ("SavedModel", *names)
    assert np.allclose(source.predict(x), keras_model(x), atol=1e-5)


def test_where_todays_tensorflow_is_absent_the_sentence_says_how_to_get_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(candidate, "CURRENT", tmp_path)
    assert command.main(["net.keras", "--runtime", "tensorflow"]) == 1
    assert "run ./set_env.sh --current, or leave --runtime" in capsys.readouterr().err
    monkeypatch.setattr(machine, "has_itex", lambda: False)
    assert command.main(["net.keras", "--runtime", "itex"]) == 1
    assert "Intel's extension is not installed" in capsys.readouterr().err


def times(verdict, median):
    around = {"median": median, "low": 0.95 * median, "high": 1.05 * median}
    return {"throughput_times": around, "verdict": verdict}


@pytest.mark.parametrize(
    ("int8", "bf16", "sentence"),
    [
        ([("faster", 2.0), ("no effect", 1.0)], [], None),
        (
            [("slower", 0.7), ("slower", 0.85)],
            [],
            "at batch 1 and 32: it is 0.70 and 0.85 times as fast as FP32. Stay with FP32 there.",
        ),
        (
            [("slower", 0.7), ("faster", 1.5)],
            [("faster", 1.4), ("no effect", 1.0)],
            "at batch 1: it is 0.70 times as fast as FP32. Take BF16 there, which is 1.40 times as",
        ),
        ([("slower", 0.7), ("faster", 2)], [("slower", 0.9), ("faster", 2)], "Stay with FP32"),
        (
            [("faster", 1.5), ("faster", 2.0)],
            [("faster", 1.6), ("faster", 2.5)],
            "BF16 is faster than INT8 on this CPU at batch 32: 2.50 times as fast as FP32, where "
            "INT8 is 2.00 times.",
        ),
    ],
)
def test_a_network_that_loses_by_int8_is_told_so(int8, bf16, sentence):
    ratios = [
        {"candidate": name, "baseline": "FP32", "batch_size": size, **times(*one)}
        for name, entries in (("INT8", int8), ("BF16", bf16))
        for size, one in zip((1, 32), entries)
    ]
    names = ["FP32", *["BF16"] * bool(bf16), "INT8"]
    told = command.advice(
        {
            "candidates": [{"name": name} for name in names],
            "settings": {"batch_sizes": [1, 32]},
            "ratios": ratios,
        }
    )
    assert sentence in told if sentence else told == ""


@pytest.mark.parametrize("labelled", [True, False])
def test_a_loss_that_only_the_report_shows_is_told(labelled):
    def told(int8, tolerance):
        right = {"FP32": 0.99, "INT8": int8} if labelled else {}
        accuracies = {name: {"images": 100, "top1": share} for name, share in right.items()}
        result = {
            "candidates": [{"name": n, "accuracy": accuracies.get(n)} for n in ("FP32", "INT8")],
            "agreement": {"INT8": {"top1": int8 + 0.01}},
        }
        given = data.Data(*[None] * 5, made_up=False)
        trials = [ladder.Trial("per channel", 0.9, 0.0, True, Path("int8.pb"))]
        ready = preparing.Prepared(None, ("in", "out"), "accuracy", tolerance, trials, {}, None)
        return command.closing(result, [{"int8": True}], given, ready)

    assert "a loss of 4.00 points, more than the 3 that may be lost" in told(0.95, 3)
    assert "a loss of" not in told(0.97, 3)
