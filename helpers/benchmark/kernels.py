"""What oneDNN executed for a call, and for how long: read from its own log.

ONEDNN_VERBOSE=1 makes oneDNN print a line for every primitive that it executes; its worker
switches the same on for single calls. The type of the weights tells the precision: s8 is INT8.
Source: oneDNN developer guide, "Verbose Mode".
"""

import re
from dataclasses import dataclass, field, replace

LAYERS = ("convolution", "deconvolution", "inner_product", "matmul")


@dataclass(frozen=True)
class Primitive:
    """An executed primitive; `weights` is s8, bf16, f32, … of a layer and None of anything else.

    `kernel` is the implementation as oneDNN names it (brgconv:avx512_core_amx), `kind` what tells
    the uses apart: the kernel size of a convolution, the data types of a reorder or a pool. `ms` is
    its time, None where the runtime does not tell. `shape` is the problem in oneDNN's words
    ("mb1_ic3oc64_…", "32x8:8x10"). `names` are the operations of the graph that ran as the piece
    whose line follows next; a piece is of what stands directly before its line, but a primitive
    outside all pieces may stand there, too. A piece that oneDNN's graph compiler made (on CPUs with
    AVX-512) logs no primitives and stands for itself.
    """

    primitive: str
    weights: str | None
    kernel: str
    kind: str
    ms: float | None
    shape: str = field(default="", compare=False)
    names: tuple = field(default=(), compare=False)


def parse(lines):
    """The Primitives in the lines of oneDNN's log. What a graph line names is of several."""
    executed, named = [], 0
    for line in lines:
        words = line.split(",")
        if words[1:2] == ["v1"]:  # as the oneDNN 3.x of TensorFlow 2.21 begins its lines
            del words[1]
        if words[1:3] == ["graph", "exec"] and len(words) > 6:
            names = tuple(words[6].split(";"))
            if words[-2] == "compiler_backend":
                executed.append(_compiled(words))
            executed[named:] = [replace(one, names=names) for one in executed[named:]]
            named = len(executed)
            continue
        if words[1:3] == ["primitive", "exec"]:  # as ITEX's oneDNN 3.3 has it
            words = words[3:]
        elif words[:1] == ["onednn_verbose"] and words[1:2] == ["exec"]:  # and its 2.x
            words = words[2:]
        else:
            continue
        if words[1] == "gemm_api":  # the product of two matrices that TensorFlow asks for by hand
            words[1] = "matmul"
        weights = re.search(r"wei[_:](\w+?):", words[4]) if words[1] in LAYERS else None
        executed.append(
            Primitive(
                *(words[1], weights and weights[1], words[2], _kind(words), float(words[-1])),
                shape=words[-2],
            )
        )
    return executed


def _compiled(words):
    """The Primitive that stands for a piece of the graph compiler: matrix products, convolutions.

    It holds the kernels in the type of what it reads: bytes mean that it works on bytes.
    """
    types = set(re.findall(r"\bin\d+_(\w+?):", ",".join(words[7:])))
    weights = "s8" if types & {"s8", "u8"} else "bf16" if "bf16" in types else "f32"
    return Primitive("partition", weights, words[-2], words[5], float(words[-1]))


def _kind(words):
    size = re.search(r"kh(\d+).*?kw(\d+)", words[-2])
    if words[1] == "convolution" and size:
        return f"{size[1]}×{size[2]}"
    types = re.findall(r"(?:src|dst)[_:](\w+?):", words[4])
    return " to ".join(types) if words[1] in ("reorder", "pooling") else ""


def by_weights(executed, call_ms=None):
    """The `kernels` entry of result.json: layers that ran, by the type of their weights.

    {"s8": {"count": 53, "share": 0.8}}: `share` is the part of the call's time, None where it is
    not known.
    """
    entry = {}
    for kind in sorted({layer.weights for layer in executed if layer.weights}):
        times = [layer.ms for layer in executed if layer.weights == kind]
        known = call_ms and None not in times
        share = round(min(1.0, sum(times) / call_ms), 4) if known else None
        entry[kind] = {"count": len(times), "share": share}
    return entry


def mistake(candidate, executed):
    """What is wrong with the layers that ran under a name's promise, as a sentence; or None.

    `executed` is a `kernels` entry. A runtime that tells of no layer is believed.
    """
    wanted = candidate.weights
    if not wanted or not executed or set(executed) == {wanted}:
        return None
    ran = describe(executed)
    if wanted == "f32":
        return f"{candidate.name} is to run in FP32, but its layers ran as {ran}: swapped graphs?"
    if wanted in executed:
        return None  # a mixture, which is shown as one
    reason = {
        "s8": "is this a quantized graph, in a form that the runtime takes?",
        "bf16": "did auto mixed precision take it?",
    }[wanted]
    return f"No layer of {candidate.name} ran with {wanted} weights (they ran as {ran}): {reason}"


def describe(executed):
    """A `kernels` entry in words: "53 s8, 1 f32"."""
    return ", ".join(f"{entry['count']} {kind}" for kind, entry in executed.items()) or "not told"
