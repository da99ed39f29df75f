"""The two forms of INT8 as the ladder makes and changes them: for ITEX, and for TensorFlow alone.

Both have the same methods. Layers go by the names that they have in the FP32 graph.
"""

from pathlib import Path

import numpy as np

from helpers import benchmark, graphs, machine
from helpers.quantize import inc, integer


def form_of(runtime):
    """The form that a runtime of the command line takes: "itex" or "tensorflow"."""
    return {"itex": Qdq, "tensorflow": Integer}[runtime]


class Qdq:
    """QuantizeV2 and Dequantize around float layers, which ITEX fuses at run time.

    `images` (N, …) are calibrated on; what is made lies in `folder`.
    """

    clipping = "ranges without outliers"

    def __init__(self, fp32, images, folder):
        self.fp32, self.images, self.folder = Path(fp32), images, Path(folder)

    def make(self, name, source, float_layers):
        """Quantize the graph `source`, all layers but those named: the path of <name>.pb."""
        how = {"float_layers": sorted(float_layers), "log": self.folder / f"{name}.log"}
        return inc.quantize(source, self.images, self.folder / f"{name}.pb", **how)

    def int8_layers(self, path):
        """The names of the layers that are INT8 in a graph, in graph order."""
        return [layer.name for layer in graphs.layers(graphs.read_graph(path)) if layer.int8]

    def without(self, path, names, to):
        """Write what is at `path` with the layers named in FP32; gives `to`."""
        return graphs.write_graph(graphs.leave_float(graphs.read_graph(path), names), to)

    def clipped(self, path, float_layers):
        """The graph at `path` with ranges that leave the outermost values out: a new path."""
        original = graphs.read_graph(self.fp32)
        return clipped(path, original, self.images, self.folder)

    def simulated(self, path):
        """A graph with QuantizeV2 and Dequantize, of which single layers can be left float."""
        return path


class Integer(Qdq):
    """TensorFlow's own integer operations, without ITEX.

    They cannot be taken apart in the file, so that layers go back by quantizing again.
    """

    clipping = "ranges by KL divergence"

    def __init__(self, fp32, images, folder):
        super().__init__(fp32, images, folder)
        self.made = {}  # path -> (source, float layers, algorithm)

    def make(self, name, source, float_layers, algorithm="minmax"):
        path = (self.folder / f"{name}.pb").resolve()
        return self._make(path, source, frozenset(float_layers), algorithm)

    def _make(self, path, source, float_layers, algorithm):
        self.made[path] = source, float_layers, algorithm
        layers = {layer.name for layer in graphs.layers(graphs.read_graph(source))}
        if layers <= float_layers:  # INC has nothing to do then, and gives up
            return graphs.write_graph(graphs.read_graph(source), path)
        how = {"float_layers": sorted(float_layers), "log": path.with_suffix(".log")}
        return integer.quantize(source, self.images, path, algorithm=algorithm, **how)

    def int8_layers(self, path):
        found = integer.layers(graphs.read_graph(path), graphs.read_graph(self.fp32))
        return [layer.name for layer in found if layer.int8]

    def without(self, path, names, to):
        source, float_layers, algorithm = self.made[Path(path).resolve()]
        return self._make(Path(to).resolve(), source, float_layers | set(names), algorithm)

    def clipped(self, path, float_layers):
        return self.make("clipped", self.fp32, float_layers, algorithm="kl")

    def simulated(self, path):
        source, float_layers, _ = self.made[Path(path).resolve()]
        qdq, to = (self.folder / f"{Path(path).stem}_{end}.pb" for end in ("qdq", "simulated"))
        inc.quantize(source, self.images, qdq, float_layers=sorted(float_layers))
        return graphs.write_graph(pad_depthwise(graphs.read_graph(qdq)), to)


def executed(int8, images, size):
    """[Primitive] that oneDNN logs for a call of an INT8 graph, of either form, at a batch size.

    TensorFlow's own oneDNN logs only where that was asked for before the process began.
    """
    how = {} if machine.has_itex() else {"knobs": {"ONEDNN_VERBOSE": "1"}}
    return benchmark.profile(int8, images, [size], **how)[size][1]


def pad_depthwise(graph_def):
    """A copy of a QDQ graph with a Pad before what depthwise layers with explicit paddings read.

    INC takes the Pad of a Keras network into the layer. ITEX runs that; TensorFlow's shape function
    of the float operation ends the process (DepthwiseConv2DNativeShapeImpl: "Invalid index").
    """
    changed = type(graph_def)()
    changed.CopyFrom(graph_def)
    nodes = graphs.Network(changed).nodes
    for layer in [node for node in nodes.values() if node.op == "DepthwiseConv2dNative"]:
        if layer.attr["padding"].s != b"EXPLICIT":
            continue
        pad = _pad_node(changed, layer)
        layer.attr["padding"].s = b"VALID"
        del layer.attr["explicit_paddings"].list.i[:]
        source = nodes[graphs.node_name(layer.input[0])]
        if source.op != "Dequantize":
            pad.input.insert(0, layer.input[0])
            layer.input[0] = pad.name
            continue
        # copies of the two, which other layers may read as well, behind the Pad
        quantize, dequantize = (changed.node.add() for _ in range(2))
        quantize.CopyFrom(nodes[graphs.node_name(source.input[0])])
        dequantize.CopyFrom(source)
        quantize.name, dequantize.name = (f"{layer.name}/{end}" for end in ("padded", "dequantize"))
        pad.input.insert(0, quantize.input[0])
        quantize.input[0] = pad.name
        dequantize.input[:] = [quantize.name, f"{quantize.name}:1", f"{quantize.name}:2"]
        layer.input[0] = dequantize.name
    return graphs.extract(changed, [graphs.find_signature(graph_def).output])


def _pad_node(graph_def, layer):
    """A new Pad node with the explicit paddings of a layer; what it pads is still missing."""
    import tensorflow as tf

    paddings = np.array(layer.attr["explicit_paddings"].list.i, np.int32).reshape(-1, 2)
    amounts = graph_def.node.add(name=f"{layer.name}/paddings", op="Const")
    amounts.attr["dtype"].type = tf.int32.as_datatype_enum
    amounts.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(paddings))
    pad = graph_def.node.add(name=f"{layer.name}/pad", op="Pad")
    pad.attr["T"].type = tf.float32.as_datatype_enum
    pad.attr["Tpaddings"].type = tf.int32.as_datatype_enum
    pad.input.append(amounts.name)
    return pad


def clipped(path, fp32, images, folder, share=99.99, most=32):
    """An INT8 graph whose activations' ranges leave out what lies beyond a percentile.

    One image with a value far from all others makes every step larger; `share` is in percent,
    the ranges are means over batches of 8 of the first `most` images.
    """
    graph_def = graphs.read_graph(path)
    network = graphs.Network(graph_def)
    known = {node.name for node in fp32.node}
    sources = {}  # the activation -> the node that quantizes it
    for node in graph_def.node:
        if node.op == "QuantizeV2" and network.value(node.input[0]) is None:
            name = graphs.node_name(node.input[0])
            sources |= {name: node} if name in known else {}
    tensors, batches = graphs.Tensors(fp32, sources), []
    for start in range(0, min(most, len(images)), 8):
        found = tensors(images[start : start + 8])
        batches.append([np.percentile(found[name], (100 - share, share)) for name in sources])
    for node, (low, high) in zip(sources.values(), np.mean(batches, axis=0)):
        was_low, was_high = (float(network.value(name)) for name in node.input[1:3])
        if was_low < 0:
            high = max(abs(low), abs(high))
            low = -high
        ends = (max(low, was_low) if was_low < 0 else was_low), min(high, was_high)
        if ends[1] > ends[0]:
            for name, end in zip(node.input[1:3], ends):
                _set(network.nodes[graphs.node_name(name)], end)
    return graphs.write_graph(graph_def, folder / "clipped.pb")


def _set(constant, value):
    """Give a scalar constant of a range another value."""
    import tensorflow as tf

    shape = [dim.size for dim in constant.attr["value"].tensor.tensor_shape.dim]
    tensor = tf.make_tensor_proto(np.full(shape, value, np.float32))
    constant.attr["value"].tensor.CopyFrom(tensor)
