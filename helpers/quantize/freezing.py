"""From a Keras model to a frozen graph, with what can be folded folded."""

from helpers.graphs import extract, write_graph
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
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name=input_name)
    function = tf.function(lambda x: tf.identity(model(x, training=False), name=output_name))
    before = tf.config.functions_run_eagerly()
    # Keras calls a function for a grouped convolution (ConvNeXt, RegNet). Traced like this, what
    # is in it becomes part of the graph; TensorFlow 1's graph utilities below would lose it
    tf.config.run_functions_eagerly(True)
    try:
        traced = function.get_concrete_function(spec)
    finally:
        tf.config.run_functions_eagerly(before)
    frozen = convert_variables_to_constants_v2(traced)
    graph_def = frozen.graph.as_graph_def()
    for node in graph_def.node:  # control inputs order reads of variables; there are none left
        data = [name for name in node.input if not name.startswith("^")]
        del node.input[:]
        node.input.extend(data)
    plain = tf.compat.v1.graph_util.remove_training_nodes(
        extract(graph_def, [output_name]), [output_name]
    )
    for step in STEPS:
        step(plain)
    return write_graph(extract(plain, [output_name]), path)
