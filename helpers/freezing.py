"""From a Keras model to a frozen graph, with what can be folded folded."""

from helpers.graphs import extract, write_graph


def freeze(model, path, input_name="input", output_name="predict"):
    """Write a Keras model as a frozen graph, its batch norms and paddings folded into the layers.

    The file has one input of the model's shape with a free batch size and one output. Folding is
    what a graph-optimised FP32 model gets, so that INT8 is not compared with a slower one; means
    over an image become average pools.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name=input_name)
    function = tf.function(lambda x: tf.identity(model(x, training=False), name=output_name))
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(spec))
    graph_def = frozen.graph.as_graph_def()
    for node in graph_def.node:  # control inputs order reads of variables; there are none left
        data = [name for name in node.input if not name.startswith("^")]
        del node.input[:]
        node.input.extend(data)
    plain = tf.compat.v1.graph_util.remove_training_nodes(
        extract(graph_def, [output_name]), [output_name]
    )
    fold_batch_norms(plain)
    fold_paddings(plain)
    pool_means(plain)
    return write_graph(extract(plain, [output_name]), path)


def fold_batch_norms(graph_def):
    """Fold each inference batch norm on a biased convolution into its constants, in place.

    y = γ (W x + b − μ) / √(σ² + ε) + β = (s W) x + s (b − μ) + β with s = γ / √(σ² + ε).
    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.2. TensorFlow's optimize_for_inference does the
    same, weight by weight in Python: over a minute for ResNet50.
    """
    import numpy as np
    import tensorflow as tf

    nodes = {node.name: node for node in graph_def.node}

    def value(name):
        return tf.make_ndarray(nodes[name].attr["value"].tensor)

    def replace(name, array):
        tensor = tf.make_tensor_proto(array.astype(np.float32))
        nodes[name].attr["value"].tensor.CopyFrom(tensor)

    for norm in [node for node in graph_def.node if node.op == "FusedBatchNormV3"]:
        bias = nodes[norm.input[0]]
        if bias.op != "BiasAdd" or nodes[bias.input[0]].op != "Conv2D":
            continue
        gamma, beta, mean, variance = (value(name) for name in norm.input[1:5])
        scale = gamma / np.sqrt(variance + norm.attr["epsilon"].f)
        kernel, offset = nodes[bias.input[0]].input[1], bias.input[1]
        replace(kernel, value(kernel) * scale)
        replace(offset, (value(offset) - mean) * scale + beta)
        for node in graph_def.node:
            for index, name in enumerate(node.input):
                if name == norm.name:
                    node.input[index] = bias.name


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
    for one piece.
    """
    import numpy as np
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.compat.v1.import_graph_def(graph_def, name="")
    for node in [node for node in graph_def.node if node.op == "Mean"]:
        source, axes = graph.get_operation_by_name(node.name).inputs
        _, *image = source.shape.as_list() if source.shape.rank == 4 else [None]
        axes = tf.get_static_value(axes)
        if None in image or axes is None or sorted(np.ravel(axes) % 4) != [1, 2]:
            continue
        height, width, channels = image
        pool = graph_def.node.add(name=f"{node.name}/AvgPool", op="AvgPool", input=node.input[:1])
        pool.attr["T"].CopyFrom(node.attr["T"])
        pool.attr["ksize"].list.i[:] = [1, height, width, 1]
        pool.attr["strides"].list.i[:] = [1, 1, 1, 1]
        pool.attr["padding"].s = b"VALID"
        sizes = [-1, 1, 1, channels] if node.attr["keep_dims"].b else [-1, channels]
        shape = graph_def.node.add(name=f"{node.name}/shape", op="Const")
        shape.attr["dtype"].type = tf.int32.as_datatype_enum
        shape.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(sizes))
        node.op, node.input[:] = "Reshape", [pool.name, shape.name]  # named as before, for readers
        for name in set(node.attr) - {"T"}:
            del node.attr[name]
        node.attr["Tshape"].type = tf.int32.as_datatype_enum


def unfold_paddings(graph_def):
    """Undo `fold_paddings`, in place, for tools that know no explicit padding."""
    import numpy as np
    import tensorflow as tf

    before = list(graph_def.node)
    del graph_def.node[:]  # written again, each Pad before its reader
    for node in before:
        if node.op in ("Conv2D", "MaxPool") and node.attr["padding"].s == b"EXPLICIT":
            paddings = np.reshape(node.attr["explicit_paddings"].list.i, (4, 2)).astype(np.int32)
            amounts = graph_def.node.add(name=f"{node.name}/paddings", op="Const")
            amounts.attr["dtype"].type = tf.int32.as_datatype_enum
            amounts.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(paddings))
            pad = graph_def.node.add(name=f"{node.name}/Pad", op="Pad")
            pad.input.extend([node.input[0], amounts.name])
            pad.attr["T"].CopyFrom(node.attr["T"])
            pad.attr["Tpaddings"].type = tf.int32.as_datatype_enum
            node.input[0] = pad.name
            node.attr["padding"].s = b"VALID"
            del node.attr["explicit_paddings"]
        graph_def.node.append(node)
