"""From the file of a trained model to a frozen float graph, whatever wrote the file."""

import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from helpers import UserError, benchmark, graphs, stats
from helpers.quantize import freezing

FORMS = "a .keras or .h5 file, the folder of a SavedModel, or a frozen .pb"
KERAS_FILES = (".keras", ".h5", ".hdf5")
ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF"
SAME_SQNR_DB = 40.0  # a frozen graph that is further from its model than this is another network
FLOAT_INSTEAD = "It can run in FP32, or in BF16 where the CPU has that, but not in INT8."


@dataclass(frozen=True)
class Source:
    """A trained model of one input and one output, read and frozen.

    `graph_def` is the frozen float graph, folded by freezing.STEPS, with one Placeholder of a free
    batch size. `kind` is "Keras model", "SavedModel" or "frozen graph". `input_name` and
    `output_name` are those of the original: Keras' input and output layer, the keys of the
    signature, or the nodes of the .pb. `predict(images, batch_size)` gives what the original model,
    before freezing, answers to images (N, …): array (N, …). `before` counts the operations of the
    frozen graph before it was folded, by kind.
    """

    graph_def: object
    kind: str
    input_name: str
    output_name: str
    predict: Callable
    before: Counter


def read(path, shape=None):
    """Read a model from a .keras or .h5 file, a SavedModel's folder or a frozen .pb: a Source.

    `shape` is that of one input without the batch, for a model that leaves some of it open. Nothing
    is written. Raises UserError for what is missing, cut short or not such a file, was written by
    Keras 3 or needs code of its own, has several inputs or outputs, or an input of text or of an
    open shape, and for what cannot be quantized: control flow, lookup tables, random numbers, no
    layers, layers that are not FP32.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no model at {path}. Give the path of {FORMS}.")
    if path.name == "saved_model.pb":
        path = path.parent
    if path.is_dir():
        return _read_saved_model(path, shape)
    suffix = path.suffix.lower()
    if suffix in KERAS_FILES:
        return _read_keras(path, shape)
    if suffix == ".pb":
        return _read_frozen(path, shape)
    raise UserError(
        f"{path} is no model that can be read here. Give {FORMS}; a model of another framework "
        "has to be converted to a SavedModel first."
    )


def check(source, fp32, images):
    """SQNR (dB) of what the frozen graph at `fp32` answers to images against the model's answers.

    Raises UserError where the graph does not compute what the model does.
    """
    sqnr = stats.sqnr_db(source.predict(images, 32), benchmark.outputs(fp32, images))
    if not sqnr > SAME_SQNR_DB:
        raise UserError(
            f"The frozen graph does not compute what the model computes (SQNR {sqnr:.1f} dB, at "
            f"least {SAME_SQNR_DB:.0f} wanted): something in it is random or depends on the batch. "
            "Export the model for inference as a SavedModel, and give that."
        )
    return sqnr


def _read_keras(path, shape):
    network, (input_name, output_name), shape, dtype = _keras_network(path, shape)

    def predict(images, batch_size=32):
        with freezing.without_functions():  # Keras would have XLA compile each grouped convolution
            return _in_batches(lambda batch: network(batch).numpy(), images, batch_size)

    graph_def, before = _freeze(path, network, shape, dtype)
    return Source(graph_def, "Keras model", input_name, output_name, predict, before)


def _keras_network(path, shape):
    """Of the model in a Keras file: (function of one tensor, names of its ends, shape, dtype)."""
    import tensorflow as tf

    model = _load_keras(path)
    if not model.inputs or not model.outputs:
        raise UserError(
            f"{path}: the model does not tell its input. Export it as a SavedModel where it was "
            'made, model.export("folder"), and give that folder.'
        )
    names = [_end_names(model.inputs), _end_names(model.outputs)]
    if major(metadata.version("keras")) < 3:  # whose model has names for its outputs
        names[1] = model.output_names
    _check_one(path, *names)
    (tensor,) = model.inputs
    dtype = tf.as_dtype(tensor.dtype)
    _check_dtype(path, dtype)
    shape = _fixed(path, tf.TensorShape(tensor.shape), shape)

    def network(x):
        return _one(model(x, training=False))

    network.variables = list(model.variables)  # a SavedModel has to be told of them
    return network, [one for (one,) in names], shape, dtype


def _end_names(tensors):
    """The names of the layers that tensors of a Keras model come from."""
    import tensorflow as tf

    return [tensor._keras_history[0].name for tensor in tf.nest.flatten(tensors)]


def export(path, folder, shape=None):
    """Write the model in a Keras file as a SavedModel, its ends named as before; gives the folder.

    For a file of Keras 2, which Keras 3 may not read as it was meant, on its way to another
    TensorFlow. Raises UserError as `read` does.
    """
    import tensorflow as tf

    network, (input_name, output_name), shape, dtype = _keras_network(path, shape)
    module = tf.Module()
    module.kept = network.variables  # not the model: all of its layers would be traced, too
    spec = tf.TensorSpec((None, *shape), dtype, name=input_name)
    function = tf.function(lambda x: {output_name: network(x)}, input_signature=[spec])
    with freezing.without_functions():
        traced = _try_to_freeze(path, function.get_concrete_function)
        tf.saved_model.save(module, str(folder), signatures={"serving_default": traced})
    return Path(folder)


def keras_version(path):
    """The version of Keras that a file names; None for other files, and where it names none."""
    path = Path(path)
    if path.suffix.lower() not in KERAS_FILES or not path.is_file():
        return None
    with open(path, "rb") as file:
        start = file.read(4)
    if start not in (ZIP, HDF5):
        return None
    return _version_in_zip(path) if start == ZIP else _version_in_hdf5(path)


def major(version):
    """The first number of a version."""
    return int(version.split(".")[0])


def _load_keras(path):
    """The Keras model in a file, or the UserError that says why there is none."""
    import tensorflow as tf

    with open(path, "rb") as file:
        start = file.read(4)
    if start not in (ZIP, HDF5):
        raise _not_whole(path, "it is neither a .keras nor an HDF5 file")
    version, here = keras_version(path), major(metadata.version("keras"))
    if version and major(version) > max(here, 2):
        folder = f"{path.stem}_saved_model"
        raise UserError(
            f"{path} was written by Keras {version}, whose files TensorFlow 2.15 cannot read. For "
            "INT8 without ITEX, on today's TensorFlow, add --runtime tensorflow. For ITEX, run "
            f"these two lines where it was made, and give the folder {folder}:\n    import keras\n"
            f'    keras.saving.load_model("{path.name}").export("{folder}")'
        )
    older = ""
    if version and major(version) < here:
        older = (
            f" It is a file of Keras {version}: env_intel_tf/bin/python -m helpers.quantize with "
        )
        older += "--runtime tensorflow reads it by that Keras."
    try:
        return tf.keras.models.load_model(path, compile=False, custom_objects=_of_applications())
    except Exception as error:  # Keras raises whatever it runs into
        raise UserError(
            f"The Keras of TensorFlow {tf.__version__} cannot make the model in {path} again: "
            f"{_what_is_missing(str(error)) or _first_line(error)}. Export the model as a "
            f'SavedModel where it was made, model.export("folder"), and give that folder.{older}'
        ) from error


def _of_applications():
    """{name: class} of layers that Keras Applications makes for itself; Keras has their code."""
    from tensorflow import keras

    applications, found = keras.applications, {}
    for module in (applications.convnext, applications.inception_resnet_v2):
        inside = vars(sys.modules[module.preprocess_input.__module__])
        found |= {
            name: thing
            for name, thing in inside.items()
            if isinstance(thing, type) and issubclass(thing, keras.layers.Layer)
        }
    return found


def _what_is_missing(text):
    """What a model needs that is not in its file, by the text of Keras' error; None for others."""
    if "safe_mode" in text or "Lambda" in text:
        return "it has a Lambda layer, which is code of its own"
    for pattern in (
        r"[Uu]nknown [\w ]+: *'?([\w>.]+)",
        r"[Uu]nknown [\w ]+ '\{.*'config': '(\w+)'",
        r"[Cc]ould not locate \w+ '([\w>.]+)'",
        r"layer=(\w+) of type <class 'str'>",
    ):
        if found := re.search(pattern, text):
            return f"it needs '{found[1]}', which is code of its own and is not in the file"
    return None


def _version_in_zip(path):
    """The version of Keras that a .keras file names; None where it names none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("metadata.json")).get("keras_version")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise _not_whole(path, _first_line(error)) from error


def _version_in_hdf5(path):
    """The version of Keras that an HDF5 file names; None where it names none."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version")
            has_model = "model_config" in file.attrs
    except OSError as error:
        raise _not_whole(path, _first_line(error)) from error
    version = version.decode() if isinstance(version, bytes) else version
    if not has_model:
        raise UserError(
            f"{path} holds weights or other data, but no model. Save the whole model where it was "
            'made, model.save("name.keras") or model.export("folder"), and give that.'
        )
    return version


def _read_saved_model(path, shape):
    signature = _load_signature(path)
    inputs = signature.structured_input_signature[1]
    _check_one(path, list(inputs), list(signature.structured_outputs))
    ((input_name, spec),) = inputs.items()
    (output_name,) = signature.structured_outputs
    _check_dtype(path, spec.dtype)
    shape = _fixed(path, spec.shape, shape)

    def network(x):
        return signature(**{input_name: x})[output_name]

    def predict(images, batch_size=32):
        import tensorflow as tf

        def answer(batch):
            return network(tf.constant(batch, spec.dtype)).numpy()

        return _in_batches(answer, images, batch_size)

    graph_def, before = _freeze(path, network, shape, spec.dtype)
    return Source(graph_def, "SavedModel", input_name, output_name, predict, before)


def _load_signature(path):
    """The signature serving_default of a SavedModel, which keeps its variables alive."""
    import tensorflow as tf

    if not any((path / name).exists() for name in ("saved_model.pb", "saved_model.pbtxt")):
        inner = sorted(each.parent for each in path.glob("*/saved_model.pb"))
        hint = f"Give {inner[0]}" if inner else f"Give {FORMS}"
        raise UserError(f"{path} is no SavedModel: it has no saved_model.pb. {hint}.")
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:  # of protobuf, of checkpoints, of operations that are not here
        missing = re.search(r"Op type not registered '(\w+)'", str(error))
        if missing:
            raise UserError(
                f"{path} needs the operation {missing[1]}, which is not TensorFlow's own. Export "
                "the model without it, or quantize it where its package is installed."
            ) from error
        raise _not_whole(path, _first_line(error)) from error
    if "serving_default" not in loaded.signatures:
        others = ", ".join(loaded.signatures) or "none"
        raise UserError(
            f"{path} has no signature serving_default (its signatures: {others}). Export the model "
            'again where it was made: model.export("folder") for a Keras model, otherwise '
            'tf.saved_model.save(model, "folder", signatures=function of one tensor).'
        )
    signature = loaded.signatures["serving_default"]
    signature.loaded = loaded  # its variables are gone with the object that holds them
    return signature


def _read_frozen(path, shape):
    import tensorflow as tf

    original = graphs.read_graph(path)
    graph_def = _try_to_freeze(path, lambda: freezing.inline(original))
    _check_operations(path, graph_def)
    inputs, outputs = _ends(graph_def)
    _check_one(path, inputs, outputs)
    signature = graphs.find_signature(graph_def, path=path)
    _check_dtype(path, tf.as_dtype(signature.dtype))
    placeholder = next(node for node in graph_def.node if node.name == signature.input)
    stated = placeholder.attr["shape"].shape
    stated = tf.TensorShape(stated) if stated.dim else tf.TensorShape(None)
    fixed = tf.TensorShape((None, *_fixed(path, stated, shape)))
    placeholder.attr["shape"].shape.CopyFrom(fixed.as_proto())
    folded = _try_to_freeze(path, lambda: freezing.fold(graph_def, signature.output))
    _check_graph(path, folded)

    def predict(images, batch_size=32):
        network = graphs.FrozenGraph(original, signature.input, signature.output, stock=True)
        return network.predict(images, batch_size)

    before = _operations(graphs.extract(graph_def, [signature.output]))
    return Source(folded, "frozen graph", signature.input, signature.output, predict, before)


def _ends(graph_def):
    """The names of the inputs and outputs of a GraphDef."""
    read = {graphs.node_name(source) for node in graph_def.node for source in node.input}
    inputs = [node.name for node in graph_def.node if node.op == "Placeholder"]
    no_outputs = (*graphs.CONSTANTS, "NoOp", "Placeholder", "Assert")
    outputs = [
        node.name for node in graph_def.node if node.name not in read and node.op not in no_outputs
    ]
    return inputs, outputs


def _one(output):
    """The one tensor in what a model gives: a tensor, or a list or dict of one."""
    import tensorflow as tf

    (tensor,) = tf.nest.flatten(output)
    return tensor


def _in_batches(answer, images, batch_size):
    import numpy as np

    starts = range(0, len(images), batch_size)
    return np.concatenate([answer(images[start : start + batch_size]) for start in starts])


def _check_one(path, inputs, outputs):
    """UserError unless there is one input and one output."""
    for kind, names in (("input", inputs), ("output", outputs)):
        if len(names) != 1:
            listed = ", ".join(map(str, names[:8])) or "none"
            raise UserError(
                f"{path} has {len(names)} {kind}s ({listed}); a network of one is needed. Where it "
                "was made, wrap or cut it to one input and one output, as in "
                "tf.keras.Model(one_input, one_output), and export that."
            )


def _check_dtype(path, dtype):
    if not (dtype.is_floating or dtype.is_integer):
        raise UserError(
            f"{path} takes {dtype.name}s; numbers are needed. Where it was made, leave out what "
            "comes before the first layer of numbers (decoding, splitting text, looking words up), "
            "and export the rest."
        )


def _fixed(path, stated, shape):
    """The shape of one input without the batch: as the model states it, or as asked.

    `stated` is the model's tf.TensorShape, with the batch. UserError where dimensions are unknown
    and none are asked for, where the two do not fit, and where the batch is not free.
    """
    if stated.rank is not None and stated.rank and stated[0] is not None:
        raise UserError(
            f"{path} takes batches of {stated[0]} only. Where it was made, export it with a free "
            "batch size: None as the first dimension of its input."
        )
    known = None if stated.rank is None else tuple(stated[1:])
    if shape is None and (known is None or None in known):
        sizes = "unknown" if known is None else f"({', '.join(map(str, known))})"
        raise UserError(
            f"The shape of the input of {path} is {sizes}, without the batch; every dimension has "
            "to be known. Name it, as in --shape 224,224,3."
        )
    if shape is None:
        return known
    shape = tuple(shape)
    if known is not None and (
        len(known) != len(shape) or any(a not in (None, b) for a, b in zip(known, shape))
    ):
        raise UserError(
            f"{path} takes inputs of the shape ({', '.join(map(str, known))}), without the batch; "
            f"({', '.join(map(str, shape))}) was asked for. Leave --shape out, or change it."
        )
    return shape


def _freeze(path, network, shape, dtype):
    """The frozen GraphDef of a function of one tensor, checked; its operations before folding."""
    traced = _try_to_freeze(path, lambda: freezing.trace(network, shape, dtype))
    try:
        plain = freezing.unfolded(traced)
        graph_def = freezing.fold(plain, "predict")
    except Exception as error:  # TensorFlow raises of many kinds; some operations are the reason
        graph_def = traced.graph.as_graph_def()
        _check_operations(path, graph_def, REFUSED[:-1])  # it has variables still
        raise _cannot_be_frozen(path, error) from error
    _check_graph(path, graph_def)
    return graph_def, _operations(plain)


def _operations(graph_def):
    return Counter(node.op for node in graph_def.node)


def _try_to_freeze(path, work):
    """What `work()` gives; UserError for whatever TensorFlow raises in it."""
    try:
        return work()
    except Exception as error:  # layers refuse a shape, TensorFlow an operation that it has not
        raise _cannot_be_frozen(path, error) from error


def _cannot_be_frozen(path, error):
    return UserError(
        f"{path} cannot be frozen ({_first_line(error)}). Check --shape where it was given; "
        "otherwise leave out what holds a state, and export the model again where it was made."
    )


def _check_graph(path, graph_def):
    """UserError for a frozen graph that has operations that cannot be quantized or no layers."""
    _check_operations(path, graph_def)
    layers = [node for node in graph_def.node if node.op in graphs.LAYER_OPS]
    if not layers:
        products = {node.op for node in graph_def.node} & PRODUCTS
        others = f" (only {', '.join(sorted(products))}, which stay float)" if products else ""
        raise UserError(
            f"{path} has no convolution or matrix product that INT8 is made for{others}. "
            + FLOAT_INSTEAD
        )
    graphs.find_signature(graph_def, path=path)
    for node in layers:
        kind = _type_name(node.attr["T"].type)
        if kind != "float32":
            raise UserError(
                f"{path}: the layer {node.name} computes in {kind}; FP32 is what is quantized. "
                "Where it was made, export it in FP32 (Keras: without a mixed-precision policy)."
            )


def _type_name(number):
    import tensorflow as tf

    return tf.as_dtype(number).name


PRODUCTS = {
    *("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"),
    *("Conv2DBackpropInput", "Conv3D", "Conv3DBackpropInputV2"),
}
# what no quantization here takes: (what it is, pattern of the operations, why and what then)
REFUSED = (
    (
        "has control flow, as recurrent layers have",
        r"(Stateless)?(While|If|Case)|Enter|Exit|NextIteration|Switch|Merge|LoopCond|TensorList\w+",
        "Intel Neural Compressor quantizes no loops or branches. " + FLOAT_INSTEAD,
    ),
    (
        "looks values up in a table",
        r"LookupTable\w+|(Mutable)?HashTable\w*|MutableDenseHashTable\w*|InitializeTable\w*",
        "A frozen graph holds no tables. Where it was made, export the part behind the lookup.",
    ),
    (
        "draws random numbers",
        r"(Stateless)?(Random|TruncatedNormal|Multinomial|ParameterizedTruncated)\w*"
        r"|Stateful(Random|Uniform|StandardNormal|Truncated)\w*|Rng\w+|StatelessRng\w*",
        "It answers differently each time, so that INT8 cannot be compared. Where it was made, "
        "export it for inference (training=False, no layers that vary images).",
    ),
    (
        "is quantized already",
        r"QuantizeV2|Dequantize|Quantized\w+|_?\w*FusedQuantized\w+|FakeQuantWith\w+",
        "Give the FP32 model that it was made of.",
    ),
    (
        "runs code outside of TensorFlow",
        r"(Eager)?PyFunc\w*",
        "Where it was made, write that in TensorFlow's operations, and export it again.",
    ),
    (
        "has variables",
        r"VariableV2|VarHandleOp|ReadVariableOp",
        "A frozen graph holds constants only. Give the SavedModel that it was made of.",
    ),
)


def _check_operations(path, graph_def, refused=REFUSED):
    """UserError where an operation of the graph or its functions is one of those refused."""
    functions = [node for each in graph_def.library.function for node in each.node_def]
    found = {node.op for node in [*graph_def.node, *functions]}
    for what, pattern, why in refused:
        ops = sorted(op for op in found if re.fullmatch(pattern, op))
        if ops:
            raise UserError(f"{path} {what} ({', '.join(ops[:4])}). {why}")


def _not_whole(path, reason):
    return UserError(
        f"{path} is not a whole model ({reason}). Copy or save it again; give {FORMS}."
    )


def _first_line(error):
    """The first line of an error's text, short enough for a sentence."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:197] + "…"
