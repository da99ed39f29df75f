"""Sums of two linear layers in integers: the shortcuts of MobileNetV2 and its kin.

TensorFlow's integer convolution adds a summand only in front of a Relu (the fusions of
MklQuantizedConvOp in its mkl_conv_ops.cc), and the sums of inverted residuals have none; so INC
leaves them float, between two Dequantize and a QuantizeV2. But any sum is a Relu's output once it
is raised by as much as its smallest value lies below zero, and layers that read it without padding
take that back in their biases: Σ w·(x + c) = Σ w·x + c·Σ w. That makes of signed bytes unsigned
ones with a zero point (affine quantization, as Jacob et al. 2018 have it), which TensorFlow's
operations do not know by that name.
"""

import numpy as np

from helpers import graphs

LINEAR = [b"BiasAdd", b"Requantize"]
RELU = [b"BiasAdd", b"Relu", b"Requantize"]
SUM = [b"BiasAdd", b"Sum", b"Relu", b"Requantize"]
STEPS = 255  # of an unsigned byte


def fuse(graph_def):
    """Take linear sums of INC's fused form into the layers before them, in place.

    A sum stays float unless one summand is a layer that nothing else reads, the other one a linear
    layer or such a sum, and all that read either can take back what was added.
    """
    network = graphs.Network(graph_def)
    sums = _fusible(network)
    raised = {}  # the layer that gives a tensor -> its zero point

    def raise_sum(add):
        """Fuse a sum, after the one that it adds to; the layer that gives it."""
        layer, other = (network.nodes[name] for name in sums[add.name])
        if layer.name in raised:
            return layer
        source = raise_sum(other) if other.op == "AddV2" else raise_layer(other)
        quantizers = [one for one in _of(network, add) if one.op == "QuantizeV2"]
        ends = [float(network.value(name)) for name in quantizers[0].input[1:3]]
        zero = _sum(graph_def, network, (layer, source), raised[source.name], *ends)
        raised[layer.name] = zero
        for quantizer in quantizers:
            _take_back(graph_def, network, quantizer, layer, zero, _step(network, quantizer.name))
        return layer

    def raise_layer(layer):
        if layer.name not in raised:
            before = _step(network, layer.name)
            raised[layer.name] = _raise(graph_def, network, layer)
            _take_back(graph_def, network, layer, layer, raised[layer.name], before)
        return layer

    for name in sums:
        raise_sum(network.nodes[name])


def _fusible(network):
    """{name of a sum: (the layer that is to add, the node of the other summand)}."""
    found = {}
    for node in network.nodes.values():
        pair = _summands(network, node) if node.op == "AddV2" else None
        if pair:
            found[node.name] = pair
    while True:  # what one sum gives another may read, so one that drops out can take others along
        stay = {
            name: pair
            for name, pair in found.items()
            if _can_be_raised(network, network.nodes[name], found)
            and _can_be_raised(network, network.nodes[pair[1]], found)
            and (network.nodes[pair[1]].op != "AddV2" or pair[1] in found)
        }
        if len(stay) == len(found):
            return found
        found = stay


def _summands(network, add):
    for own, other in (add.input, add.input[::-1]):
        own, other = network.nodes[graphs.node_name(own)], network.nodes[graphs.node_name(other)]
        layer = _dequantized(network, own)
        source = other if other.op == "AddV2" else _dequantized(network, other)
        if layer is None or source is None or layer is source:
            continue
        alone = {reader.name for reader, _ in network.readers[layer.name]} == {own.name}
        if alone and [reader.name for reader, _ in network.readers[own.name]] == [add.name]:
            return layer.name, source.name
    return None


def _dequantized(network, node):
    """The linear layer whose output a node makes floats of, or None."""
    if node.op != "Dequantize":
        return None
    layer = network.nodes[graphs.node_name(node.input[0])]
    linear = list(layer.attr["fused_ops"].list.s) == LINEAR and _has_integer_bias(layer)
    fused = layer.op == "_FusedQuantizedConv2D" and _range_of(network, layer.input[0])
    return layer if fused and linear else None


def _has_integer_bias(layer):
    import tensorflow as tf

    return layer.attr["Tbias"].type == tf.qint32.as_datatype_enum


def _range_of(network, name):
    """The node whose calibrated range that of the bytes `name` is; None where there is none."""
    node = network.nodes[graphs.node_name(name)]
    while node.op in ("QuantizedMaxPool", "QuantizedAvgPool"):
        node = network.nodes[graphs.node_name(node.input[0])]
    fused = node.op.startswith("_FusedQuantized") and b"Requantize" in node.attr["fused_ops"].list.s
    return node if fused or node.op == "QuantizeV2" else None


def _can_be_raised(network, node, found):
    """Whether all that read a linear layer or a sum are sums of `found`, or can take it back."""
    readers = _of(network, node)
    if node.op == "AddV2" and "QuantizeV2" not in [reader.op for reader in readers]:
        return False  # nobody has calibrated its range
    ends = []
    for reader in readers:
        behind = reader.op in ("Dequantize", "QuantizeV2")
        ends += _of(network, reader) if behind else [reader]
    return all(end.name in found or _can_take_back(network, end) for end in ends)


def _of(network, node):
    """What reads a node, each once."""
    return list({reader.name: reader for reader, _ in network.readers[node.name]}.values())


def _can_take_back(network, node):
    """Whether a node is a layer of signed bytes whose windows never leave the image."""
    import tensorflow as tf

    signed = node.attr["Tinput"].type == tf.qint8.as_datatype_enum
    if node.op != "_FusedQuantizedConv2D" or not signed or not _has_integer_bias(node):
        return False
    padding = node.attr["padding"].s
    if padding == b"SAME":
        return network.value(node.input[1]).shape[:2] == (1, 1)
    return padding == b"VALID" or not any(node.attr["explicit_paddings"].list.i)


def _step(network, name):
    """What one step of the bytes is worth that `name` gives, from its calibrated range."""
    node = _range_of(network, name)
    ends = node.input[1:3] if node.op == "QuantizeV2" else node.input[-2:]
    low, high = (float(network.value(end)) for end in ends)
    kind = "T" if node.op == "QuantizeV2" else "out_type"
    return max(abs(low), abs(high)) / (127 if _is_signed(node, kind) else STEPS)


def _is_signed(node, kind):
    import tensorflow as tf

    return node.attr[kind].type == tf.qint8.as_datatype_enum


def _accumulator(network, layer):
    """What one step of a layer's sums is worth, for each output channel."""
    places = (6, 7) if list(layer.attr["fused_ops"].list.s) == SUM else (5, 6)
    ends = [np.abs(network.value(layer.input[place])) for place in places]
    return _step(network, layer.input[0]) * np.maximum(*ends) / 127


def _raise(graph_def, network, layer):
    """Have a linear layer give unsigned bytes of what it gave, raised; its new zero point."""
    low, high = (float(network.value(name)) for name in layer.input[-2:])
    size = (max(high, 0) - min(low, 0)) / STEPS
    zero = round(-min(low, 0) / size)
    units = _accumulator(network, layer)
    bias = plain(network.value(layer.input[2])) + zero * size / units
    _unsigned(graph_def, network, layer, RELU, size)
    set_bias(graph_def, network, layer, bias)
    return zero


def _sum(graph_def, network, pair, zero_of_other, low, high):
    """Have a linear layer add what another node gives, and give both, raised: the zero point."""
    import tensorflow as tf

    layer, other = pair
    size = (max(high, 0) - min(low, 0)) / STEPS
    zero = round(-min(low, 0) / size)
    units = _accumulator(network, layer)
    bias = plain(network.value(layer.input[2])) * units
    bias = bias + zero * size - zero_of_other * _step(network, other.name)
    inputs = list(layer.input)
    layer.input[:] = [*inputs[:3], other.name, *inputs[3:7], f"{other.name}:1", f"{other.name}:2"]
    layer.input.extend(inputs[7:])
    _unsigned(graph_def, network, layer, SUM, size)
    # as INC writes layers that add: in floats, which TensorFlow brings to the scale of the sum
    give(graph_def, network, layer, 2, bias.astype(np.float32))
    layer.attr["Tbias"].type = tf.float32.as_datatype_enum
    kinds = layer.attr["Thost_inputs"].list.type
    kinds[2] = tf.float32.as_datatype_enum
    kinds[:] = [*kinds[:3], tf.quint8.as_datatype_enum, *kinds[3:], *[kinds[2]] * 2]
    return zero


def _unsigned(graph_def, network, layer, operations, size):
    """The operations of a layer that gives unsigned bytes, and its range."""
    import tensorflow as tf

    layer.attr["fused_ops"].list.s[:] = operations
    for kind in ("out_type", "Tsummand"):  # the same even where nothing is added
        layer.attr[kind].type = tf.quint8.as_datatype_enum
    layer.attr["Thost_outputs"].list.type[0] = tf.quint8.as_datatype_enum
    last = len(layer.input) - 1
    give(graph_def, network, layer, last - 1, np.float32(0))
    give(graph_def, network, layer, last, np.float32(STEPS * size))


def _take_back(graph_def, network, node, source, zero, before):
    """Have the layers that read `node` read the raised bytes of `source`, and take that back.

    `before` is the step of the bytes that they have read.
    """
    import tensorflow as tf

    scale = before / _step(network, source.name)
    for layer in [one for one in _of(network, node) if one.op == "_FusedQuantizedConv2D"]:
        weights = plain(network.value(layer.input[1])).astype(np.int64)
        bias = plain(network.value(layer.input[2])) * scale - zero * weights.sum(axis=(0, 1, 2))
        place = 4 if list(layer.attr["fused_ops"].list.s) == SUM else 3
        layer.input[0] = source.name
        layer.input[place], layer.input[place + 1] = f"{source.name}:1", f"{source.name}:2"
        layer.attr["Tinput"].type = tf.quint8.as_datatype_enum
        layer.attr["Thost_inputs"].list.type[0] = tf.quint8.as_datatype_enum
        set_bias(graph_def, network, layer, bias)


def plain(array):
    """An array of TensorFlow's quantized types as one of NumPy's."""
    return array[array.dtype.names[0]] if array.dtype.names else array


def set_bias(graph_def, network, layer, values):
    """Give a layer an int32 bias of its own: `values` (channels,), rounded."""
    import tensorflow as tf

    kind = tf.qint32.as_datatype_enum
    give(graph_def, network, layer, 2, np.rint(values).astype(np.int32), kind)


def give(graph_def, network, reader, index, array, kind=None):
    """Have an input of a node be a constant of its own: INC shares those that are equal."""
    import tensorflow as tf

    tensor = tf.make_tensor_proto(array)
    tensor.dtype = kind or tensor.dtype
    name = f"{reader.name}/mended_{index}"
    constant = network.nodes.get(name) or graph_def.node.add(name=name, op="Const")
    network.nodes[name] = constant
    constant.attr["dtype"].type = tensor.dtype
    constant.attr["value"].tensor.CopyFrom(tensor)
    reader.input[index] = name
