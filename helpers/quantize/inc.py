"""Around Intel Neural Compressor: calibration data, a quiet run, and what it does not do itself."""

import contextlib
import ctypes
import gc
import logging
import os
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

from helpers import UserError, files, graphs
from helpers.quantize import folding, freezing

_DESCRIPTOR_2 = open(2, "w", buffering=1, closefd=False)  # open for as long as INC is loaded


class CalibrationLoader:
    """The data loader INC wants: iterates over (images, dummy labels) in whole batches.

    `images` has shape (N, …); a last batch that is not full is left out, and there has to be one
    full batch.
    """

    def __init__(self, images, batch_size=8):
        if len(images) < batch_size:
            raise ValueError(f"{len(images)} images do not fill one batch of {batch_size}.")
        self.images, self.batch_size = images, batch_size

    def __len__(self):
        return len(self.images) // self.batch_size

    def __iter__(self):
        for index in range(len(self)):
            start = index * self.batch_size
            yield self.images[start : start + self.batch_size], np.zeros(self.batch_size)


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def _keep_freed_memory():
    """Have this process reuse large blocks of memory instead of giving each back to the system.

    INC copies the graph about a hundred times, TensorFlow a dozen times when it loads one; mapping
    the memory anew takes a quarter of either's time.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, 2**30)
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def give_memory_back():
    """Give the system what this process has freed and kept, and large blocks from now on at once.

    Other processes may need it next: of VGG16 it is 8 GB. Graphs and Keras models hold one another
    in circles, so Python is made to look for those first.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, 2**25)  # the largest that glibc comes to by itself
    libc.mallopt(TRIM_THRESHOLD, 2**26)
    libc.malloc_trim(0)


@contextlib.contextmanager
def quiet(log):
    """Send what INC, TensorFlow and their C++ libraries print to the file `log`.

    Restores the environment variables that INC changes, so that processes started later do not
    inherit them. What Python code in the block prints goes to the log, too.
    """
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    _keep_freed_memory()
    before, saved = dict(os.environ), [os.dup(1), os.dup(2)]
    logger = logging.getLogger("tensorflow")
    handlers = [item for item in logger.handlers if isinstance(item, logging.StreamHandler)]
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        streams = [handler.setStream(_DESCRIPTOR_2) for handler in handlers]
        try:
            with (
                contextlib.redirect_stdout(_DESCRIPTOR_2),
                contextlib.redirect_stderr(_DESCRIPTOR_2),
            ):
                # INC reads calibration ranges back from sys.stderr as it was at INC's import, so
                # that has to be descriptor 2 itself; a notebook kernel's sys.stderr is not
                from neural_compressor.tensorflow.utils import model as inc

                with tempfile.TemporaryDirectory(prefix="inc_") as workspace:
                    # not the current folder; the first is for the next quantization, the second for
                    # those after it (autotune), to which INC goes back
                    inc.TFConfig.global_config["workspace_path"] = workspace
                    inc.DEFAULT_WORKSPACE = workspace
                    yield log
        finally:
            _DESCRIPTOR_2.flush()
            for number, copy in enumerate(saved, 1):
                os.dup2(copy, number)
                os.close(copy)
            for handler, stream in zip(handlers, streams):
                handler.setStream(stream or _DESCRIPTOR_2)  # None: it was that one already
            os.environ.clear()
            os.environ.update(before)
            give_memory_back()


def quantize(
    source,
    images,
    path,
    *,
    granularity="per_channel",
    batch_size=8,
    form="qdq",
    float_layers=(),
    algorithm="minmax",
    log=None,
):
    """Quantize the frozen graph `source` with INC, calibrated on `images` (N, …): gives `path`.

    Notebook 03 writes the steps out. `granularity` is that of the weights (per_tensor or
    per_channel), `algorithm` that of the activations' ranges (minmax or kl), `float_layers` name
    what stays FP32. `form` "qdq" is what ITEX runs, "legacy" TensorFlow's own integer operations.
    A `path` that was made of the same graph, images, settings, code and versions is taken as it
    is (files.made_from); `log` (by default beside it) gets what INC prints. Grouped convolutions
    stay FP32 in the form "qdq": INT8 ones end the process in oneDNN. Raises UserError for
    what is no graph, for layers it has not, and where INC gives up.
    """
    source, path = Path(source).resolve(), Path(path).resolve()
    log = Path(log or path.with_suffix(".log")).resolve()
    graph_def = graphs.read_graph(source)
    unknown = set(float_layers) - {layer.name for layer in graphs.layers(graph_def)}
    if unknown:
        raise UserError(f"{source.name} has no layer {', '.join(sorted(unknown))}.")
    if form not in ("qdq", "legacy"):
        raise UserError(f"There is no form '{form}'; there are 'qdq' and 'legacy'.")
    if form == "legacy":
        graphs.unfold_paddings(graph_def)
    else:  # ITEX cannot run grouped convolutions in INT8: "std::length_error" ends the process
        float_layers = {*float_layers, *folding.grouped_convolutions(graph_def)}
    settings = (granularity, batch_size, form, sorted(float_layers), algorithm)

    def make():
        loader = CalibrationLoader(images, min(batch_size, len(images)))
        graphs.write_graph(_quantized(graph_def, loader, settings, source.name, log), path)

    code = (sys.modules[__name__], graphs, freezing, folding)
    return files.made_from(path, (source, np.asarray(images), settings, *_versions(), *code), make)


def _versions():
    """Of all that has a say in what a quantized graph looks like; None where it is not there."""
    for name in ("tensorflow", "intel-extension-for-tensorflow", "neural-compressor"):
        try:
            yield metadata.version(name)
        except metadata.PackageNotFoundError:
            yield None


def _quantized(graph_def, loader, settings, name, log):
    """The GraphDef that INC makes of one, mended."""
    granularity, _, form, float_layers, algorithm = settings
    renamed, given = safe_names(graph_def)
    safe = {given_name: safe_name for safe_name, given_name in given.items()}
    # asked for KL, INC writes into the current folder
    with quiet(log), tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        from neural_compressor.tensorflow import StaticQuantConfig, quantize_model
        from neural_compressor.tensorflow.utils.model import Model, TFConfig

        config = StaticQuantConfig(weight_granularity=granularity, act_algorithm=algorithm)
        for layer in float_layers:  # INC takes a name for a pattern that names begin with
            pattern = re.escape(safe.get(layer, layer)) + "$"
            config.set_local(pattern, StaticQuantConfig(weight_dtype="fp32", act_dtype="fp32"))
        try:
            model = Model(str(graphs.write_graph(renamed, Path(scratch) / "source.pb")))
            TFConfig.global_config["backend"] = {"legacy": "default", "qdq": "itex"}[form]
            with _without_asking_for_itex():
                quantized = quantize_model(model, config, loader, len(loader)).graph_def
        except Exception as error:  # INC raises whatever its passes run into
            raise UserError(
                f"Intel Neural Compressor gives no INT8 graph for {name} ({error}). What it did "
                f"stands in {log}; a network with operations that it cannot read (functions, "
                "control flow) has to be frozen without them, or stays FP32 or BF16."
            ) from error
    if form == "qdq":
        _sign_what_is_negative(quantized)
        quantized = _leave_mixed_pools_float(quantized)
    return _rename(quantized, given)


@contextlib.contextmanager
def _without_asking_for_itex():
    """Have INC write the form "qdq" where ITEX is not installed; TensorFlow runs it in float."""
    from neural_compressor.tensorflow.algorithms.static_quant import tensorflow

    adaptor = tensorflow.TensorFlowAdaptor
    before, adaptor._check_itex = adaptor._check_itex, lambda self: None
    try:
        yield
    finally:
        adaptor._check_itex = before


def safe_names(graph_def):
    """A copy whose names INC does not cut, and {name in it: name given} of those that differ.

    INC looks for words of its own in the names of operations, "__" among them; what it does not
    recognise any more it leaves in FP32 without a word.
    """
    taken, safe = {node.name for node in graph_def.node}, {}
    for node in graph_def.node:
        name = re.sub("_{2,}", "_", node.name).replace("_eightbit_", "_eight_bit_")
        name = name.replace("_requant", "_re_quant")
        if name != node.name:
            while name in taken:
                name += "_x"
            taken.add(name)
            safe[node.name] = name
    return _rename(graph_def, safe), {name: given for given, name in safe.items()}


def _rename(graph_def, names):
    """A copy of a GraphDef with other names: {now: then}."""
    changed = type(graph_def)()
    changed.CopyFrom(graph_def)
    for node in changed.node:
        node.name = names.get(node.name, node.name)
        for index, source in enumerate(node.input):
            name = graphs.node_name(source)
            if name in names:
                node.input[index] = source.replace(name, names[name], 1)
    return changed


def _sign_what_is_negative(graph_def):
    """Use signed bytes where INC chose unsigned ones for values that were negative, in place.

    It takes what an Elu gives for positive, and may look past a bias for a Relu; all below zero
    would become zero.
    """
    import tensorflow as tf

    network = graphs.Network(graph_def)
    signed, unsigned = tf.qint8.as_datatype_enum, tf.quint8.as_datatype_enum
    for node in graph_def.node:
        if node.op != "QuantizeV2" or node.attr["T"].type != unsigned:
            continue
        low, high = (network.value(name) for name in node.input[1:3])
        if node.attr["mode"].s == b"SCALED" and low < -np.abs(high) / 255:
            node.attr["T"].type = signed
            for reader, _ in network.readers[node.name]:
                reader.attr["T"].type = signed


def _leave_mixed_pools_float(graph_def):
    """The graph with those pools in float that would read one kind of bytes and give another.

    ITEX hands a pool and the quantizations around it to oneDNN as one piece, which ends the
    process ("partition compile failed") where one is signed and the other is not: INC quantizes
    what a matrix product reads to unsigned bytes, whatever the pool before it reads.
    """
    network, output = graphs.Network(graph_def), graphs.find_signature(graph_def).output
    for pool in graph_def.node:
        source = network.nodes[graphs.node_name(pool.input[0])] if pool.input else None
        if pool.op not in ("AvgPool", "MaxPool") or source.op != "Dequantize":
            continue
        readers = network.readers_through(pool.name, ("Reshape", "Squeeze"))
        kinds = {node.attr["T"].type for node, _ in readers if node.op == "QuantizeV2"}
        if kinds - {source.attr["T"].type}:
            pool.input[0] = network.nodes[source.input[0]].input[0]
    return graphs.extract(graph_def, [output])
