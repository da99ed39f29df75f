"""Frozen graphs: reading, writing, running and cutting them, and the layers in them."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from helpers import UserError, files, machine

CONSTANTS = ("Const", "HostConst")  # the second is ITEX's, of INC's scales


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


def node_name(source):
    """The name of the node behind an input ("^name" and "name:1" are "name")."""
    return source.lstrip("^").split(":")[0]


class Network:
    """A GraphDef to walk through: its nodes by name, and for each who reads it, at which input."""

    def __init__(self, graph_def):
        self.nodes = {node.name: node for node in graph_def.node}
        self.readers = {name: [] for name in self.nodes}
        for node in graph_def.node:
            for index, source in enumerate(node.input):
                self.readers[node_name(source)].append((node, index))

    def value(self, name):
        """The array that a constant holds; None where `name` is no constant."""
        import tensorflow as tf

        node = self.nodes[node_name(name)]
        return tf.make_ndarray(node.attr["value"].tensor) if node.op in CONSTANTS else None

    def value_through(self, name, op):
        """As `value`, also of a constant behind nodes of this kind."""
        while self.nodes[node_name(name)].op == op:
            name = self.nodes[node_name(name)].input[0]
        return self.value(name)

    def readers_through(self, name, ops):
        """[(node, input index)] of what reads a node, directly or through nodes of these `ops`."""
        ends, waiting = [], list(self.readers[name])
        while waiting:
            reader, index = waiting.pop(0)
            if reader.op in ops and index == 0:
                waiting += self.readers[reader.name]
            else:
                ends.append((reader, index))
        return ends


def find_signature(graph_def, input_name=None, output_name=None, path="the graph"):
    """The graph's one Placeholder and its one unused output, or the nodes named.

    Raises UserError when a name is not in the graph, the choice is not clear, or the output needs
    another input than the one there is to be.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in graph_def.node}
    used = {node_name(source) for node in graph_def.node for source in node.input}
    inputs = [node.name for node in graph_def.node if node.op == "Placeholder"]
    outputs = [
        node.name
        for node in graph_def.node
        if node.name not in used and node.op not in (*CONSTANTS, "NoOp", "Placeholder")
    ]

    def pick(kind, asked, candidates):
        names = ", ".join(candidates[:8]) or "none"
        if asked and asked not in nodes:
            raise UserError(f"{path} has no node '{asked}'. Its {kind}s: {names}.")
        if not asked and len(candidates) != 1:
            raise UserError(f"{path} needs one {kind}; found: {names}. Name it with --{kind}-name.")
        return asked or candidates[0]

    source = pick("input", input_name, inputs)
    target = pick("output", output_name, outputs)
    _check_that_one_input_is_enough(nodes, source, target, path)
    shape = nodes[source].attr["shape"].shape
    sizes = None if shape.unknown_rank or not shape.dim else [d.size for d in shape.dim[1:]]
    known = None if sizes is None else tuple(None if size < 0 else size for size in sizes)
    return Signature(source, target, known, tf.as_dtype(nodes[source].attr["dtype"].type).name)


def _check_that_one_input_is_enough(nodes, source, target, path):
    """UserError unless `target` can be computed from `source` and constants alone."""
    seen, waiting, others = set(), [target], []
    while waiting:
        name = waiting.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        if name == source:
            continue
        if nodes[name].op == "Placeholder":
            others.append(name)
        waiting += map(node_name, nodes[name].input)
    if source not in seen:
        raise UserError(
            f"{path}: the output '{target}' does not depend on the input '{source}'. Name others "
            "with --input-name and --output-name."
        )
    if others:
        raise UserError(
            f"{path}: the output '{target}' needs {', '.join(sorted(others)[:8])} besides "
            f"'{source}'. Networks of one input can be run; name another output with "
            "--output-name, or make the other inputs constants before freezing."
        )


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
    if not stock and machine.has_itex():
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
        outputs = {name: np.concatenate(part) for name, part in zip(self.wanted, zip(*parts))}
        return {name: images if name == self.source else outputs[name] for name in self.names}


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
    nodes, pairs = {node.name: node for node in graph_def.node}, {}
    for node in graph_def.node:
        layer = nodes[node.input[0]] if node.op == "BiasAdd" else None
        if layer is not None and layer.op in LAYER_OPS:
            constants = nodes[layer.input[1]], nodes[node.input[1]]
            if all(constant.op == "Const" for constant in constants):
                pairs[layer.name] = constants
    return pairs


LAYER_OPS = ("Conv2D", "DepthwiseConv2dNative", "MatMul")
# What TensorFlow's optimizer and INC's legacy form make of them
FUSED_LAYER = re.compile(r"_?(Mkl|ITEX)?_?Fused(Conv2D|DepthwiseConv2dNative|MatMul)")
INTEGER_LAYER = re.compile(r"_?(Mkl|ITEX)?(Fused)?Quantized(Fused)?(Conv2D|DepthwiseConv2D|MatMul)")


def is_integer(graph_def):
    """Whether the graph has layers in TensorFlow's own integer operations."""
    return any(INTEGER_LAYER.match(node.op) for node in graph_def.node)


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product of a graph and whether it runs in INT8."""

    name: str
    op: str
    int8: bool


def layers(graph_def):
    """The layers of a QDQ or legacy INT8 graph, in graph order.

    In a QDQ graph a layer runs in INT8 when both its inputs, data and kernel, come from a
    Dequantize node: ITEX fuses that pattern at run time. Legacy graphs name the op itself
    (QuantizedConv2D…); a float layer in one may be fused (_FusedConv2D).
    """
    nodes = {node.name: node for node in graph_def.node}
    listed = []
    for node in graph_def.node:
        if node.op in LAYER_OPS or FUSED_LAYER.match(node.op):
            sources = [nodes[node_name(source)].op for source in node.input[:2]]
            listed.append(Layer(node.name, node.op, sources == ["Dequantize"] * 2))
        elif INTEGER_LAYER.match(node.op):
            listed.append(Layer(node.name, node.op, True))
    return listed


def leave_float(graph_def, names):
    """A copy of a QDQ graph in which the layers named read their float inputs again."""
    changed = type(graph_def)()
    changed.CopyFrom(graph_def)
    nodes = {node.name: node for node in changed.node}
    for name in names:
        for index in (0, 1):
            dequantize = nodes[nodes[name].input[index]]
            quantize = nodes[dequantize.input[0]]
            nodes[name].input[index] = quantize.input[0]
    return extract(changed, [find_signature(graph_def).output])


def operations(graph_def, shape):
    """Arithmetic operations per image of each convolution and matrix product: {name: count}.

    A multiply-add is two operations. `shape` is that of one input, without the batch.
    """
    import tensorflow as tf

    signature = find_signature(graph_def)
    graph = tf.Graph()
    with graph.as_default():
        image = tf.compat.v1.placeholder(signature.dtype, (1, *shape))
        tf.compat.v1.import_graph_def(graph_def, {signature.input: image}, name="")
    count = {}
    for node in graph.get_operations():
        if node.type == "Conv2D":
            each = node.inputs[1].shape[:3].num_elements()
        elif node.type == "DepthwiseConv2dNative":
            each = node.inputs[1].shape[:2].num_elements()
        elif node.type == "MatMul":
            each = node.inputs[0].shape[0 if node.get_attr("transpose_a") else 1]
        else:
            continue
        count[node.name] = 2 * node.outputs[0].shape.num_elements() * each
    return count


def input_range(graph_def):
    """(low, high) of the values an INT8 graph was calibrated on, or None where it does not tell.

    It tells by the constants of the QuantizeV2 that reads the input directly, or through what
    leaves values as they are.
    """
    network = Network(graph_def)
    through = ("Identity", "Pad", "Transpose", "Reshape", "Cast", "MaxPool", "ExpandDims")
    lows, highs = [], []
    for source in [node.name for node in graph_def.node if node.op == "Placeholder"]:
        for reader, index in network.readers_through(source, through):
            if reader.op == "QuantizeV2" and index == 0:
                low, high = (network.value(name) for name in reader.input[1:3])
                if low is not None and high is not None:
                    lows.append(float(low.min()))
                    highs.append(float(high.max()))
    return (min(lows), max(highs)) if lows else None


def vocabulary(graph_def):
    """How many rows the table has that an integer input picks from (valid inputs are smaller).

    None where no constant table is read by an input, directly or reshaped.
    """
    network, rows = Network(graph_def), []
    through = ("Identity", "Cast", "Reshape", "ExpandDims", "Squeeze")
    for source in [node.name for node in graph_def.node if node.op == "Placeholder"]:
        ends = network.readers_through(source, through)
        for reader, _ in list(ends):
            if reader.op.startswith("Select"):  # by Keras 3: of rows counted from the end
                ends += network.readers_through(reader.name, through)
        for reader, index in ends:
            if reader.op in ("Gather", "GatherV2", "ResourceGather") and index == 1:
                table = network.value_through(reader.input[0], "Identity")
                axis = network.value(reader.input[2]) if len(reader.input) > 2 else 0
                if table is not None and axis is not None:
                    rows.append(table.shape[int(axis)])
    return min(rows, default=None)


def unfold_paddings(graph_def):
    """Write explicit paddings as a Pad again, in place, for tools that know no others."""
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
