"""What really ran, as oneDNN's log tells it."""

import numpy as np
import pytest
from conftest import SHAPE, images

from helpers import UserError, benchmark, graphs, machine, stats
from helpers.benchmark import Candidate, kernels
from helpers.benchmark.kernels import Primitive
from helpers.quantize import freeze, quantize

HEAD = "onednn_verbose,primitive,exec,cpu"
LINES = [
    "onednn_verbose,info,oneDNN v3.3.0",
    f"{HEAD},reorder,jit:uni,undef,src_f32::blocked:abcd:f0 dst_u8::blocked:acdb:f0,,,32x3x8x8,0.5",
    f"{HEAD},convolution,brgconv:avx512_core_amx,forward_inference,src_u8:a:blocked:acdb:f0 "
    "wei_s8:a:blocked:x:f0 bia_f32:a:blocked:a:f0 dst_u8:a:blocked:acdb:f0,attr,"
    "alg:convolution_direct,mb32_ic3oc8_ih8oh8kh3sh1dh0ph1_iw8ow8kw3sw1dw0pw1,2",
    f"{HEAD},matmul,brg:avx512_core,undef,src_f32::blocked:ab:f0 wei_f32::blocked:ab:f0 "
    "dst_f32::blocked:ab:f0,,,32x8:8x10,1.5",
    "onednn_verbose,graph,exec,cpu,0,quantized_conv,x,src_u8 wei_s8:,9",
]


def test_lines_of_the_log_by_value():
    assert kernels.parse(LINES) == [
        Primitive("reorder", None, "jit:uni", "f32 to u8", 0.5),
        Primitive("convolution", "s8", "brgconv:avx512_core_amx", "3×3", 2.0),
        Primitive("matmul", "f32", "brg:avx512_core", "", 1.5),
    ]
    entry = kernels.by_weights(kernels.parse(LINES), call_ms=8.0)
    assert entry == {"f32": {"count": 1, "share": 0.1875}, "s8": {"count": 1, "share": 0.25}}
    assert kernels.by_weights(kernels.parse(LINES))["s8"] == {"count": 1, "share": None}
    assert kernels.describe(entry) == "1 f32, 1 s8"


def test_lines_as_the_onednn_of_todays_tensorflow_writes_them():
    lines = [
        "onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx512_core_vnni,"
        "forward_training,src:s8::blocked:acdb::f0 wei:s8:ap:blocked:AcdB16a4b::f1:s8m1 "
        "bia:f32:a:blocked:a::f0 dst:u8::blocked:acdb::f0,attr-post-ops:eltwise_relu,"
        "alg:convolution_direct,mb4_ic3oc8_ih16oh14kh3sh1dh0ph0_iw16ow14kw3sw1dw0pw0,0.0261",
        "onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:u8::blocked:acdb::f0 "
        "dst:f32::blocked:acdb::f0,attr-scales:src0:0:f32,,4x1x1x8,0.5",
        "onednn_verbose,v1,primitive,exec,cpu,gemm_api,,undef,src_f32::blocked:ab:f0 "
        "wei_f32::blocked:ab:f0 dst_f32::blocked:ab:f0,,,4x8:8x10,0.25",
    ]
    assert kernels.parse(lines) == [
        Primitive("convolution", "s8", "brg_conv_fwd:avx512_core_vnni", "3×3", 0.0261),
        Primitive("reorder", None, "jit:uni", "u8 to f32", 0.5),
        Primitive("matmul", "f32", "", "", 0.25),
    ]


def ran(**counts):
    return {kind: {"count": count, "share": None} for kind, count in counts.items()}


@pytest.mark.parametrize(
    ("name", "executed", "words"),
    [
        ("FP32", ran(f32=7), None),
        ("FP32", ran(s8=7), "swapped graphs"),
        ("FP32 stock", ran(bf16=7), "is to run in FP32"),
        ("INT8", ran(s8=7), None),
        ("INT8", ran(f32=1, s8=6), None),  # a mixture, which the report shows
        ("INT8", ran(f32=7), "No layer of INT8 ran with s8 weights (they ran as 7 f32)"),
        ("BF16", ran(f32=7), "did auto mixed precision take it"),
        ("BF16", ran(bf16=7), None),
        ("BF16", {}, None),  # the runtime does not tell
        ("per channel", ran(f32=7), None),  # promises nothing
    ],
)
def test_what_ran_is_what_the_name_says(name, executed, words):
    found = kernels.mistake(Candidate(name, None), executed)
    assert (found is None) if words is None else words in found


def test_kernels_of_a_call_are_asked_for_in_the_worker(small):
    x = images(4)
    assert {kind for _, kind, _ in benchmark.executed_kernels(small["fp32"], x)} == {"f32"}
    int8 = benchmark.executed_kernels(small["int8"], x)
    assert {kind for _, kind, _ in int8} == {"s8"} and sum(int8.values()) == 3


def test_profile_accounts_for_the_call(small):
    ms, executed = benchmark.profile(small["int8"], images(4), [4], calls=3)[4]
    assert {("convolution", "3×3"), ("matmul", "")} <= {(p.primitive, p.kind) for p in executed}
    assert 0 < sum(primitive.ms for primitive in executed) < ms


def test_without_itex_tensorflow_tells_what_its_passes_left(small):
    how = {"stock": True}
    _, executed = benchmark.profile(small["fp32"], images(4), [4], calls=1, **how)[4]
    assert [(p.primitive, p.weights) for p in executed].count(("convolution", "f32")) == 2
    assert all(primitive.ms is None for primitive in executed)


def test_a_process_that_dies_while_profiled_is_a_sentence(small, tmp_path):
    with pytest.raises(UserError, match="FP32|profiled"):
        benchmark.profile(tmp_path / "absent.pb", images(2), [2])


def test_the_mean_at_the_end_runs_in_int8(tmp_path):
    """As an average pool from bytes to bytes: what ResNet50's last stage depends on."""
    import tensorflow as tf

    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(16, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    fp32 = freeze(model, tmp_path / "fp32.pb")
    int8 = quantize(fp32, images(16), tmp_path / "int8.pb")
    _, executed = benchmark.profile(int8, images(4), [4], calls=1)[4]
    pools = [primitive for primitive in executed if primitive.primitive == "pooling"]
    assert [pool.kind for pool in pools] == ["u8 to u8"]


def test_a_swapped_pair_is_refused(small, tmp_path):
    with pytest.raises(UserError, match=r"FP32 is to run in FP32, but .* as 3 s8.*not timed"):
        benchmark.compare(
            benchmark.candidates(small["int8"], small["fp32"], bf16=False),
            *(tmp_path, "small", images(8)),
            progress=False,
        )
    assert not (tmp_path / "result.json").exists()


@pytest.mark.skipif(not machine.has_bf16(), reason="this CPU has no BF16 instructions")
def test_bf16_runs_in_bf16(small, tmp_path):
    bf16 = Candidate("BF16", small["fp32"], benchmark.BF16_KNOBS)
    how = {"knobs": bf16.knobs}
    _, executed = benchmark.profile(small["fp32"], images(4), [4], calls=1, **how)[4]
    assert {layer.weights for layer in executed if layer.weights} == {"bf16"}


def test_a_bf16_that_is_not_one_is_refused(small, tmp_path, monkeypatch):
    """As where the knob is ignored: FP32 would be measured twice, and everything pass."""
    monkeypatch.setattr(machine, "has_bf16", lambda: True)
    chosen = [Candidate("FP32", small["fp32"]), Candidate("BF16", small["fp32"])]
    with pytest.raises(UserError, match="No layer of BF16 ran with bf16 weights"):
        benchmark.compare(chosen, tmp_path, "small", images(8), progress=False)


def test_stock_leaves_itex_out(small):
    import tensorflow as tf

    def of_itex(stock):
        graph = graphs.FrozenGraph(small["fp32"], stock=stock)
        options = tf.compat.v1.RunOptions(output_partition_graphs=True)
        metadata = tf.compat.v1.RunMetadata()
        feed = {graph.signature.input + ":0": images(2)}
        output = graph.signature.output + ":0"
        graph.session.run(output, feed, options=options, run_metadata=metadata)
        ops = {node.op for part in metadata.partition_graphs for node in part.node}
        return {op for op in ops if "ITEX" in op or op.startswith("OneDnn")}

    assert of_itex(stock=False) and not of_itex(stock=True)


@pytest.mark.skipif(not machine.has_bf16(), reason="this CPU has no BF16 instructions")
def test_stock_bf16_is_not_fp32(small, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    x = images(4)
    plain = graphs.FrozenGraph(small["fp32"], stock=True)(x)
    for name, value in benchmark.BF16_KNOBS.items():
        monkeypatch.setenv(name, value)
    mixed = graphs.FrozenGraph(small["fp32"], stock=True)(x)
    assert (mixed != plain).any()
    assert 20 < stats.sqnr_db(plain, mixed) < 80


def test_operations_by_hand(small):
    count = graphs.operations(graphs.read_graph(small["fp32"]), SHAPE)
    first, second, dense = count.values()
    assert first == 2 * (32 * 32 * 16) * (3 * 3 * 3)
    assert second == 2 * (15 * 15 * 16) * (3 * 3 * 16)
    assert dense == 2 * (15 * 15 * 16) * 10
    assert np.isscalar(first)
