"""What is folded into the layers of a float graph, and written in another way, in place."""

from helpers.graphs import LAYER_OPS, Network, extract, node_name

# What an expression of constants may consist of: nothing random, nothing that makes much of little
EXPRESSION_OPS = {
    *("Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "Transpose"),
    *("Add", "AddV2", "Sub", "Mul", "RealDiv", "Neg", "Square", "Sqrt", "Rsqrt", "Reciprocal"),
}
BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


def grouped_convolutions(graph_def):
    """{name: input channels} of the convolutions whose kernel sees a part of the channels only."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.compat.v1.import_graph_def(graph_def, name="")
    channels = {
        node.name: (node.inputs[0].shape[-1], node.inputs[1].shape[2])
        for node in graph.get_operations()
        if node.type == "Conv2D"
        and node.get_attr("data_format") == b"NHWC"
        and node.inputs[0].shape.rank == node.inputs[1].shape.rank == 4
    }
    return {
        name: seen for name, (seen, read) in channels.items() if read and seen not in (None, read)
    }


def write_depthwise(graph_def):
    """Write convolutions with a group for each channel (ConvNeXt) as depthwise ones, in place.

    They compute the same; ITEX runs depthwise convolutions in INT8, while any other grouped one
    in INT8 ends the process in oneDNN (quantization.quantize leaves those in float).
    """
    network = _Editor(graph_def)
    for name, channels in grouped_convolutions(graph_def).items():
        layer = network.nodes[name]
        kernel = network.value(layer.input[1])
        steps = layer.attr["strides"].list.i
        explicit = layer.attr["padding"].s == b"EXPLICIT"
        if kernel is None or kernel.shape[2] != 1 or steps[1] != steps[2] or explicit:
            continue
        height, width, _, outputs = kernel.shape
        kernel = kernel.reshape(height, width, channels, outputs // channels)
        network.read_constant(layer, 1, kernel, name + "/kernel")
        layer.op = "DepthwiseConv2dNative"
        if "use_cudnn_on_gpu" in layer.attr:
            del layer.attr["use_cudnn_on_gpu"]


def fold_constants(graph_def):
    """Replace what is computed from constants alone by its value, in place.

    A batch norm of Keras 3 comes as Rsqrt, Mul and Sub of constants; to be folded, it has to be
    the two constants that they amount to.
    """
    import tensorflow as tf

    known = {node.name for node in graph_def.node if node.op == "Const"}
    waiting, computed = [node for node in graph_def.node if node.op in EXPRESSION_OPS], []
    while True:  # in rounds: nodes may stand in any order
        ready = [node for node in waiting if known.issuperset(map(node_name, node.input))]
        if not ready:
            break
        computed += ready
        known.update(node.name for node in ready)
        waiting = [node for node in waiting if node.name not in known]
    if not computed:
        return
    part = extract(graph_def, [node.name for node in computed])
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.import_graph_def(part, name="")
        values = session.run([node.name + ":0" for node in computed])
    for node, value in zip(computed, values):
        node.CopyFrom(_constant(node.name, value))


def _constant(name, array):
    """A Const node."""
    import tensorflow as tf

    tensor = tf.make_tensor_proto(array)
    node = tf.compat.v1.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = tensor.dtype
    node.attr["value"].tensor.CopyFrom(tensor)
    return node


def fold_batch_norms(graph_def):
    """Fold what scales and shifts a layer's channels by constants into the layer, in place.

    That is above all the inference batch norm behind a convolution (depthwise or not) or a matrix
    product: fused or decomposed, with a bias before it or without, one or several in a row. The
    layer is left with one BiasAdd. y = γ (W x + b − μ) / √(σ² + ε) + β = (s W) x + s (b − μ) + β
    with s = γ / √(σ² + ε). Source: Jacob et al. 2018, "Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference", section 3.2.

    What cannot be folded stays: a norm before a layer with a Relu between them, one behind a layer
    whose output something else reads, too, and channels first. TensorFlow's own
    optimize_for_inference folds weight by weight in Python: over a minute for ResNet50.
    """
    fold_constants(graph_def)
    network, folded = _Editor(graph_def), set()
    for layer in [node for node in graph_def.node if node.op in LAYER_OPS]:
        kernel = network.value(layer.input[1])
        if kernel is not None and _channels_last(layer):
            folded.update(_fold_into(network, layer, kernel))
    left = [node for node in graph_def.node if node.name not in folded]
    del graph_def.node[:]
    graph_def.node.extend(left)


class _Editor(Network):
    """A Network whose constants and readers can be changed."""

    def __init__(self, graph_def):
        super().__init__(graph_def)
        self.graph_def = graph_def

    def read_constant(self, reader, index, array, name):
        """Have input `index` of `reader` be `array`: changed in its Const, or in a new one.

        A Const that something else reads, too (shared weights), stays for that.
        """
        if index < len(reader.input):
            before = node_name(reader.input[index])
            if self.nodes[before].op == "Const" and len(self.readers[before]) == 1:
                self.nodes[before].CopyFrom(_constant(before, array))
                return
            self.readers[before].remove((reader, index))
            del reader.input[index]
        while name in self.nodes:
            name += "_"
        self.nodes[name] = self.graph_def.node.add()
        self.nodes[name].CopyFrom(_constant(name, array))
        self.readers[name] = [(reader, index)]
        reader.input.insert(index, name)

    def move_readers(self, source, target):
        """Let `target` be read by what reads `source`."""
        for reader, index in self.readers[source]:
            control = "^" if reader.input[index].startswith("^") else ""
            reader.input[index] = control + target
        self.readers[target] = self.readers[source]
        self.readers[source] = []


def _flag(node, name, default=False):
    return node.attr[name].b if name in node.attr else default  # to ask for it would create it


def _channels_last(node):
    return "data_format" not in node.attr or node.attr["data_format"].s == b"NHWC"


def _fold_into(network, layer, kernel):
    """Fold the scales and shifts behind one layer; the names of the nodes that are left over."""
    import numpy as np

    turned = layer.op == "MatMul" and _flag(layer, "transpose_b")
    # the axes of the kernel that together are the output's channels
    axes = kernel.shape[2:] if layer.op == "DepthwiseConv2dNative" else kernel.shape[-1:]
    axes = kernel.shape[:1] if turned else axes
    shape = (1,) * (1 if layer.op == "MatMul" else 3) + (int(np.prod(axes)),)
    scale, shift, chain, end = np.ones(shape[-1]), np.zeros(shape[-1]), [], layer.name
    while len(network.readers[end]) == 1:
        (reader, index) = network.readers[end][0]
        step = _scale_and_shift(network, reader, index, shape)
        if step is None:
            break
        scale, shift, end = scale * step[0], shift * step[0] + step[1], reader.name
        chain.append(reader)
    if not chain or [node.op for node in chain] == ["BiasAdd"]:
        return []
    factors = scale[:, None] if turned else scale.reshape(axes)
    network.read_constant(layer, 1, (kernel * factors).astype(kernel.dtype), layer.name + "/kernel")
    kept = _leave_one_bias(network, layer, chain, shift.astype(kernel.dtype))
    return [node.name for node in chain if node is not kept]


def _scale_and_shift(network, node, index, shape):
    """What a node does to each channel of its input `index`: (scale, shift); None if anything else.

    `shape` is that of its input: (1, …, channels).
    """
    if node.op in BATCH_NORMS and index == 0:
        return _norm(network, node)
    if node.op == "BiasAdd":
        constant = network.value(node.input[1]) if _channels_last(node) and index == 0 else None
        return None if constant is None else (1, constant.astype("float64"))
    if node.op not in ("Add", "AddV2", "Sub", "Mul", "RealDiv") or len(node.input) != 2:
        return None
    value = _per_channel(network.value(node.input[1 - index]), shape)
    if value is None or (node.op == "RealDiv" and index == 1):
        return None
    if node.op == "Sub":
        return (1, -value) if index == 0 else (-1, value)
    if node.op in ("Add", "AddV2"):
        return 1, value
    return value if node.op == "Mul" else 1 / value, 0


def _norm(network, norm):
    """(scale, shift) of an inference batch norm of which nothing but the first output is used."""
    import numpy as np

    statistics = [network.value(name) for name in norm.input[1:5]]
    sources = (reader.input[index] for reader, index in network.readers[norm.name])
    unused = all(source in (norm.name, norm.name + ":0") for source in sources)
    if (
        _flag(norm, "is_training", True)
        or not unused
        or not _channels_last(norm)
        or any(x is None for x in statistics)
    ):
        return None
    gamma, beta, mean, variance = (array.astype(np.float64) for array in statistics)
    epsilon = norm.attr["epsilon"].f if "epsilon" in norm.attr else 1e-4
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def _per_channel(value, shape):
    """A constant as one number per channel, or None where it differs in more than the channel."""
    import numpy as np

    if value is None or value.ndim > len(shape):
        return None
    if value.size not in (1, shape[-1]) or value.size != (value.shape or (1,))[-1]:
        return None
    return np.broadcast_to(value.astype(np.float64).ravel(), shape[-1:])


def _leave_one_bias(network, layer, chain, bias):
    """Make one BiasAdd of the chain behind a layer; give its node.

    It is the BiasAdd that was there, by its name, or else the last of the chain, as it is where
    the chain ends the graph: the name of an output stays.
    """
    first, last = chain[0], chain[-1]
    if first.op == "BiasAdd" and network.readers[last.name]:
        network.read_constant(first, 1, bias, first.name + "/bias")
        if last is not first:
            network.move_readers(last.name, first.name)
        return first
    name, kind = last.name, layer.attr["T"]
    last.Clear()
    last.name, last.op = name, "BiasAdd"
    last.input.append(layer.name)
    last.attr["T"].CopyFrom(kind)
    last.attr["data_format"].s = b"NHWC"
    network.readers[layer.name] = [(last, 0)]
    network.read_constant(last, 1, bias, name + "/bias")
    return last


def fold_paddings(graph_def):
    """Let convolutions and max pools do the zero padding of the Pad before them, in place.

    A Pad of its own copies the whole tensor, and keeps the layer before it from writing 8-bit
    integers. Folded is what leaves every output as it was: constant spatial paddings before a
    layer without padding, and before a max pool only what a Relu made non-negative, because a max
    pool pads with -infinity (every window has to hold a real value for that, too).
    """
    import tensorflow as tf

    nodes = {node.name: node for node in graph_def.node}

    for node in graph_def.node:
        pad = nodes.get(node.input[0]) if node.op in ("Conv2D", "MaxPool") else None
        if pad is None or pad.op != "Pad" or node.attr["padding"].s != b"VALID":
            continue
        amounts = nodes[pad.input[1]]
        if amounts.op != "Const":
            continue
        paddings = tf.make_ndarray(amounts.attr["value"].tensor)
        channels = 1 if node.attr["data_format"].s == b"NCHW" else 3
        if paddings.shape != (4, 2) or paddings[[0, channels]].any():
            continue
        if node.op == "MaxPool" and not (
            nodes[pad.input[0]].op in ("Relu", "Relu6")
            and (paddings.max(axis=1) < node.attr["ksize"].list.i).all()
        ):
            continue
        node.attr["padding"].s = b"EXPLICIT"
        node.attr["explicit_paddings"].list.i[:] = paddings.ravel().tolist()
        node.input[0] = pad.input[0]


def pool_means(graph_def):
    """Write means over height and width as average pools of the whole image, in place.

    They compute the same but for rounding, and INC quantizes average pools but no means. Without
    that, the output of ResNet50's last residual blocks stays float, and oneDNN does not take them
    for one piece. Only where that is so and nothing breaks: see `_is_pool_of_bytes`.
    """
    import numpy as np
    import tensorflow as tf

    network = Network(graph_def)
    with tf.Graph().as_default() as graph:
        tf.compat.v1.import_graph_def(graph_def, name="")
    for node in [node for node in graph_def.node if node.op == "Mean"]:
        source, axes = graph.get_operation_by_name(node.name).inputs
        _, *image = source.shape.as_list() if source.shape.rank == 4 else [None]
        axes = tf.get_static_value(axes)
        if None in image or axes is None or sorted(np.ravel(axes) % 4) != [1, 2]:
            continue
        if _is_pool_of_bytes(network, node):
            _write_as_pool(graph_def, node, *image)


def _is_pool_of_bytes(network, mean):
    """Whether a mean as an average pool would take and give the same kind of 8-bit integers.

    INC gives a pool behind a Relu unsigned ones, any other pool signed ones; a matrix product
    always unsigned ones; a convolution what the pool before it has, but signed ones behind a
    Reshape. ITEX hands the pool with the quantizations around it to oneDNN as one piece, and where
    the two kinds differ that ends the process ("partition compile failed"). A Relu that more than
    the mean reads (squeeze and excite) has to be there in float anyway.
    """
    source = node_name(mean.input[0])
    if network.nodes[source].op not in ("Relu", "Relu6") or len(network.readers[source]) > 1:
        return False
    direct = {(reader.name, index) for reader, index in network.readers[mean.name]}
    ends = network.readers_through(mean.name, ("Reshape", "Squeeze"))
    return bool(ends) and all(
        index == 0
        and (
            reader.op == "MatMul"
            or (
                reader.op in ("Conv2D", "DepthwiseConv2dNative")
                and _flag(mean, "keep_dims")
                and (reader.name, index) in direct
            )
        )
        for reader, index in ends
    )


def _write_as_pool(graph_def, mean, height, width, channels):
    """Turn a Mean node into an AvgPool and, unless it keeps the dimensions, a Reshape."""
    import numpy as np

    keeps = _flag(mean, "keep_dims")
    pool = mean if keeps else graph_def.node.add(name=f"{mean.name}/AvgPool")
    source, kind = mean.input[0], mean.attr["T"].type
    shape = f"{mean.name}/shape"
    for node, op, inputs in ((mean, "Reshape", [pool.name, shape]), (pool, "AvgPool", [source])):
        node.op, node.input[:] = op, inputs  # readers know the mean's name
        node.attr.clear()
        node.attr["T"].type = kind
    pool.attr["ksize"].list.i[:] = [1, height, width, 1]
    pool.attr["strides"].list.i[:] = [1, 1, 1, 1]
    pool.attr["padding"].s = b"VALID"
    if not keeps:
        sizes = _constant(shape, np.array([-1, channels], np.int32))
        mean.attr["Tshape"].type = sizes.attr["dtype"].type
        graph_def.node.append(sizes)
