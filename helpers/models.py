"""ResNet50, and frozen graphs: writing, checking, loading and running them."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from helpers import UserError, files


@dataclass(frozen=True)
class Signature:
    """The input and output of a frozen graph; `shape` is without the batch, None where unknown."""

    input: str
    output: str
    shape: tuple | None
    dtype: str


def read_graph(path):
    """The GraphDef in the file `path`; UserError when it is missing, cut short or no graph."""
    import tensorflow as tf

    path = Path(path)
    try:
        graph_def = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"There is no model at {path}.") from None
    except Exception as error:  # protobuf raises a DecodeError of its C++ module
        raise UserError(
            f"{path} is not a whole frozen TensorFlow graph ({error}). Delete it and make or "
            "download it again."
        ) from error
    if not graph_def.node:
        raise UserError(f"{path} is an empty graph. Delete it and make or download it again.")
    return graph_def


def write_graph(graph_def, path):
    """Write a GraphDef as a frozen .pb; the file is whole or absent. Gives the path back."""
    with files.whole(path) as part:
        part.write_bytes(graph_def.SerializeToString())
    return Path(path)


def find_signature(graph_def, input_name=None, output_name=None, path="the graph"):
    """The graph's one Placeholder and its one unused output, or the nodes named.

    Raises UserError when a name is not in the graph or the choice is not clear.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in graph_def.node}
    used = {name.lstrip("^").split(":")[0] for node in graph_def.node for name in node.input}
    inputs = [node.name for node in graph_def.node if node.op == "Placeholder"]
    outputs = [
        node.name
        for node in graph_def.node
        if node.name not in used and node.op not in ("Const", "HostConst", "NoOp", "Placeholder")
    ]

    def pick(kind, asked, found):
        if asked and asked not in nodes:
            raise UserError(f"{path} has no node '{asked}'. Its {kind}s: {', '.join(found[:8])}.")
        if not asked and len(found) != 1:
            names = ", ".join(found[:8]) or "none"
            raise UserError(f"{path} needs one {kind}; found: {names}. Name it with --{kind}-name.")
        return asked or found[0]

    source = pick("input", input_name, inputs)
    target = pick("output", output_name, outputs)
    shape = nodes[source].attr["shape"].shape
    sizes = None if shape.unknown_rank or not shape.dim else [d.size for d in shape.dim[1:]]
    known = None if sizes is None else tuple(None if size < 0 else size for size in sizes)
    return Signature(source, target, known, tf.as_dtype(nodes[source].attr["dtype"].type).name)


def alexnet(folder, precision="fp32"):
    """Path of the AlexNet an earlier notebook made below `folder`; UserError where it did not."""
    path = Path(folder) / "models" / f"alexnet_{precision}.pb"
    if not path.exists():
        notebook = {"fp32": "02_train_alexnet", "int8": "03_quantize_alexnet"}[precision]
        raise UserError(
            f"There is no {path}. Run notebook {notebook} first: all of it, or "
            f"./run_all.sh {notebook[:2]} with the same --output and --quick as here."
        )
    return path


class FrozenGraph:
    """A frozen graph (path or GraphDef) in a tf.compat.v1.Session of its own; call it with a batch.

    A Session callable, not a TensorFlow 2 function: it has the least overhead per call. Time it
    through helpers.benchmark; elsewhere weights are reordered at every call (helpers/__init__.py).
    `stock` leaves it to TensorFlow alone, without ITEX. Raises UserError for a file that is no
    graph or an input or output that cannot be told.
    """

    def __init__(self, path, input_name=None, output_name=None, stock=False):
        import tensorflow as tf

        if isinstance(path, tf.compat.v1.GraphDef):
            graph_def, path = path, "the graph"
        else:
            graph_def = read_graph(path)
        self.signature = find_signature(graph_def, input_name, output_name, path)
        # ITEX's GPU build shows the GPU as XPU and places operations there by itself
        self.device = "XPU" if tf.config.list_physical_devices("XPU") else "CPU"
        try:
            self.session = _session(graph_def, stock)
        except (ValueError, tf.errors.OpError) as error:
            raise UserError(f"TensorFlow cannot load {path}: {error}") from error
        self._call = self.session.make_callable(
            self.signature.output + ":0", feed_list=[self.signature.input + ":0"]
        )

    def __call__(self, batch):
        return self._call(batch)

    def predict(self, images, batch_size=32):
        """The outputs for all images, computed batch by batch: array (N, …)."""
        import numpy as np

        parts = [self(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
        return np.concatenate(parts)


def _session(graph_def, stock=False):
    """A Session that holds the GraphDef."""
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    if not stock:
        # Once is enough: the second pass over the graph that is the default finds nothing more
        # under ITEX, and takes seconds at the first call. The pass that looks for tensors of a GPU
        # to swap to the host takes a sixth of what is left
        rewrite.meta_optimizer_iterations = rewrite.ONE
        rewrite.memory_optimization = rewrite.NO_MEM_OPT
    else:
        rewrite.use_plugin_optimizers = rewrite.OFF
        if os.environ.get("ITEX_AUTO_MIXED_PRECISION") == "1":  # the same wish, in its words
            rewrite.auto_mixed_precision_onednn_bfloat16 = rewrite.ON
    graph = tf.Graph()
    with graph.as_default():
        tf.compat.v1.import_graph_def(graph_def, name="")
    return tf.compat.v1.Session(graph=graph, config=config)


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


def extract(graph_def, outputs):
    """The part of a GraphDef that the nodes named depend on."""
    import tensorflow as tf

    tf.get_logger().setLevel(logging.ERROR)  # no word of the function being for TensorFlow 1
    return tf.compat.v1.graph_util.extract_sub_graph(graph_def, outputs)


def piece(graph_def, start, end):
    """The part of a GraphDef from node `start`, which becomes its input, to node `end`."""
    import tensorflow as tf

    cut = type(graph_def)()
    cut.CopyFrom(graph_def)
    for node in cut.node:
        if node.name == start:
            node.Clear()
            node.name, node.op = start, "Placeholder"
            node.attr["dtype"].type = tf.float32.as_datatype_enum
            node.attr["shape"].shape.unknown_rank = True
    return extract(cut, [end])


class Tensors:
    """Several tensors of a GraphDef with one input; call it with images (N, …).

    It gives {node name: array (N, …)}, with the images themselves where their node is named.
    """

    def __init__(self, graph_def, names):
        self.names = list(names)
        self.source = next(node.name for node in graph_def.node if node.op == "Placeholder")
        self.wanted = [name for name in self.names if name != self.source]
        self._call = _session(extract(graph_def, self.wanted)).make_callable(
            [name + ":0" for name in self.wanted], feed_list=[self.source + ":0"]
        )

    def __call__(self, images, batch_size=100):
        import numpy as np

        starts = range(0, len(images), batch_size)
        parts = [self._call(images[start : start + batch_size]) for start in starts]
        found = {name: np.concatenate(part) for name, part in zip(self.wanted, zip(*parts))}
        return {name: images if name == self.source else found[name] for name in self.names}


def side_by_side(graph_defs):
    """One GraphDef that computes several with the same input, and the names of their outputs.

    Constants that are equal are there once, so that loading it costs little more than one of them.
    """
    import tensorflow as tf

    together, shared, outputs = tf.compat.v1.GraphDef(), {}, []
    for index, graph_def in enumerate(graph_defs):
        names, added = {}, []
        for node in graph_def.node:
            names[node.name] = node.name
            constant = node.op in ("Placeholder", "Const")
            if constant and shared.setdefault(node.name, node) == node:
                continue
            names[node.name] = f"{index}/{node.name}"
            added.append(together.node.add())
            added[-1].CopyFrom(node)
            added[-1].name = names[node.name]
        for node in added:
            for place, name in enumerate(node.input):
                source = name.lstrip("^").split(":")[0]
                node.input[place] = name.replace(source, names[source], 1)
        outputs.append(names[find_signature(graph_def).output])
    together.node.extend(shared.values())
    return together, outputs


def weights(graph_def):
    """Kernel and bias of each layer of a float GraphDef: {layer name: [kernel, bias]}, copies."""
    import tensorflow as tf

    return {
        layer: [tf.make_ndarray(node.attr["value"].tensor) for node in constants]
        for layer, constants in _constants(graph_def).items()
    }


def with_weights(graph_def, values):
    """A copy of a float GraphDef with other kernels and biases, as `weights` gives them."""
    import numpy as np
    import tensorflow as tf

    changed = type(graph_def)()
    changed.CopyFrom(graph_def)
    for layer, constants in _constants(changed).items():
        for node, value in zip(constants, values[layer]):
            tensor = tf.make_tensor_proto(np.asarray(value, np.float32))
            node.attr["value"].tensor.CopyFrom(tensor)
    return changed


def _constants(graph_def):
    """The nodes of kernel and bias of each convolution and matrix product, by its name."""
    nodes = {node.name: node for node in graph_def.node}
    return {
        nodes[node.input[0]].name: (nodes[nodes[node.input[0]].input[1]], nodes[node.input[1]])
        for node in graph_def.node
        if node.op == "BiasAdd" and nodes[node.input[0]].op in ("Conv2D", "MatMul")
    }


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


def resnet50(weights="random", seed=0):
    """Keras' ResNet50 with `weights` "imagenet" (downloaded by Keras) or "random" (seeded).

    Random weights get the statistics of a working network from one pass over dummy images: batch
    norms see realistic ranges, residual branches are damped, and the last layer is scaled so that
    images get different classes. Speed does not depend on the weights; comparing the outputs of
    FP32 and INT8 does, and would mean nothing on activations that overflow or are all alike.
    """
    import tensorflow as tf

    from helpers.datasets import dummy_images

    tf.keras.utils.set_random_seed(seed)
    if weights == "imagenet":
        try:
            return tf.keras.applications.ResNet50(weights="imagenet")
        except Exception as error:  # Keras raises a bare Exception when a download fails
            raise UserError(
                f"Keras could not download its ImageNet weights ({error}). Without network use "
                "weights 'random', or a folder that holds the two .pb files."
            ) from error
    model = tf.keras.applications.ResNet50(weights=None)
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the moving statistics become those of the next batch
            if layer.name.endswith("_3_bn"):
                layer.gamma.assign(tf.fill(layer.gamma.shape, 0.3))
    images = dummy_images(32, seed=seed)
    model(images, training=True)
    features = tf.keras.Model(model.input, model.layers[-1].input)(images).numpy()
    kernel, _ = model.layers[-1].get_weights()
    logits = features @ kernel
    scale = 3 / logits.std(axis=0).mean()
    model.layers[-1].set_weights([kernel * scale, -logits.mean(axis=0) * scale])
    return model
