"""From a network that TensorFlow can call to a frozen graph, with what can be folded folded."""

import contextlib

from helpers.graphs import extract, node_name, write_graph
from helpers.quantize import folding

# what is done to a float graph, in this order
STEPS = (
    folding.write_depthwise,
    folding.fold_batch_norms,
    folding.fold_paddings,
    folding.pool_means,
)


def freeze(model, path, input_name="input", output_name="predict"):
    """Write a Keras model as a frozen graph, its batch norms and paddings folded into the layers.

    The file has one input of the model's shape with a free batch size and one output. Folding is
    what a graph-optimised FP32 model gets, so that INT8 is not compared with a slower one; a mean
    over the image becomes an average pool where INT8 gains by it.
    """
    traced = trace(
        lambda x: model(x, training=False),
        model.input_shape[1:],
        input_name=input_name,
        output_name=output_name,
    )
    return write_graph(freeze_traced(traced, output_name), path)


def trace(network, shape, dtype="float32", input_name="input", output_name="predict"):
    """The ConcreteFunction of `network`, called with one tensor and giving one, for any batch size.

    `shape` is that of one input, without the batch.
    """
    import tensorflow as tf

    spec = tf.TensorSpec((None, *shape), dtype, name=input_name)
    function = tf.function(lambda x: tf.identity(network(x), name=output_name))
    # Keras calls a function for a grouped convolution (ConvNeXt, RegNet). Traced like this, what
    # is in it becomes part of the graph; TensorFlow 1's graph utilities below would lose it
    with without_functions():
        return function.get_concrete_function(spec)


@contextlib.contextmanager
def without_functions():
    """Have what a tf.function does be done where it is called."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def freeze_traced(traced, output_name="predict"):
    """The frozen GraphDef of a ConcreteFunction, folded; its node `output_name` is the output."""
    return fold(unfolded(traced), output_name)


def unfolded(traced):
    """The frozen GraphDef of a ConcreteFunction as it is, without functions in it."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return inline(convert_variables_to_constants_v2(traced).graph.as_graph_def())


def fold(graph_def, output_name):
    """A GraphDef without functions, from its Placeholder to the node named, with STEPS applied."""
    import tensorflow as tf

    plain = type(graph_def)()
    plain.CopyFrom(graph_def)
    for node in plain.node:  # control inputs order reads of variables; there are none left
        data = [name for name in node.input if not name.startswith("^")]
        del node.input[:]
        node.input.extend(data)
    plain = tf.compat.v1.graph_util.remove_training_nodes(
        extract(plain, [output_name]), [output_name]
    )
    for step in STEPS:
        step(plain)
    return extract(plain, [output_name])


def inline(graph_def):
    """A copy of a GraphDef with what is in the functions that it calls in the place of the calls.

    TensorFlow leaves a call where the function is marked for XLA, as Keras marks that of a grouped
    convolution in a SavedModel. Control flow (While, If) keeps its functions.
    """
    plain = type(graph_def)()
    plain.CopyFrom(graph_def)
    functions = {each.signature.name: each for each in plain.library.function}
    while calls := [node for node in plain.node if node.op in CALLS]:  # functions call functions
        outputs = {}
        for call in calls:
            body, outputs[call.name] = _body(call, functions[call.attr["f"].func.name])
            plain.node.remove(call)
            plain.node.extend(body)
        for node in plain.node:
            for index, source in enumerate(node.input):
                while node_name(source) in outputs and not source.startswith("^"):
                    name, _, number = source.partition(":")
                    source = outputs[name][int(number or 0)]
                node.input[index] = source
    return plain


def _body(call, function):
    """The nodes of a function for one call of it, and the names of the tensors that it gives."""
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

    inside, flat = function_def_to_graph_def(function)
    arguments = [argument.name for argument in function.signature.input_arg]
    given = dict(zip(arguments, [name for name in call.input if not name.startswith("^")]))

    def outside(source):
        name = node_name(source)
        return given.get(name) or source.replace(name, f"{call.name}/{name}", 1).removesuffix(":0")

    body = [node for node in inside.node if node.name not in given]
    for node in body:
        node.name = f"{call.name}/{node.name}"
        data = [source for source in node.input if not source.startswith("^")]
        node.input[:] = map(outside, data)
    results = [function.ret[output.name] for output in function.signature.output_arg]
    return body, [outside(flat[result]) for result in results]


CALLS = ("PartitionedCall", "StatefulPartitionedCall")
