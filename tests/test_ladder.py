import numpy as np
import pytest
import tensorflow as tf
from conftest import images

from helpers import UserError, graphs, stats
from helpers.quantize import climb, equalizing, freeze, ladder


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A network that INT8 ruins: four channels are 4,096 times as large as the others between two
    layers, which leaves FP32 as it was. (fp32 path, inputs, healthy GraphDef)"""
    folder = tmp_path_factory.mktemp("broken")
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.MaxPool2D(2),
            layers.Conv2D(16, 3, activation="relu"),
            layers.GlobalMaxPool2D(),
            layers.Dense(10),
        ]
    )
    healthy = graphs.read_graph(freeze(model, folder / "healthy.pb"))
    values = graphs.weights(healthy)
    first, second, *_ = values
    loud = 2.0 ** (12 * (np.arange(16) < 4))
    values[first] = [array * loud.astype(np.float32) for array in values[first]]
    values[second][0] /= loud.astype(np.float32)[:, None]
    path = graphs.write_graph(graphs.with_weights(healthy, values), folder / "fp32.pb")
    return path, images(200, seed=3)[:, ::2, ::2] / 64, healthy


def test_pairs_are_layers_with_nothing_between_that_mixes_channels(broken):
    _, _, healthy = broken
    names = list(graphs.weights(healthy))
    assert equalizing.pairs(healthy) == [
        (names[0], names[1]),
        (names[1], names[2]),
    ] + [(names[2], names[3])] * (len(names) == 5)


def test_equalizing_changes_no_output_and_evens_out_the_ranges(broken):
    path, inputs, _ = broken
    even = equalizing.equalize(graphs.read_graph(path))
    wanted = graphs.FrozenGraph(path).predict(inputs)
    assert stats.sqnr_db(wanted, graphs.FrozenGraph(even).predict(inputs)) > 80
    first, second, *_ = graphs.weights(even)
    kernel = graphs.weights(even)[first][0]
    largest = np.abs(kernel).max((0, 1, 2))
    read = np.abs(graphs.weights(even)[second][0]).max((0, 1, 3))
    assert np.allclose(largest, read, rtol=0.02)


def test_a_relu6_or_a_second_reader_makes_no_pair(tmp_path):
    layers = tf.keras.layers
    given = layers.Input((8, 8, 3))
    x = layers.ReLU(6)(layers.Conv2D(4, 3)(given))
    y = layers.Conv2D(4, 3, padding="same")(x)
    z = layers.Conv2D(4, 3, padding="same")(layers.Add()([y, layers.ReLU()(y)]))
    model = tf.keras.Model(given, z)
    graph_def = graphs.read_graph(freeze(model, tmp_path / "model.pb"))
    assert equalizing.pairs(graph_def) == [] and equalizing.equalize(graph_def) is None


def test_the_ladder_mends_with_every_layer_in_int8(broken, tmp_path, capsys):
    path, inputs, _ = broken
    judge = ladder.Judge(path, inputs)
    trials, why = climb(path, inputs[:100], judge, 3.0, tmp_path)
    assert judge.baseline == 1 and judge.word == "agreement with FP32"
    assert not trials[0].passed and trials[-1].passed and not why
    assert trials[-1].name == "cross-layer equalization"
    assert all(layer.int8 for layer in graphs.layers(graphs.read_graph(trials[-1].graph)))
    printed = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in printed] == [f"{number}." for number in range(1, len(trials) + 1)]


def test_what_no_attempt_can_hold_ends_with_layers_back_in_fp32(small, tmp_path):
    judge = ladder.Judge(small["fp32"], images(60, seed=5))
    trials, why = climb(small["fp32"], images(32, seed=1), judge, -1.0, tmp_path)
    assert not trials[-1].passed and trials[-1].name == "1 layer back in FP32"
    assert [reason for reason in why.values()] == ["back in FP32 to keep the accuracy"]


def test_labels_are_what_decides_where_there_are_some(small):
    x = images(60, seed=5)
    labels = ladder.classes(graphs.FrozenGraph(small["fp32"]).predict(x))
    labels[:15] = (labels[:15] + 1) % 10
    judge = ladder.Judge(small["fp32"], x, labels)
    assert judge.baseline == 0.75 and judge.word == "accuracy"
    assert 0.6 < judge(small["int8"]) <= 0.85


def test_a_graph_that_runs_is_judged_by_that_run(small, tmp_path, monkeypatch):
    """Each process takes seconds to import TensorFlow."""
    asked, outputs = [], ladder.benchmark.outputs
    monkeypatch.setattr(
        ladder.benchmark, "outputs", lambda graph, x: asked.append(graph) or outputs(graph, x)
    )
    judge = ladder.Judge(small["fp32"], images(60, seed=5))
    trials, _ = climb(small["fp32"], images(32, seed=1), judge, 100.0, tmp_path)
    assert asked == [small["fp32"], trials[0].graph]
    assert judge(trials[0].graph) == trials[0].accuracy and len(asked) == 3


def test_one_number_is_a_yes_or_a_no():
    assert ladder.classes(np.array([[0.2], [0.7]])).tolist() == [0, 1]
    assert ladder.classes(np.array([[-3.0], [2.0]])).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [{"c"}, {"a", "f"}, {"d", "e", "f"}, set()])
def test_culprits_are_found_by_halving(bad):
    asked = []

    def ends(left):
        asked.append(left)
        return bool(bad & set(left))

    assert set(ladder.culprits("abcdef", ends)) == bad
    assert len(asked) <= 2 + 4 * len(bad)


def test_two_layers_that_end_a_process_only_together():
    (one,) = ladder.culprits("abcdef", lambda left: {"b", "e"} <= set(left))
    assert one == "e"


def test_when_it_is_not_the_layers_that_is_said():
    with pytest.raises(UserError, match="even with every layer in FP32"):
        ladder.culprits("abc", lambda left: True)
    with pytest.raises(UserError, match="Without 2 layers"):
        ladder.culprits("abcd", lambda left: len(left) > 1, most=2)
