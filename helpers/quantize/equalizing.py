"""Cross-layer equalization: the same function with weights that one scale per tensor holds better.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction".
"""

import numpy as np

from helpers import graphs

# what lies between two layers and gives s·y for s·x, s > 0, each channel for itself
HOMOGENEOUS = ("Relu", "MaxPool", "AvgPool", "Identity", "Squeeze")


def pairs(graph_def):
    """[(layer, next layer)] of a folded float graph between which each channel may be scaled.

    The first layer's output is read by the second alone, with nothing but a bias, a Relu or pools
    between them; a Relu6 clips, so it is not passed, and neither is a Reshape that makes several
    inputs of a channel.
    """
    weights, network, found = graphs.weights(graph_def), graphs.Network(graph_def), []
    own = {name for name in weights if _alone(network, name)}
    for name in own:
        end = name
        while len(network.readers[end]) == 1:
            reader, index = network.readers[end][0]
            if reader.name in own and index == 0:
                outputs = _outputs(network.nodes[name], weights[name][0]).shape[1]
                if len(_inputs(reader, weights[reader.name][0])) == outputs:
                    found.append((name, reader.name))
            if reader.op not in (*HOMOGENEOUS, "BiasAdd", "Reshape"):
                break
            end = reader.name
    order = list(weights)
    return sorted(found, key=lambda pair: order.index(pair[0]))


def _alone(network, name):
    """Whether nothing but this layer reads its kernel (shared weights cannot be scaled)."""
    kernel = graphs.node_name(network.nodes[name].input[1])
    return len(network.readers[kernel]) == 1


def equalize(graph_def, sweeps=60):
    """A copy in which every pair of layers has equal ranges per channel; None without a pair.

    Channel c leaves one layer divided by s and enters the next multiplied by s, with
    s = √(r₁ / r₂) of the largest weights r that make and that read it. Repeated until nothing
    moves by more than half a percent, at most `sweeps` times.
    """
    chain, nodes = pairs(graph_def), graphs.Network(graph_def).nodes
    if not chain:
        return None
    values = {
        name: [array.astype(np.float64) for array in pair]
        for name, pair in graphs.weights(graph_def).items()
    }
    for _ in range(sweeps):
        largest = 1.0
        for one, other in chain:
            made, read = (
                _outputs(nodes[one], values[one][0]),
                _inputs(nodes[other], values[other][0]),
            )
            r1, r2 = np.abs(made).max(axis=0), np.abs(read).reshape(len(read), -1).max(axis=1)
            s = np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=(r1 > 0) & (r2 > 0)))
            made /= s
            values[one][1] /= s
            read *= s.reshape(-1, *[1] * (read.ndim - 1))
            largest = max(largest, s.max(), 1 / s.min())
        if largest < 1.005:
            break
    return graphs.with_weights(graph_def, values)


def _outputs(node, kernel):
    """A view of a layer's kernel as (weights that make it, output channel)."""
    if node.op == "MatMul":
        return kernel.T if node.attr["transpose_b"].b else kernel
    if node.op == "DepthwiseConv2dNative":
        return kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)
    return kernel.reshape(-1, kernel.shape[-1])


def _inputs(node, kernel):
    """A view of a layer's kernel as (input channel, weights that read it)."""
    if node.op == "MatMul":
        return kernel.T if node.attr["transpose_b"].b else kernel
    height, width, channels, outputs = kernel.shape
    return kernel.reshape(height * width, channels, outputs).transpose(1, 0, 2)
