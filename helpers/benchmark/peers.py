"""The runtimes people would pick instead: OpenVINO (NNCF), ONNX Runtime (static QDQ) and LiteRT.

Each makes its own INT8 model from the same frozen FP32 graph, and is timed by the same worker as
TensorFlow. All live in env_peers/, an environment of their own: `candidates` and `absent` are for
the main one, `main` and the makers run in that one's Python.
"""

import hashlib
import inspect
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from helpers import UserError, graphs, machine
from helpers.benchmark.candidate import PEERS, ROOT, Candidate, environment

NAMES = {
    "openvino": "OpenVINO INT8",
    "onnxruntime": "ONNX Runtime INT8",
    "litert": "LiteRT INT8",
}
SUFFIXES = {"openvino": ".xml", "onnxruntime": ".onnx", "litert": ".tflite"}
OPSET = 18  # the last that tf2onnx knows; a scale per channel needs at least 13
# What the runtime's documentation leaves open is made and tried both ways, and the faster one is
# measured: ONNX Runtime's activations (S8S8 is its first choice, U8S8 has faster kernels on some
# x86 CPUs), OpenVINO's hint; LiteRT has signed bytes only. Each entry is a variant: what to make it
# with, what to run it with.
VARIANTS = {
    "openvino": {
        "LATENCY hint": ({}, {"hint": "LATENCY"}),
        "THROUGHPUT hint": ({}, {"hint": "THROUGHPUT"}),
    },
    "onnxruntime": {
        "U8S8": ({"activations": "QUInt8"}, {}),
        "S8S8": ({"activations": "QInt8"}, {}),
    },
    "litert": {"XNNPACK": ({}, {})},
}


def absent():
    """None where env_peers/ is there, else the sentence that says how to get it."""
    if (PEERS / ".finished").exists():
        return None
    return (
        "OpenVINO, ONNX Runtime and LiteRT are not installed (no env_peers/): "
        "run ./set_env.sh --peers"
    )


def candidates(fp32, images, folder, input_name=None, output_name=None, runtimes=tuple(NAMES)):
    """The peers' INT8 models of the frozen graph `fp32`, as Candidates that may fail or be refused.

    `runtimes` are of NAMES. `images` (N, …) are calibrated on: give what INC gets. The models lie
    in `folder` under the digest of all they depend on, and are made where they are missing; a peer
    that cannot make its own is refused. Raises UserError when env_peers/ is absent (`absent` tells
    before).
    """
    if absent():
        raise UserError(absent())
    fp32, folder = Path(fp32), Path(folder)
    graphs.read_graph(fp32)  # with its error where it is missing or no graph
    images = np.ascontiguousarray(images)
    names = input_name, output_name
    return [_candidate(runtime, fp32, images, folder, names) for runtime in runtimes]


def _candidate(runtime, fp32, images, folder, names):
    """A peer with its variants; refused, with the reason, where a model of it cannot be made."""
    ways, same = [], {"name": NAMES[runtime], "runtime": runtime, "required": False}
    for variant, (making, running) in VARIANTS[runtime].items():
        try:
            path = _model(runtime, fp32, images, folder, names, making)
        except UserError as error:
            return Candidate(graph=None, refused=str(error), **same)
        ways.append(Candidate(graph=path, options=running, variant=variant, **same))
    ways[0].variants = ways[1:]
    return ways[0]


def _model(runtime, fp32, images, folder, names, making):
    """The path of a peer's model, made where there is none of the same source and settings."""
    key = _digest(
        fp32.read_bytes(),
        images,
        (ROOT / "environments" / "peers.txt").read_bytes(),
        inspect.getsource(MAKERS[runtime]).encode(),
        f"{names} {making} {machine.int8_level()}".encode(),
    )
    path = folder / f"{fp32.stem}_{key}_{runtime}{SUFFIXES[runtime]}"
    if not path.exists():
        _make(runtime, fp32, images, path, names, making)
    return path


def _digest(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def _make(runtime, fp32, images, path, names, making):
    """Have env_peers' Python write the INT8 model `path`; UserError names its log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_suffix(".log")
    with tempfile.TemporaryDirectory(prefix="peers_") as scratch, open(log, "w") as file:
        np.save(f"{scratch}/images.npy", images)
        words = [runtime, fp32, f"{scratch}/images.npy", path, *(name or "" for name in names)]
        words += [f"{name}={value}" for name, value in making.items()]
        done = subprocess.run(
            [PEERS / "bin" / "python", "-P", "-m", "helpers.benchmark.peers", *map(str, words)],
            # OpenVINO's tools report home how they are used, but not in CI
            env={**environment(machine.usable_cores()), "CI": "true"},
            stdout=file,
            stderr=file,
        )
    if done.returncode or not path.exists():
        last = (log.read_text().strip().splitlines() or ["no word in it"])[-1][:300]
        why = f"{last} " if done.returncode >= 0 else ""  # who is killed has no last word
        raise UserError(
            f"{NAMES[runtime]} was not made from {fp32}: its process "
            f"{machine.ending(done.returncode)}. {why}Its log: {log}"
        )


def make_openvino(fp32, images, signature, scratch):
    """NNCF's post-training quantization with its defaults; gives the files, the .xml last."""
    import nncf
    import openvino as ov
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    model = ov.convert_model(fp32, input=f"{signature.input}:0", output=f"{signature.output}:0")
    dataset = nncf.Dataset([images[i : i + 1] for i in range(len(images))])
    # without VNNI sums of two products overflow 16 bits: 7 bits for all weights, as NNCF advises
    # for such CPUs; by default it does so for the first layer only
    overflows = machine.int8_level() == "none"
    fix = OverflowFix.ENABLE if overflows else OverflowFix.FIRST_LAYER
    quantized = nncf.quantize(
        model,
        dataset,
        subset_size=len(images),
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=fix),
    )
    ov.save_model(quantized, scratch / "model.xml")
    return [scratch / "model.bin", scratch / "model.xml"]


def make_onnxruntime(fp32, images, signature, scratch, activations):
    """Static QDQ quantization of the ONNX graph, int8 weights per channel.

    `activations`: "QUInt8" or "QInt8".
    """
    import tf2onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    paths = [scratch / name for name in ("float.onnx", "prepared.onnx", "model.onnx")]
    tf2onnx.convert.from_graph_def(
        graphs.read_graph(fp32),
        input_names=[f"{signature.input}:0"],
        output_names=[f"{signature.output}:0"],
        opset=OPSET,
        output_path=str(paths[0]),
    )
    try:
        quant_pre_process(str(paths[0]), str(paths[1]))
    except Exception:  # a TypeError, for one, where it cannot tell the shape after a ReduceMax
        quant_pre_process(str(paths[0]), str(paths[1]), skip_symbolic_shape=True)
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
        activation_type=quantization.QuantType[activations],
        weight_type=quantization.QuantType.QInt8,
        # without VNNI, sums of two products overflow 16 bits
        reduce_range=machine.int8_level() == "none",
    )
    return [paths[2]]


def make_litert(fp32, images, signature, scratch):
    """Full-integer quantization by TensorFlow's converter: int8, weights per channel, float ends.

    An operation that has no integer kernel stays in float. No range of weights is reduced: without
    VNNI XNNPACK widens bytes to 16 bits before it multiplies them, and adds in 32.
    """
    import tensorflow as tf

    graph_def = graphs.read_graph(fp32)
    graphs.unfold_paddings(graph_def)  # the converter knows no pool with a padding of its own
    plain = str(graphs.write_graph(graph_def, scratch / "unfolded.pb"))
    shape = {signature.input: [None, *images.shape[1:]]}
    converter = tf.compat.v1.lite.TFLiteConverter.from_frozen_graph(
        plain, [signature.input], [signature.output], input_shapes=shape
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([images[i : i + 1]] for i in range(len(images)))
    model = scratch / "model.tflite"
    try:
        model.write_bytes(converter.convert())
    except Exception as error:  # whose class is in no public module
        print(error, file=sys.stderr)
        stopped_at = ", ".join(dict.fromkeys(re.findall(r'fused\["(\w+):', str(error))))
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        sys.exit(f"TensorFlow's converter to LiteRT stopped at {stopped_at or first}.")
    return [model]


MAKERS = {
    "openvino": make_openvino,
    "onnxruntime": make_onnxruntime,
    "litert": make_litert,
}


def main(runtime, fp32, images, path, input_name, output_name, *making):
    """What `_make` calls in env_peers: quantize, then put the files where they belong."""
    path, making = Path(path), dict(word.split("=") for word in making)
    signature = graphs.find_signature(graphs.read_graph(fp32), input_name, output_name, fp32)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as scratch:
        for file in MAKERS[runtime](fp32, np.load(images), signature, Path(scratch), **making):
            os.replace(file, path.with_suffix(file.suffix))


if __name__ == "__main__":
    main(*sys.argv[1:])
