"""The runtimes people would pick instead: OpenVINO (with NNCF) and ONNX Runtime (static QDQ).

Each makes its own INT8 model from the same frozen FP32 graph with its recommended settings, and is
timed by helpers.worker as TensorFlow is. Both live in env_peers/, an environment of their own:
`candidates` and `absent` are for the main one, the rest of this module runs in that one's Python.
"""

import hashlib
import inspect
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from helpers import UserError, machine, models

ROOT = Path(__file__).resolve().parent.parent


ENVIRONMENT = ROOT / "env_peers"


NAMES = {"openvino": "OpenVINO INT8", "onnxruntime": "ONNX Runtime INT8"}


SUFFIXES = {"openvino": ".xml", "onnxruntime": ".onnx"}


OPSET = 18  # the last that tf2onnx knows; a scale per channel needs at least 13


def absent():
    """None where env_peers/ is there, else the sentence that says how to get it."""
    if (ENVIRONMENT / ".finished").exists():
        return None
    return "OpenVINO and ONNX Runtime are not installed (no env_peers/): run ./set_env.sh --peers"


def candidates(fp32, images, folder, input_name=None, output_name=None):
    """Both peers' INT8 models of the frozen graph `fp32`, as Candidates for helpers.benchmark.

    `images` (N, …) are calibrated on: give what INC gets. The models lie in `folder` under the
    digest of all they depend on, and are made where they are missing. Raises UserError when
    env_peers/ is absent (`absent` tells before) or a model cannot be made.
    """
    from helpers.benchmark import Candidate  # which imports what env_peers/ lacks

    if absent():
        raise UserError(absent())
    fp32, folder = Path(fp32), Path(folder)
    models.read_graph(fp32)  # with its error where it is missing or no graph
    images = np.ascontiguousarray(images)
    found = []
    for runtime, name in NAMES.items():
        key = _digest(
            fp32.read_bytes(),
            images,
            (ROOT / "requirements-peers.txt").read_bytes(),
            inspect.getsource(MAKERS[runtime]).encode(),
            f"{input_name} {output_name} {machine.int8_level()}".encode(),
        )
        path = folder / f"{fp32.stem}_{key}_{runtime}{SUFFIXES[runtime]}"
        if not path.exists():
            _make(runtime, fp32, images, path, (input_name, output_name))
        found.append(Candidate(name, path, runtime=runtime))
    return found


def _digest(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def _make(runtime, fp32, images, path, names):
    """Have env_peers' Python write the INT8 model `path`; UserError names its log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_suffix(".log")
    with tempfile.TemporaryDirectory(prefix="peers_") as scratch, open(log, "w") as file:
        np.save(f"{scratch}/images.npy", images)
        words = [runtime, fp32, f"{scratch}/images.npy", path, *(name or "" for name in names)]
        done = subprocess.run(
            [ENVIRONMENT / "bin" / "python", "-m", "helpers.peers", *map(str, words)],
            # OpenVINO's tools report home how they are used, but not in CI
            env={**os.environ, "PYTHONPATH": str(ROOT), "CI": "true"},
            stdout=file,
            stderr=file,
        )
    if done.returncode or not path.exists():
        last = (log.read_text().strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{NAMES[runtime]} was not made from {fp32}: {last[:300]} Its log: {log}")


def make_openvino(fp32, images, signature, scratch):
    """NNCF's post-training quantization with its defaults; gives the files, the .xml last."""
    import nncf
    import openvino as ov

    model = ov.convert_model(fp32, input=f"{signature.input}:0", output=f"{signature.output}:0")
    dataset = nncf.Dataset([images[i : i + 1] for i in range(len(images))])
    quantized = nncf.quantize(model, dataset, subset_size=len(images))
    ov.save_model(quantized, scratch / "model.xml")
    return [scratch / "model.bin", scratch / "model.xml"]


def make_onnxruntime(fp32, images, signature, scratch):
    """Static QDQ quantization of the ONNX graph: uint8 activations, int8 weights per channel."""
    import tf2onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    paths = [scratch / name for name in ("float.onnx", "prepared.onnx", "model.onnx")]
    tf2onnx.convert.from_graph_def(
        models.read_graph(fp32),
        input_names=[f"{signature.input}:0"],
        output_names=[f"{signature.output}:0"],
        opset=OPSET,
        output_path=str(paths[0]),
    )
    quant_pre_process(str(paths[0]), str(paths[1]))
    feeds = iter([{f"{signature.input}:0": images[i : i + 1]} for i in range(len(images))])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(feeds, None)

    quantization.quantize_static(
        str(paths[1]),
        str(paths[2]),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        # without DL Boost, sums of two products overflow 16 bits
        reduce_range=machine.int8_level() == "none",
    )
    return [paths[2]]


class OpenVINO:
    """An OpenVINO model on one stream of `threads`, compiled for each batch size of its own.

    Called with a batch (N, …) it gives the output as a NumPy array of its own.
    """

    predict = models.FrozenGraph.predict
    device = "CPU"

    def __init__(self, path, threads):
        import openvino as ov

        self.software = {"openvino": ov.__version__}
        self._core, self._requests = ov.Core(), {}
        self._model = self._core.read_model(path)
        source, target = self._model.inputs[0], self._model.outputs[0]
        sizes = [None if one.is_dynamic else one.get_length() for one in source.partial_shape][1:]
        self.signature = models.Signature(source.any_name, target.any_name, tuple(sizes), "float32")
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
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

    def layers(self):
        """Convolutions and matrix products as they are executed: {"int8": n, "all": n}."""
        compiled = self._request((1, *self.signature.shape)).get_compiled_model()
        facts = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
        kinds = ("Convolution", "FullyConnected", "MatMul")
        found = [
            fact["runtimePrecision"].astype(str)
            for fact in facts
            if fact["layerType"].astype(str) in kinds
        ]
        return {"int8": sum(one in ("i8", "u8") for one in found), "all": len(found)}


class OnnxRuntime:
    """An ONNX model in a session of `threads`; called with a batch (N, …) it gives the output."""

    predict = models.FrozenGraph.predict
    device = "CPU"

    def __init__(self, path, threads):
        import onnxruntime as ort

        self.software = {"onnxruntime": ort.__version__}
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._path = path
        self._session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
        source, target = self._session.get_inputs()[0], self._session.get_outputs()[0]
        sizes = [size if isinstance(size, int) else None for size in source.shape[1:]]
        self.signature = models.Signature(source.name, target.name, tuple(sizes), "float32")

    def __call__(self, batch):
        return self._session.run(None, {self.signature.input: batch})[0]

    def layers(self):
        """Convolutions and matrix products, and those between quantized tensors."""
        import onnx

        nodes = onnx.load(self._path).graph.node
        makers = {name: node.op_type for node in nodes for name in node.output}
        found = [
            all(makers.get(name) == "DequantizeLinear" for name in node.input[:2])
            for node in nodes
            if node.op_type in ("Conv", "Gemm", "MatMul")
        ]
        return {"int8": sum(found), "all": len(found)}


MAKERS = {"openvino": make_openvino, "onnxruntime": make_onnxruntime}


RUNTIMES = {"openvino": OpenVINO, "onnxruntime": OnnxRuntime}


def main(runtime, fp32, images, path, input_name, output_name):
    """What `_make` calls in env_peers: quantize, then put the files where they belong."""
    path = Path(path)
    signature = models.find_signature(models.read_graph(fp32), input_name, output_name, fp32)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as scratch:
        for file in MAKERS[runtime](fp32, np.load(images), signature, Path(scratch)):
            os.replace(file, path.with_suffix(file.suffix))
