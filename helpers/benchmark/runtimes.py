"""What a worker can run a model with: TensorFlow, OpenVINO, ONNX Runtime and LiteRT.

Each is called with a batch (N, …) and gives the output as a NumPy array. It has the `signature` of
the model, says in `facts` what it is, and tells in `kernels` what it executes. All but
TensorFlow are imported in env_peers/ only.
"""

import contextlib
import ctypes
import functools
import os
import tempfile

import numpy as np

from helpers import UserError, graphs, machine
from helpers.benchmark import kernels
from helpers.benchmark.candidate import CLOCK, steering


def load(job):
    """The model of a job (the fields of a Candidate, with `threads` and `cpus`) in its runtime."""
    if job["cpus"]:
        os.sched_setaffinity(0, job["cpus"])
    return RUNTIMES[job["runtime"]](job)


def in_batches(call, images, batch_size):
    """The outputs of `call` for all images (N, …), batch by batch."""
    starts = range(0, len(images), batch_size)
    return np.concatenate([call(images[start : start + batch_size]) for start in starts])


@contextlib.contextmanager
def _printed(lines):
    """Add the lines to `lines` that native code prints to descriptor 1 in the block."""
    libc, kept = ctypes.CDLL(None), os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield
        finally:
            libc.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
        file.seek(0)
        lines += file.read().decode(errors="replace").splitlines()


class TensorFlow:
    """A frozen graph in a Session, under ITEX or, with `stock`, without.

    Of TensorFlow's own oneDNN there is a log where the process began with ONEDNN_VERBOSE=1.
    """

    def __init__(self, job):
        names = job["input_name"], job["output_name"]
        self._stock = job["stock"]
        self._graph = graphs.FrozenGraph(job["graph"], *names, stock=self._stock)
        self.signature = self._graph.signature
        layers = graphs.layers(self._graph.session.graph.as_graph_def())
        self.facts = {
            "device": self._graph.device,
            "software": self._software(job["runtime"]),
            "layers": {"int8": sum(layer.int8 for layer in layers), "all": len(layers)},
            "environment": steering(os.environ),
        }

    @staticmethod
    def _software(runtime):
        import tensorflow as tf

        if runtime == "tensorflow-current":
            return {"tensorflow_current": tf.__version__}
        return {"onednn": machine.onednn_version()}

    def __call__(self, batch):
        return self._graph(batch)

    def predict(self, images, batch_size):
        return self._graph.predict(images, batch_size)

    def kernels(self, call):
        """{"ms": of the call, "primitives": the fields of each kernels.Primitive, "source"}."""
        libraries = [] if self._stock else machine.onednn_libraries()
        logs = os.environ.get("ONEDNN_VERBOSE") == "1"
        if not libraries and not logs:  # TensorFlow's own cannot be asked once it is loaded
            return {"ms": None, "primitives": self._operations(), "source": "TensorFlow's graph"}
        lines = []
        with _printed(lines):
            for library in libraries:
                library.dnnl_set_verbose(1)
            try:
                start = CLOCK()
                call()
                ms = 1e3 * (CLOCK() - start)
            finally:
                for library in libraries:
                    library.dnnl_set_verbose(int(logs))
        rows = [list(vars(primitive).values()) for primitive in kernels.parse(lines)]
        return {"ms": ms, "primitives": rows, "source": "oneDNN's log"}

    def _operations(self):
        """The layers of the graph as TensorFlow's passes left it, which is what is executed."""
        import tensorflow as tf

        options = tf.compat.v1.RunOptions(output_partition_graphs=True)
        metadata = tf.compat.v1.RunMetadata()
        shape = (1, *(size or 1 for size in self.signature.shape or ()))
        self._graph.session.run(
            self.signature.output + ":0",
            {self.signature.input + ":0": np.zeros(shape, self.signature.dtype)},
            options=options,
            run_metadata=metadata,
        )
        nodes = [node for part in metadata.partition_graphs for node in part.node]
        return [_as_primitive(node) for node in nodes if _is_layer(node)]


def _is_layer(node):
    return any(word in node.op for word in ("Conv2D", "DepthwiseConv", "MatMul")) and not any(
        word in node.op for word in ("Backprop", "Grad")
    )


def _as_primitive(node):
    """The fields of a kernels.Primitive for a layer of an executed TensorFlow graph."""
    import tensorflow as tf

    names = {tf.float32: "f32", tf.bfloat16: "bf16", tf.half: "f16"}
    weights = "s8" if "Quantized" in node.op else "f32"
    if weights == "f32" and "T" in node.attr:
        weights = names.get(tf.as_dtype(node.attr["T"].type), "f32")
    primitive = "matmul" if "MatMul" in node.op else "convolution"
    return [primitive, weights, node.op, "", None]


class OpenVINO:
    """An OpenVINO model on one stream of all threads, compiled for each batch size of its own."""

    def __init__(self, job):
        import openvino as ov

        self._core, self._requests = ov.Core(), {}
        self._model = self._core.read_model(job["graph"])
        source, target = self._model.inputs[0], self._model.outputs[0]
        sizes = [None if size.is_dynamic else size.get_length() for size in source.partial_shape]
        self.signature = graphs.Signature(
            source.any_name, target.any_name, tuple(sizes[1:]), "float32"
        )
        self._options = {
            "PERFORMANCE_HINT": job["options"].get("hint", "LATENCY"),
            "INFERENCE_NUM_THREADS": job["threads"],
            "NUM_STREAMS": 1,
        }
        executed = self._executed((1, *sizes[1:]))
        self.facts = {
            "device": "CPU",
            "software": {"openvino": ov.__version__},
            "layers": {"int8": sum(kind == "s8" for kind, _ in executed), "all": len(executed)},
            "environment": steering(os.environ) | {"openvino": self._options},
        }

    def _request(self, batch_shape):
        if batch_shape not in self._requests:
            model = self._model.clone()
            model.reshape(list(batch_shape))
            compiled = self._core.compile_model(model, "CPU", self._options)
            self._requests[batch_shape] = compiled.create_infer_request()
        return self._requests[batch_shape]

    def __call__(self, batch):
        return self._request(batch.shape).infer([batch], share_inputs=True)[0]

    def predict(self, images, batch_size):
        return in_batches(self, images, batch_size)

    def _executed(self, batch_shape):
        """(weight type, kernel) of the convolutions and matrix products as they are executed."""
        compiled = self._request(tuple(batch_shape)).get_compiled_model()
        facts = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
        layers = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")
        types = {"i8": "s8", "u8": "s8", "bf16": "bf16"}
        return [
            (
                types.get(fact["runtimePrecision"].astype(str), "f32"),
                fact["primitiveType"].astype(str),
            )
            for fact in facts
            if fact["layerType"].astype(str) in layers
        ]

    def kernels(self, call):
        call()
        shape = next(reversed(self._requests))
        rows = [["layer", kind, kernel, "", None] for kind, kernel in self._executed(shape)]
        return {"ms": None, "primitives": rows, "source": "OpenVINO's runtime model"}


class OnnxRuntime:
    """An ONNX model in a session of all threads."""

    def __init__(self, job):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        with tempfile.TemporaryDirectory(prefix="onnxruntime_") as scratch:
            options.optimized_model_filepath = f"{scratch}/optimized.onnx"
            self._session = ort.InferenceSession(job["graph"], options, ["CPUExecutionProvider"])
            self._layers = self._executed(options.optimized_model_filepath)
        source, target = self._session.get_inputs()[0], self._session.get_outputs()[0]
        sizes = [size if isinstance(size, int) else None for size in source.shape[1:]]
        self.signature = graphs.Signature(source.name, target.name, tuple(sizes), "float32")
        kinds = [weights for _, weights, *_ in self._layers]
        self.facts = {
            "device": "CPU",
            "software": {"onnxruntime": ort.__version__},
            "layers": {"int8": kinds.count("s8"), "all": len(kinds)},
            "environment": steering(os.environ),
        }

    @staticmethod
    def _executed(path):
        """The fields of a kernels.Primitive for each layer of the optimised graph."""
        import onnx

        rows = []
        for node in onnx.load(path, load_external_data=False).graph.node:
            if any(word in node.op_type for word in ("Conv", "Gemm", "MatMul")):
                quantized = node.op_type.startswith("Q") or "Integer" in node.op_type
                rows.append(["layer", "s8" if quantized else "f32", node.op_type, "", None])
        return rows

    def __call__(self, batch):
        return self._session.run(None, {self.signature.input: batch})[0]

    def predict(self, images, batch_size):
        return in_batches(self, images, batch_size)

    def kernels(self, call):
        call()
        return {"ms": None, "primitives": self._layers, "source": "ONNX Runtime's optimised graph"}


class LiteRT:
    """A .tflite model on all threads, in an interpreter for each batch size of its own.

    Not LiteRT's CompiledModel: it has the same kernels (XNNPACK's), but does not tell of them.
    """

    LAYERS = (
        *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D"),
        *("FULLY_CONNECTED", "BATCH_MATMUL"),
    )

    def __init__(self, job):
        try:
            from ai_edge_litert import __version__, interpreter
        except ImportError:
            raise UserError("env_peers/ is of before LiteRT: run ./set_env.sh --peers.") from None
        options = {"model_path": job["graph"], "num_threads": job["threads"]}
        self._open = functools.partial(interpreter.Interpreter, **options)
        self._interpreters, model = {}, self._open()
        source, target = model.get_input_details()[0], model.get_output_details()[0]
        self._source, self._target = source["index"], target["index"]
        sizes = (int(size) if size > 0 else None for size in source["shape_signature"][1:])
        dtype = np.dtype(source["dtype"]).name
        self.signature = graphs.Signature(source["name"], target["name"], tuple(sizes), dtype)
        rows = self._executed(tuple(map(int, source["shape"])))
        by_xnnpack = sum(kernel.startswith("XNNPACK") for _, _, kernel, *_ in rows)
        told = {"num_threads": job["threads"], "xnnpack": f"{by_xnnpack} of {len(rows)} layers"}
        self.facts = {
            "device": "CPU",
            "software": {"litert": __version__},
            "layers": {"int8": sum(row[1] == "s8" for row in rows), "all": len(rows)},
            "environment": steering(os.environ) | {"litert": told},
        }

    def _interpreter(self, batch_shape):
        if batch_shape not in self._interpreters:
            interpreter = self._open()
            interpreter.resize_tensor_input(self._source, batch_shape)
            interpreter.allocate_tensors()
            self._interpreters[batch_shape] = interpreter
        return self._interpreters[batch_shape]

    def __call__(self, batch):
        interpreter = self._interpreter(batch.shape)
        interpreter.set_tensor(self._source, batch)
        interpreter.invoke()
        return interpreter.get_tensor(self._target)

    def predict(self, images, batch_size):
        return in_batches(self, images, batch_size)

    def _executed(self, batch_shape):
        """The fields of a kernels.Primitive for each layer; its kernel says who computes it.

        INT8 is a layer whose data and weights are both int8; its shapes and biases are int32.
        """
        # what the graph executes is told by no public method
        operations = self._interpreter(batch_shape)._get_ops_details()
        delegated, rows = _delegated(operations), []
        for operation in operations:
            if operation["op_name"] in self.LAYERS:
                types = {np.dtype(kind).name for kind in operation["operand_types"]}
                weights = "s8" if types <= {"int8", "int32"} else "f32"
                who = "XNNPACK" if operation["index"] in delegated else "LiteRT"
                rows.append(["layer", weights, f"{who} {operation['op_name']}", "", None])
        return rows

    def kernels(self, call):
        call()
        rows = self._executed(next(reversed(self._interpreters)))
        return {"ms": None, "primitives": rows, "source": "LiteRT's graph"}


def _delegated(operations):
    """The indices of LiteRT's operations that a delegate computes instead.

    A delegate is an operation of its own in the list: it computes all that leads from its inputs
    to its outputs.
    """
    makers = {
        tensor: operation
        for operation in operations
        for tensor in operation["outputs"]
        if operation["op_name"] != "DELEGATE"
    }
    delegated = set()
    for delegate in operations:
        if delegate["op_name"] != "DELEGATE":
            continue
        given, waiting = set(delegate["inputs"]), list(delegate["outputs"])
        while waiting:
            tensor = waiting.pop()
            maker = makers.get(tensor)
            if maker and tensor not in given and maker["index"] not in delegated:
                delegated.add(maker["index"])
                waiting += list(maker["inputs"])
    return delegated


RUNTIMES = {
    "tensorflow": TensorFlow,
    "tensorflow-current": TensorFlow,
    "openvino": OpenVINO,
    "onnxruntime": OnnxRuntime,
    "litert": LiteRT,
}
