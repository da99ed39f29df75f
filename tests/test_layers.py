"""What became of each layer: at run time, by name; its time; its cost; the words about it."""

import json
import math

import numpy as np
import pytest
from conftest import SHAPE, images

from helpers import UserError, benchmark, graphs, stats
from helpers.benchmark import kernels
from helpers.quantize import freeze, ladder, layers, quantize

HEAD = "onednn_verbose,primitive,exec,cpu"
GRAPH = "onednn_verbose,graph,exec,cpu,7"
PROBLEM = "mb2_ic8oc8_ih9oh9kh3sh1dh0ph1_iw9ow9kw3sw1dw0pw1"
CONV = {"mb": 2, "g": 1, "ic": 8, "oc": 8, "oh": 9, "ow": 9, "kh": 3, "kw": 3, "ih": 9, "iw": 9}
KEPT = "left in FP32 to keep the accuracy"


def convolution(weights, ms, problem=PROBLEM):
    types = f"src_u8::blocked:acdb::f0 wei_{weights}:a:blocked:x::f0 dst_u8::blocked:acdb::f0"
    return f"{HEAD},convolution,jit:{weights},forward_inference,{types},attr,alg:x,{problem},{ms}"


def piece(names, kind="quantized_convolution_post_ops", backend="dnnl_backend"):
    tensors = "in0_u8:1:strided:undef:2x9:9s1 out0_u8:2:strided:undef:2x9:9s1"
    return f"{GRAPH},{kind},{names},,{tensors},fpm:strict,{backend},0.5"


def matched(sizes, lines):
    return layers._matched(sizes, kernels.parse(lines))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """(fp32, int8): depthwise, grouped and equal convolutions, a product, dense; one left float."""
    import tensorflow as tf

    folder, of = tmp_path_factory.mktemp("mixed"), tf.keras.layers
    tf.keras.utils.set_random_seed(0)
    start = of.Input(SHAPE)
    x = of.Conv2D(16, 3, strides=4, padding="same", activation="relu", name="stem")(start)
    x = of.ReLU(6.0)(of.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    x = of.Conv2D(16, 1, activation="relu", name="kept")(x)
    x = of.Conv2D(16, 1, activation="relu", name="equal")(x)
    x = of.Conv2D(32, 3, groups=4, strides=2, activation="relu", name="grouped")(x)
    x = of.Reshape((9, 32))(x)
    x = of.Flatten()(of.Dot(2, name="product")([x, x]))
    x = of.Dense(16, activation="relu", name="hidden")(x)
    model = tf.keras.Model(start, of.Dense(10, name="logits")(x))
    fp32 = freeze(model, folder / "fp32.pb")
    (kept,) = (one.name for one in graphs.layers(graphs.read_graph(fp32)) if "kept" in one.name)
    int8 = quantize(fp32, images(16), folder / "int8.pb", float_layers=[kept])
    return fp32, int8


def test_a_network_that_is_all_int8(small):
    x = images(8)
    rows = layers.layers(small["fp32"], small["int8"], x, batch_size=4)
    graph_def, fp32 = graphs.read_graph(small["int8"]), graphs.FrozenGraph(small["fp32"])
    names = [layer.name for layer in graphs.layers(graphs.read_graph(small["fp32"]))]
    assert [row["name"] for row in rows] == names and len(names) == 3
    assert all(row["int8"] and row["why"] is None for row in rows)
    assert all(0 < row["share"] < 1 for row in rows) and sum(row["share"] for row in rows) < 1
    others = graphs.leave_float(graph_def, names[1:])
    alone = stats.sqnr_db(fp32(x), graphs.FrozenGraph(others)(x))
    assert rows[0]["sqnr_db"] == pytest.approx(alone, abs=0.1) and 10 < alone < 100
    json.dumps(rows, allow_nan=False)


def test_what_stays_float_says_why(mixed):
    fp32, int8 = mixed
    x = images(4)
    ms, executed = benchmark.profile(int8, x, [4], calls=1)[4]
    (kept,) = (one.name for one in graphs.layers(graphs.read_graph(int8)) if "kept" in one.name)
    rows = layers.layers(fp32, int8, x, {kept: KEPT}, batch_size=4, executed=(ms, executed))
    by_name = {row["name"].split("/")[1]: row for row in rows}
    assert list(by_name) == [
        *("stem", "depthwise", "kept", "equal", "grouped", "product", "hidden", "logits")
    ]
    why = {name: row["why"] for name, row in by_name.items() if not row["int8"]}
    assert why.pop("kept") == KEPT
    assert why.pop("grouped") == "a grouped convolution, which ITEX cannot run in INT8"
    assert why.pop("product") == "its kernel is not constant: a product of two activations"
    assert why == {}
    # `kept` and `equal` are of one shape: the piece's name tells them apart
    spent = {one.names[-1]: one.ms for one in executed if one.weights == "s8"}
    floats = [one.ms for one in executed if one.weights == "f32"]
    assert len(floats) == 3 and len(spent) == 5
    assert by_name["kept"]["share"] == pytest.approx(floats[0] / ms)
    assert by_name["grouped"]["share"] == pytest.approx(floats[1] / ms)
    assert by_name["product"]["share"] == pytest.approx(floats[2] / ms)
    assert all(row["share"] for row in rows)
    assert [name for name, row in by_name.items() if row["sqnr_db"] is None] == [
        *("kept", "grouped", "product")
    ]
    summary = layers.outside(ms, executed)
    shares = {kind: sum(row["share"] for row in rows if row["int8"] == kind) for kind in (0, 1)}
    assert summary["s8"] == pytest.approx(shares[1])
    assert summary["float"] == pytest.approx(shares[0])
    # the call that is divided by is another one than was logged, and may have been quicker
    logged = sum(one.ms or 0 for one in executed)
    quick = layers.layers(fp32, int8, x, batch_size=4, executed=(logged / 2, executed))
    in_layers = sum(spent.values()) + sum(floats)
    assert sum(row["share"] for row in quick) == pytest.approx(in_layers / logged)


def test_operations_per_byte(mixed):
    _, int8 = mixed
    found = layers._sizes(graphs.read_graph(int8), (4, *SHAPE))
    per_byte = {name.split("/")[1]: layers._intensity(one["sizes"]) for name, one in found.items()}
    operations = graphs.operations(graphs.read_graph(int8), SHAPE)
    for name, moved in (
        ("stem", 4 * (32 * 32 * 3 + 8 * 8 * 16) + 3 * 3 * 3 * 16),
        ("depthwise", 4 * (2 * 8 * 8 * 16) + 3 * 3 * 16),
        ("grouped", 4 * (8 * 8 * 16 + 3 * 3 * 32) + 3 * 3 * 4 * 32),
        ("hidden", 4 * (81 + 16) + 81 * 16),
    ):
        (count,) = (count for layer, count in operations.items() if f"/{name}/" in f"{layer}/")
        assert per_byte[name] == pytest.approx(4 * count / moved), name
    assert per_byte["product"] == pytest.approx(2 * 4 * 9 * 9 * 32 / (4 * (2 * 9 * 32 + 81)))


def test_names_of_pieces_decide_between_equal_layers():
    lines = [convolution("s8", 1), piece("b_dequantize;b;relu"), convolution("s8", 3), piece("a")]
    ran = matched({"a": CONV, "b": CONV}, lines)
    assert ran == {"a": ("s8", "jit:s8", 3.0), "b": ("s8", "jit:s8", 1.0)}


def test_a_float_layer_before_a_piece_is_not_the_pieces():
    lines = [
        *(convolution("f32", 5), convolution("s8", 1), piece("b")),
        *(convolution("f32", 7), piece("a_quantize", "misc_post_ops")),
    ]
    ran = matched({"a": CONV, "b": CONV, "c": CONV}, lines)
    assert {name: ms for name, (_, _, ms) in ran.items()} == {"b": 1.0, "a": 5.0, "c": 7.0}


def test_layers_without_a_name_are_found_by_their_sizes():
    grouped = {**CONV, "g": 4}
    wide, unknown = {**CONV, "oc": 16}, {**CONV, "kh": None, "kw": None}
    product = {"product": ((32, 8), (8, 10))}
    several = {"product": ((2, 4, 8), (2, 8, 4))}
    lines = [
        f"{HEAD},matmul,gemm,undef,src_f32::blocked:ab wei_f32::blocked:ab,,,32x8:8x10,4",
        f"{HEAD},matmul,gemm,undef,src_f32::blocked:ab wei_f32::blocked:ab,,,2x4x8:2x8x4,6",
        f"{HEAD},inner_product,gemm,undef,src_f32::blocked:ab wei_f32:: x,,,mb32ic8oc10,8",
        f"{HEAD},matmul,gemm,undef,src_f32::blocked:ab wei_f32::blocked:ab,,,*x8:8x10,9",
        convolution("f32", 5),
        convolution("f32", 1, "g4" + PROBLEM),
        convolution("f32", 2, PROBLEM.replace("oc8", "oc16")),
        convolution("f32", 3, PROBLEM.replace("kh3", "kh5").replace("kw3", "kw5")),
    ]
    sizes = dict(g=grouped, c=CONV, w=wide, u=unknown, p=product, s=several, i=product, no=CONV)
    ran = matched(sizes, lines)
    spent = {name: ms for name, (_, _, ms) in ran.items()}
    assert spent == {"c": 5.0, "g": 1.0, "w": 2.0, "u": 3.0, "p": 4.0, "s": 6.0, "i": 8.0}


def test_a_piece_of_the_graph_compiler_has_no_primitives():
    """As on CPUs with AVX-512: two layers in one piece, whose times cannot be told apart."""
    lines = [convolution("s8", 1), piece("a"), piece("b;relu;c", "mlp", "compiler_backend")]
    executed = kernels.parse(lines)
    assert [(one.primitive, one.weights, one.ms) for one in executed] == [
        *(("convolution", "s8", 1.0), ("partition", "s8", 0.5))
    ]
    ran = layers._matched({"a": CONV, "b": CONV, "c": CONV}, executed)
    assert ran["a"][2] == 1.0 and ran["b"] == ran["c"] == ("s8", "compiler_backend", None)


def test_quantized_in_the_file_but_not_executed_so():
    assert layers._at_run_time("f32", "brg") == "quantized in the file, but executed in f32 (brg)"
    assert "does not show it" in layers._at_run_time(None, None)


def test_what_a_process_cannot_run_is_a_sentence(small, tmp_path):
    with pytest.raises(UserError, match="no model at"):
        layers.layers(small["fp32"], tmp_path / "absent.pb", images(2))
    with pytest.raises(UserError, match="no log of ITEX's oneDNN"):
        layers.layers(small["fp32"], small["int8"], images(2), executed=(None, []))


def test_parts_of_a_call():
    lines = [convolution("s8", 2), convolution("f32", 1)]
    lines += [f"{HEAD},reorder,jit,undef,src_f32:: dst_u8::,,,2x9,3"]
    parts = layers.outside(10, kernels.parse(lines))
    assert parts == pytest.approx({"s8": 0.2, "float": 0.1, "other": 0.3, "outside": 0.4})
    assert sum(layers.outside(4, kernels.parse(lines)).values()) == pytest.approx(1)
    assert set(layers.outside(None, []).values()) == {None}


def row(int8=True, share=0.1, why=None, operations_per_byte=100.0):
    names = {"name": "x", "op": "Conv2D", "sqnr_db": 40.0}
    return dict(names, int8=int8, share=share, why=why, operations_per_byte=operations_per_byte)


def entry(median, width=0.01, verdict="faster"):
    bounds = {"median": median, "low": median - width, "high": median + width}
    return {"throughput_times": bounds, "verdict": verdict}


PARTS = {"s8": 0.97, "float": 0.0, "other": 0.02, "outside": 0.01}
TIMES = {1: entry(3.0), 32: entry(3.0)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"level": "none"}, "no INT8 instructions"),
        (
            {"rows": [row(), row(False, 0.3, KEPT), row(False, 0.1, "grouped")]},
            f"2 of 3 layers did not run in INT8 and take 40 % of a call (1 of them: {KEPT})",
        ),
        (
            {"rows": [row(), row(False, 0.3, KEPT)]},
            f"1 of 2 layers did not run in INT8 and takes 30 % of a call ({KEPT})",
        ),
        ({"rows": [row(), row(False, 0.01, KEPT)]}, None),
        (
            {"summary": {**PARTS, "other": 0.25, "outside": 0.1}},
            "35 % of a call is not in layers (25 % in conversions, pools and other primitives of "
            "oneDNN, 10 % outside oneDNN)",
        ),
        ({"summary": dict.fromkeys(PARTS)}, None),
        ({"times": {1: entry(1.5), 32: entry(3.0)}}, "the ratio at batch 32 is 2.00 times that"),
        ({"times": {1: entry(2.9, 0.2), 32: entry(3.0)}}, None),
        ({"times": {1: entry(3.0), 32: entry(1.5)}}, None),
        (
            {"rows": [row(), row(share=0.2, operations_per_byte=9.0)]},
            "20 % of a call is in 1 INT8 layer with fewer than 20 operations per byte",
        ),
        ({"rows": [row(), row(False, 0.2, KEPT, 9.0)]}, "takes 20 % of a call"),
        ({"rows": [row(operations_per_byte=None)]}, None),
    ],
)
def test_every_cause_has_its_number(changed, words):
    said = {"rows": [row()], "summary": PARTS, "times": TIMES, "level": "AMX", **changed}
    text = layers.explanation(**said)
    causes = text.partition("What keeps it from being faster: ")[2]
    assert causes == "" if words is None else words in causes and "; " not in causes


def test_how_fast_it_is_stands_first():
    times = {32: entry(2.5), 1: entry(1.25, 0.3, "not resolved"), 8: entry(2.0)}
    text = layers.explanation([row()], PARTS, times, "VNNI")
    assert text.startswith(
        "INT8 is 1.25 times as fast as FP32 at batch 1 (0.95 to 1.55, not resolved), 2.00 times at "
        "batch 8 (1.99 to 2.01) and 2.50 times at batch 32 (2.49 to 2.51). "
    )
    assert layers.explanation([row()], PARTS, TIMES, "VNNI").endswith(
        ". 97 % of a call is in INT8 layers."
    )
    assert layers.explanation([], dict.fromkeys(PARTS), {}, "AMX") == ""


def test_a_largest_cause_stands_first():
    summary = {**PARTS, "other": 0.1, "outside": 0.1}
    rows = [row(False, 0.4, KEPT), row()]
    text = layers.explanation(rows, summary, TIMES, "AMX")
    assert text.index("did not run in INT8") < text.index("not in layers")


def test_costs_are_numbers_that_json_has(monkeypatch, small):
    ratios = {"same": np.inf, "nan": np.nan, "plain": 12.5}
    monkeypatch.setattr(layers.ladder.machine, "in_own_process", lambda *words: ratios)
    found = layers._costs(small["fp32"], small["int8"], images(2))
    assert found == {"same": 200.0, "nan": None, "plain": 12.5}


def test_layers_are_judged_alone_in_the_order_asked_for_until_time_is_up(small, tmp_path):
    np.save(tmp_path / "images.npy", images(2))
    job = str(small["fp32"]), str(small["int8"]), str(tmp_path / "images.npy")
    names = list(ladder.each_layer_alone(*job, [], math.inf))
    assert len(names) > 1
    turned = ladder.each_layer_alone(*job, names[::-1], math.inf, chunk=1)
    assert list(turned) == names[::-1]
    assert ladder.costs(*job[:2], images(2), seconds=0) == {}
