"""INT8 in integer operations: what TensorFlow itself runs, without ITEX, in 2.15 as in today's.

In place of the QuantizeV2 and Dequantize around float layers that ITEX wants, the layers are
TensorFlow's own integer operations, which oneDNN executes (TF_ENABLE_ONEDNN_OPTS=1 in the process
that runs them: CPUs without AVX-512 have them off), and the file holds bytes. INC writes such a
graph, in an older and in a newer, fused form; both have the faults that are mended here.
"""

import contextlib
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

from helpers import UserError, files, graphs, machine
from helpers.quantize import folding, inc, linear_sums
from helpers.quantize.linear_sums import give, plain, set_bias

POOLS = ("QuantizedMaxPool", "QuantizedAvgPool")
FUSED, OLD = "fused", "old"
SUMMAND = 3  # its input of a fused operation
# supported_fusions of MklQuantizedConvOp in TensorFlow's mkl_conv_ops.cc
FUSIONS = {
    *((b"BiasAdd",), (b"Relu",), (b"Requantize",), (b"BiasAdd", b"Relu")),
    *((b"BiasAdd", b"Requantize"), (b"Relu", b"Requantize"), (b"BiasAdd", b"Relu", b"Requantize")),
    *((b"BiasAdd", b"Sum", b"Relu"), (b"BiasAdd", b"Sum", b"Relu", b"Requantize")),
}


def quantize(
    source,
    images,
    path,
    *,
    form=FUSED,
    granularity="per_channel",
    batch_size=8,
    float_layers=(),
    algorithm="minmax",
    log=None,
):
    """Quantize the frozen graph `source` to integer operations, calibrated on `images`: `path`.

    The settings are those of inc.quantize, which see. `form` is INC's: "fused"
    (_FusedQuantizedConv2D: paddings and depthwise layers, too, are in the operations) or "old"
    (QuantizedConv2DWithBias…), which is also taken where the fused form has what TensorFlow cannot
    run. A `path` made of the same is taken as it is. Grouped convolutions stay FP32. Raises
    UserError as inc.quantize does.
    """
    source, path = Path(source).resolve(), Path(path).resolve()
    log = Path(log or path.with_suffix(".log")).resolve()
    if form not in (FUSED, OLD):
        raise UserError(f"There is no form '{form}'; there are '{FUSED}' and '{OLD}'.")
    original = graphs.read_graph(source)
    # TensorFlow has no integer kernel for them: "could not create a primitive descriptor"
    float_layers = sorted({*float_layers, *folding.grouped_convolutions(original)})
    settings = {"granularity": granularity, "batch_size": batch_size, "algorithm": algorithm}
    settings |= {"float_layers": float_layers, "log": log}

    def make():
        raw = _what_inc_writes(source, images, form, settings)
        mended = mend(raw)
        if not all(map(_has_kernel, raw.node)) or _without_signs(graphs.Network(mended)):
            raw = _what_inc_writes(source, images, OLD, settings)
            mended = mend(raw)
        _measure_summands(mended, original, np.asarray(images), batch_size)
        _narrow(mended)
        if machine.int8_level() != "none":  # else products of unsigned bytes are cut at 16 bits
            linear_sums.fuse(mended)
        graphs.write_graph(graphs.extract(mended, [graphs.find_signature(raw).output]), path)

    versions = [metadata.version(name) for name in ("tensorflow", "neural-compressor")]
    code = (sys.modules[__name__], graphs, folding, inc, linear_sums)
    made_of = (source, np.asarray(images), form, {**settings, "log": None}, *versions, *code)
    made_of += (machine.int8_level(),)
    return files.made_from(path, made_of, make)


def _what_inc_writes(source, images, form, settings):
    with tempfile.TemporaryDirectory() as scratch, _fused_form(form == FUSED, settings["log"]):
        path = Path(scratch) / "int8.pb"
        return graphs.read_graph(inc.quantize(source, images, path, form="legacy", **settings))


def _has_kernel(node):
    """Whether TensorFlow has a kernel for what INC's fused form writes into a convolution.

    INC writes more than there is: Elu, LeakyRelu, Swish ("Unsupported QuantizedConv fusion").
    """
    fused = node.op.startswith(("_FusedQuantizedConv", "_FusedQuantizedDepthwise"))
    return not fused or tuple(node.attr["fused_ops"].list.s) in FUSIONS


@contextlib.contextmanager
def _fused_form(wanted, log):
    """Have INC write its fused form in the block.

    It does so where the version of TensorFlow is in a list of Intel's own builds. The operations
    are in every TensorFlow since, 2.15.1 and 2.21 among them; so the version that runs is added to
    the list, of which modules of INC hold copies.
    """
    if not wanted:
        yield
        return
    import tensorflow as tf

    with inc.quiet(log):  # where INC has to be imported
        from neural_compressor.tensorflow import quantize_model  # noqa: F401
        from neural_compressor.tensorflow.algorithms.static_quant import tensorflow  # noqa: F401
    changed = []
    for name, module in list(sys.modules.items()):
        for copy in ("SPR_BASE_VERSIONS", "spr_base_verions"):  # the second is INC's spelling
            if name.startswith("neural_compressor.") and hasattr(module, copy):
                changed.append((module, copy, getattr(module, copy)))
                setattr(module, copy, (*getattr(module, copy), tf.version.VERSION))
    try:
        yield
    finally:
        for module, copy, before in changed:
            setattr(module, copy, before)


def layers(graph_def, source):
    """The graphs.Layer of the float graph `source` with what became of each in `graph_def`.

    `graph_def` is what `quantize` made of `source`, or of a graph with the same names.
    """
    made, float_layers = set(), graphs.layers(source)
    for layer in graphs.layers(graph_def):
        if layer.int8:  # <layer>_eightbit_requantize and the like
            made.add(layer.name.partition("_eightbit_")[0])
    _, given = inc.safe_names(source)
    safe = {name: safe_name for safe_name, name in given.items()}
    return [
        graphs.Layer(layer.name, layer.op, safe.get(layer.name, layer.name) in made)
        for layer in float_layers
    ]


def mend(graph_def):
    """What INC writes in integer operations (either form), with its faults mended: a GraphDef.

    1. `_start_at_zero`: a constant error in each output of a dense layer whose inputs were all
       above zero when it was calibrated.
    2. `_make_room`: a residual sum with a signed summand is cut at half of its range.
    3. `_keep_signs`: what a pool reads of a signed layer is cut at zero.
    The constants are written as Const in any case (under ITEX INC writes some as HostConst).
    """
    mended = type(graph_def)()
    mended.CopyFrom(graph_def)
    for node in mended.node:
        if node.op == "HostConst":
            node.op = "Const"
    network = graphs.Network(mended)
    _keep_signs(network, mended)
    _start_at_zero(network, mended)
    _make_room(network, mended)
    return graphs.extract(mended, [graphs.find_signature(graph_def).output])


def _keep_signs(network, graph_def):
    """Have pools behind signed layers read their signed bytes, in place.

    In INC's fused form they read unsigned ones, which a QuantizeV2 makes of the floats of a layer
    without a Relu, of a range that begins below zero: all that is negative becomes 0. In the older
    form a pool reads the bytes of the layer. One behind which more than a Dequantize stands is
    left as it is.
    """
    import tensorflow as tf

    signed = tf.qint8.as_datatype_enum
    for quantizer in _without_signs(network):
        pools = {reader.name: reader for reader, _ in network.readers[quantizer.name]}.values()
        ends = [reader for pool in pools for reader, _ in network.readers[pool.name]]
        if {pool.op for pool in pools} - {*POOLS} or {end.op for end in ends} != {"Dequantize"}:
            continue
        for node in (quantizer, *pools, *ends):
            node.attr["T"].type = signed
        behind = network.nodes[graphs.node_name(quantizer.input[0])]
        layer = network.nodes[graphs.node_name(behind.input[0])] if behind.input else behind
        if behind.op == "Dequantize" and layer.attr["out_type"].type == signed:
            for pool in pools:
                pool.input[:] = [layer.name, f"{layer.name}:1", f"{layer.name}:2"]


def _without_signs(network):
    """The nodes that make unsigned bytes of a range that begins below zero."""
    import tensorflow as tf

    found = []
    for node in [node for node in network.nodes.values() if node.op == "QuantizeV2"]:
        low, unsigned = network.value(node.input[1]), node.attr["T"].type == tf.quint8
        if unsigned and node.attr["mode"].s == b"SCALED" and low is not None and low < 0:
            found.append(node)
    return found


def _start_at_zero(network, graph_def):
    """Begin at 0 the ranges that INC begins above it, and make the biases again that hold that.

    INC quantizes what a dense layer reads with MIN_FIRST, from the smallest value `low` to the
    largest, `high`, and puts what the integers then lack, low · Σ weights, into the int32 bias
    (generate_int32_bias_for_matmul in its graph_util.py; the arithmetic is that of the head of
    TensorFlow's mkl_qmatmul_op.cc). But QuantizeV2 widens any range so that it holds 0
    (quantize_op.cc: min_range = std::min(0.0f, …)): where `low` is above 0, as behind the average
    pool of ResNet50, the integers lack nothing, and the term is an error in every output.
    """
    for node in [node for node in graph_def.node if node.op == "QuantizeV2"]:
        low, high = (network.value(source) for source in node.input[1:3])
        if node.attr["mode"].s != b"MIN_FIRST" or low is None or not 0 < low < high:
            continue
        low, high = float(low), float(high)
        give(graph_def, network, node, 1, np.float32(0))
        for layer, index in network.readers[node.name]:
            if index == 0 and _has_integer_bias(layer):
                weights = plain(network.value(layer.input[1])).astype(np.int64)
                bias = plain(network.value(layer.input[2]))
                lacking = weights.sum(axis=0)[: bias.size] * (255 * low / (high - low))
                set_bias(graph_def, network, layer, (bias - lacking) * ((high - low) / high))


def _make_room(network, graph_def):
    """Give twice the range to residual sums that TensorFlow cuts at half of it.

    Where the summand is signed and the sum, behind a Relu, unsigned, the kernel writes the sum into
    the bytes of the summand, as signed ones: MklQuantizedConvOp in TensorFlow's mkl_conv_ops.cc
    has the summand's type for oneDNN's destination, but scales for 255 steps. So all above 127 of
    them is cut. With a range 255/127 times as large the largest value is 127. Int32 biases of the
    layers that read it are in units of that range (INC's fused form has such) and are made again.
    """
    widened = set()
    for node in [node for node in graph_def.node if _is_signed_sum(node)]:
        index = len(node.input) - 1 if _is_fused(node) else 8
        high = np.float32(network.value(node.input[index]) * 255 / 127)
        give(graph_def, network, node, index, high)
        widened.add(node.name)
    for layer in [node for node in graph_def.node if _has_integer_bias(node)]:
        source = network.nodes[graphs.node_name(layer.input[0])]
        while source.op in POOLS:
            source = network.nodes[graphs.node_name(source.input[0])]
        if source.name in widened:
            bias = plain(network.value(layer.input[2]))
            set_bias(graph_def, network, layer, bias * (127 / 255))


def _narrow(graph_def):
    """Have floats of either sign use 127 steps on both sides of zero, in place.

    INC leaves QuantizeV2's narrow_range off. oneDNN's kernel then takes 127.5 steps to the end of
    the range (measured), and the layer behind 127 (int_const_scale_limit in mkl_conv_ops.cc): all
    that it computes is 127.5/127 too large, and the largest values are cut.
    """
    import tensorflow as tf

    for node in graph_def.node:
        if node.op == "QuantizeV2" and node.attr["T"].type == tf.qint8.as_datatype_enum:
            node.attr["narrow_range"].b = True


def _measure_summands(mended, source, images, batch_size):
    """Give signed summands of the fused form the range that they have in FP32, in place.

    There INC gives the layer that makes the summand the range of the sum (the Requantize behind
    the sum is the only one that it calibrates), which on ResNet50 is three times as large: the
    summand gets by with a third of its steps, and one that is larger than the sum would be cut.
    """
    network, original = graphs.Network(mended), graphs.Network(source)
    given = {re.sub("_{2,}", "_", name): name for name in original.nodes}  # as inc.quantize does
    summands = {}
    for node in [node for node in mended.node if _is_signed_sum(node) and _is_fused(node)]:
        summand = network.nodes[graphs.node_name(node.input[SUMMAND])]
        layer = given.get(summand.name.removesuffix("_eightbit_requantize"))
        readers = [reader for reader, _ in original.readers.get(layer, [])]
        if [reader.op for reader in readers] == ["BiasAdd"] and _is_fused(summand):
            summands[readers[0].name] = summand
    if not summands:
        return
    tensors, highs = graphs.Tensors(source, summands), dict.fromkeys(summands, 0)
    for start in range(0, len(images), batch_size):
        for name, values in tensors(images[start : start + batch_size]).items():
            highs[name] = max(highs[name], np.abs(values).max())
    for name, summand in summands.items():
        index = len(summand.input) - 1
        give(mended, network, summand, index - 1, np.float32(0))
        give(mended, network, summand, index, np.float32(highs[name]))


def _is_fused(node):
    return node.op.startswith("_FusedQuantizedConv")


def _is_signed_sum(node):
    """Whether a layer adds signed bytes and gives unsigned ones."""
    import tensorflow as tf

    fused = _is_fused(node) and b"Sum" in node.attr["fused_ops"].list.s
    if not fused and not re.fullmatch(r"QuantizedConv2D\w*SignedSum\w*AndRequantize", node.op):
        return False
    kinds = node.attr["Tsummand"].type, node.attr["out_type"].type
    return kinds == (tf.qint8.as_datatype_enum, tf.quint8.as_datatype_enum)


def _has_integer_bias(node):
    import tensorflow as tf

    layer = graphs.INTEGER_LAYER.match(node.op)
    return bool(layer) and node.attr["Tbias"].type == tf.qint32.as_datatype_enum
