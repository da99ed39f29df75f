"""What became of each layer: did it run in INT8, why not, its share of the time, what it costs."""

import math
import re
from collections import Counter

import numpy as np

from helpers import UserError, benchmark, graphs, machine
from helpers.benchmark import report
from helpers.quantize import folding, integer, ladder

IMAGES = 16  # what each layer costs is judged on so many at most, with a network for each
PATIENCE = 60  # seconds for that; the layers that take most of the call come first
MOST_DB = 200.0  # a ratio of outputs that are equal is infinite, which JSON has no number for
PRODUCTS = (*graphs.LAYER_OPS, "BatchMatMul", "BatchMatMulV2")  # the last two of two activations
WORTH_SAYING = 0.05  # a share of the time below this explains nothing
FEW_OPERATIONS = (
    20  # for each byte: a depthwise 3×3 convolution has 9, a dense layer at batch 1 two
)


def layers(fp32, int8, images, why=None, batch_size=1, executed=None, simulated=None):
    """What became of each convolution and matrix product: a list of dicts, in graph order.

    `fp32` and `int8` are frozen graphs (paths), the second in the form "qdq", or in integer
    operations with `simulated`, the form "qdq" of the same that tells what each layer costs;
    `images` has shape (N, …), `why` gives reasons known beforehand: {layer name: text}. `executed`
    is what benchmark.profile gives for the INT8 graph at `batch_size`, (ms, [Primitive]), where the
    caller has it (about the ms: `outside`). The fields:

    name, op   of the layer in the graph
    int8       whether it ran in INT8: its kernel was s8 in oneDNN's log
    why        why not; None where it did
    share      its part (0 to 1) of the time of one INT8 call; None where the log does not tell
    sqnr_db    SQNR of the network's output when this layer alone is INT8, in dB, at most 200; None
               for a layer that is float in the file, for outputs that are not finite, and for
               layers of little time that were not reached within PATIENCE
    operations_per_byte  of its input, kernel and output in INT8; None where a size is not known

    oneDNN names the layers that ITEX hands over in pieces, which are all that are INT8. Others are
    found by their kind and sizes; of several that are equal the order of execution decides, so
    that their times may be swapped, while their sum is right. Raises UserError when a process
    cannot run the graphs or dies, and where there is no log of oneDNN.
    """
    graph_def = graphs.read_graph(int8)
    if executed is None:
        executed = benchmark.profile(int8, images, [batch_size])[batch_size]
    ms, primitives = executed
    if ms is None:
        raise UserError(
            "What ran in INT8 cannot be told: there is no log of ITEX's oneDNN. Is "
            "intel-extension-for-tensorflow installed in this environment?"
        )
    ms = max(ms, sum(primitive.ms or 0 for primitive in primitives))  # another call than was logged
    whole = graphs.is_integer(graph_def)
    original = graphs.read_graph(fp32)
    found = _sizes(original if whole else graph_def, (batch_size, *np.shape(images)[1:]))
    order = {node.name: place for place, node in enumerate(original.node)}
    found = dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))
    ran = _matched({name: layer["sizes"] for name, layer in found.items()}, primitives)
    slowest = sorted(ran, key=lambda name: -(ran[name][2] or 0))
    costs = _costs(fp32, simulated or int8, images, slowest)
    reasons = _reasons_in_integers(graph_def, original) if whole else reasons_in(graph_def)
    reasons |= why or {}
    return [
        _row(name, layer, ran.get(name), ms, reasons.get(name), costs.get(name))
        for name, layer in found.items()
    ]


def look(result, fp32, int8, images, why, size, primitives, simulated=None):
    """The rows of `layers` at a batch size, and the paragraph that explains them.

    `result` is that of a comparison of the two graphs, `primitives` are what benchmark.profile
    gives for the INT8 graph at this size, `simulated` is as in `layers`.
    """
    best = report.batch_of(result, "INT8", size)["latency_ms"]["best"]  # without writing a log
    rows = layers(fp32, int8, images, why, size, (best, primitives), simulated)
    sizes = sorted(result["settings"]["batch_sizes"])
    times = {batch: report.ratio(result, "INT8", batch) for batch in sizes}
    return rows, explanation(rows, outside(best, primitives), times, machine.int8_level())


def table(rows, most=10):
    """The layers that take most of the call, and all that are not in INT8, as lines."""
    ranked = sorted(rows, key=lambda row: -(row["share"] or 0))
    shown = ranked[:most] + [row for row in ranked[most:] if not row["int8"]]
    lines = [f"  {'share':>7} {'alone dB':>9}  runs in  layer"]
    for row in shown:
        share = "–" if row["share"] is None else f"{row['share']:.1%}"
        db = "–" if row["sqnr_db"] is None else f"{min(row['sqnr_db'], 200):.1f}"
        kind = "INT8" if row["int8"] else "float"
        why = f": {row['why']}" if row["why"] else ""
        lines.append(f"  {share:>7} {db:>9}  {kind:<7}  {row['name']} ({row['op']}){why}")
    unjudged = sum(row["int8"] and row["sqnr_db"] is None for row in rows)
    if unjudged:
        lines.append(
            f"  {unjudged} layers in INT8 have no figure alone: not finite, or not reached within "
            f"{PATIENCE} s."
        )
    if len(shown) < len(rows):
        lines.append(f"  … and {len(rows) - len(shown)} more in INT8: layers.json has all.")
    return "\n".join(lines)


def _row(name, layer, ran, ms, reason, cost):
    weights, kernel, spent = ran or (None, None, None)
    reason = reason or _at_run_time(weights, kernel)
    return {
        "name": name,
        "op": layer["op"],
        "int8": weights == "s8",
        "why": None if weights == "s8" else reason,
        "share": None if spent is None else min(1.0, spent / ms),
        "sqnr_db": cost,
        "operations_per_byte": _intensity(layer["sizes"]),
    }


def _sizes(graph_def, shape):
    """{layer name: {"op", "sizes"}} for one input of this shape, in graph order.

    `sizes` are named as in oneDNN's log (mb, g, ic, oc, oh, ow, kh, kw), or those of a matrix
    product: "product": (rows…, inner), (inner, columns). Unknown ones are None.
    """
    import tensorflow as tf

    signature = graphs.find_signature(graph_def)
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(signature.dtype, shape)
        tf.compat.v1.import_graph_def(graph_def, {signature.input: image}, name="")
    found = {}
    for node in graph_def.node:
        if node.op in PRODUCTS:
            layer = graph.get_operation_by_name(node.name)
            measure = _convolution if "Conv" in node.op else _product
            found[node.name] = {"op": node.op, "sizes": measure(layer)}
    return found


def _dims(tensor, rank):
    return tensor.shape.as_list() if tensor.shape.rank == rank else [None] * rank


def _convolution(layer):
    data, kernel, output = (
        _dims(tensor, 4) for tensor in (layer.inputs[0], layer.inputs[1], layer.outputs[0])
    )
    if layer.get_attr("data_format") == b"NCHW":
        data, output = ([one[0], *one[2:], one[1]] for one in (data, output))
    batch, high, wide, channels = output
    read, seen = data[3], kernel[2]
    if layer.type == "DepthwiseConv2dNative":
        groups = read
    else:
        groups = read // seen if read and seen else None
    sizes = {"mb": batch, "g": groups, "ic": read, "oc": channels, "oh": high, "ow": wide}
    return {**sizes, "kh": kernel[0], "kw": kernel[1], "ih": data[1], "iw": data[2]}


def _product(layer):
    sides = []
    for tensor, words in zip(layer.inputs, (("transpose_a", "adj_x"), ("transpose_b", "adj_y"))):
        size = tensor.shape.as_list() if tensor.shape.rank is not None else [None, None]
        turned = layer.get_attr(words[0 if layer.type == "MatMul" else 1])
        sides.append((*size[:-2], *(size[:-3:-1] if turned else size[-2:])))
    return {"product": tuple(sides)}


def _of_primitive(primitive):
    """The sizes in what oneDNN says of a problem, as `_sizes` has them; None for another kind."""
    if primitive.primitive == "matmul":
        sides = primitive.shape.split(":")[:2]
        if not all(re.fullmatch(r"\d+(x\d+)+", side) for side in sides):
            return None
        return {"product": tuple(tuple(map(int, side.split("x"))) for side in sides)}
    found = re.findall(r"(mb|ic|oc|oh|ow|kh|kw|g)(\d+)", primitive.shape)
    sizes = {"g": 1, **{name: int(size) for name, size in found}}
    if primitive.primitive == "inner_product" and {"mb", "ic", "oc"} <= set(sizes):
        inner = sizes["ic"] * sizes.get("kh", 1) * sizes.get("kw", 1)
        return {"product": ((sizes["mb"], inner), (inner, sizes["oc"]))}
    return sizes if primitive.primitive == "convolution" else None


def _fit(layer, primitive):
    """Whether sizes of a layer can be those of a primitive; unknown ones can be anything."""
    if ("product" in layer) != ("product" in primitive):
        return False
    if "product" not in layer:
        return all(layer.get(name) in (None, size) for name, size in primitive.items())
    return all(
        len(side) == len(other) and all(a in (None, b) for a, b in zip(side, other))
        for side, other in zip(layer["product"], primitive["product"])
    )


def _matched(sizes, primitives):
    """{layer name: (weights, kernel, ms)} of the layers ({name: sizes}) that were executed."""
    ran, taken = {}, set()
    for index in range(len(primitives) - 1, -1, -1):  # a piece's layer is the last before its line
        primitive = primitives[index]
        names = [name for name in primitive.names if name in sizes and name not in ran]
        if not primitive.weights or not names:
            continue
        if primitive.primitive == "partition":  # of several layers, whose times are not told apart
            ran |= dict.fromkeys(names, (primitive.weights, primitive.kernel, None))
        else:
            ran[names[-1]] = (primitive.weights, primitive.kernel, primitive.ms)
        taken.add(index)
    for index, primitive in enumerate(primitives):
        problem = _of_primitive(primitive) if primitive.weights and index not in taken else None
        if problem is None:
            continue
        equal = (name for name in sizes if name not in ran and _fit(sizes[name], problem))
        if name := next(equal, None):
            ran[name] = (primitive.weights, primitive.kernel, primitive.ms)
    return ran


def _intensity(sizes):
    """Arithmetic operations for each byte that a layer reads and writes, if all are INT8."""
    if "product" in sizes:
        left, right = sizes["product"]
        numbers = (*left, *right)
        if None not in numbers:
            output = math.prod(left[:-1]) * right[-1]
            moved = math.prod(left) + math.prod(right) + output
            return 2 * output * left[-1] / moved
    elif None not in sizes.values():
        of = sizes.get
        area, inside = of("kh") * of("kw"), of("ic") // of("g")
        output = of("mb") * of("oc") * of("oh") * of("ow")
        read = of("mb") * of("ic") * of("ih") * of("iw")
        return 2 * output * area * inside / (output + read + of("oc") * area * inside)
    return None


def reasons_in(graph_def):
    """{layer name: why} of the layers that are float in the file, as far as it can be told."""
    network, grouped = graphs.Network(graph_def), folding.grouped_convolutions(graph_def)
    reasons = {}
    for node in graph_def.node:
        if node.op not in PRODUCTS:
            continue
        data, kernel = (network.nodes[graphs.node_name(source)] for source in node.input[:2])
        quantized = [source.op == "Dequantize" for source in (data, kernel)]
        if all(quantized):
            continue
        if node.name in grouped:
            reasons[node.name] = "a grouped convolution, which ITEX cannot run in INT8"
        elif _depends_on_the_input(network, kernel.name):
            reasons[node.name] = "its kernel is not constant: a product of two activations"
        elif quantized[1]:
            reasons[node.name] = f"reads {data.name} ({data.op}), which is not quantized"
        else:
            reasons[node.name] = "Intel Neural Compressor left it in float"
    return reasons


def _reasons_in_integers(graph_def, original):
    """As `reasons_in`, of a graph in integer operations that was made of the float `original`."""
    network, grouped = graphs.Network(original), folding.grouped_convolutions(original)
    ran = {layer.name for layer in integer.layers(graph_def, original) if layer.int8}
    reasons = {}
    for node in [node for node in original.node if node.op in PRODUCTS and node.name not in ran]:
        reasons[node.name] = "Intel Neural Compressor left it in float"
        if node.name in grouped:
            reasons[node.name] = "a grouped convolution, which TensorFlow has no integer kernel for"
        elif _depends_on_the_input(network, graphs.node_name(node.input[1])):
            reasons[node.name] = "its kernel is not constant: a product of two activations"
    return reasons


def _depends_on_the_input(network, name):
    seen, waiting = set(), [name]
    while waiting:
        node = network.nodes[waiting.pop()]
        if node.op == "Placeholder":
            return True
        if node.name not in seen:
            seen.add(node.name)
            waiting += map(graphs.node_name, node.input)
    return False


def _at_run_time(weights, kernel):
    """Why a layer that is quantized in the file was not executed in INT8."""
    if weights is None:
        return "quantized in the file, but oneDNN's log does not show it"
    return f"quantized in the file, but executed in {weights} ({kernel})"


def _costs(fp32, int8, images, first=()):
    """{layer name: SQNR in dB, or None} of the layers that are INT8 in the file, `first` first."""
    ratios = ladder.costs(fp32, int8, images[:IMAGES], first, PATIENCE)
    return {
        name: None if math.isnan(ratio) else min(ratio, MOST_DB) for name, ratio in ratios.items()
    }


def outside(ms, primitives):
    """Where one call goes, in parts of 1: {"s8", "float", "other", "outside"}.

    Layers in INT8, layers in anything else, other primitives (conversions, pools, activations),
    and what is not in oneDNN. `primitives` are what benchmark.profile gives, `ms` is the time of
    the call. That of `profile` holds the writing of the log, which shows in networks of a few ms:
    where there is a best call that was timed without it, give that. All are None where the runtime
    does not tell times.
    """
    parts = dict.fromkeys(("s8", "float", "other"), 0.0)
    times = [primitive.ms for primitive in primitives]
    if not ms or None in times:
        return dict.fromkeys((*parts, "outside"))
    for primitive in primitives:
        kind = primitive.weights and ("s8" if primitive.weights == "s8" else "float")
        parts[kind or "other"] += primitive.ms
    whole = max(ms, sum(times))  # each time is rounded
    parts = {kind: spent / whole for kind, spent in parts.items()}
    return {**parts, "outside": max(0.0, 1 - sum(parts.values()))}


def explanation(rows, summary, times, level):
    """How fast INT8 is and why not faster: one paragraph, of what the numbers show.

    `rows` are those of `layers`, `summary` is that of `outside`, `times` {batch size: the `ratios`
    entry of result.json that compares INT8 with FP32}, `level` machine.int8_level().
    """
    causes = [_no_instructions(level), *_by_share(rows, summary), _batch_too_small(times)]
    causes = [cause for cause in causes if cause]
    sentences = [_times_as_fast(times)] if times else []
    if causes:
        sentences.append(f"What keeps it from being faster: {'; '.join(causes)}.")
    elif summary["s8"] is not None:
        sentences.append(f"{_percent(summary['s8'])} of a call is in INT8 layers.")
    return " ".join(sentences)


def _percent(share):
    return f"{100 * share:.0f} %"


def _times_as_fast(times):
    parts = []
    for batch_size, entry in sorted(times.items()):
        ratio = entry["throughput_times"]
        bounds = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
        bounds += ", not resolved" if entry["verdict"] == "not resolved" else ""
        fast = " as fast as FP32" if not parts else ""
        parts.append(f"{ratio['median']:.2f} times{fast} at batch {batch_size} ({bounds})")
    return f"INT8 is {', '.join([*parts[:-2], ' and '.join(parts[-2:])])}."


def _no_instructions(level):
    if level != "none":
        return None
    return "this CPU has no INT8 instructions (neither VNNI nor AMX), or oneDNN may not use them"


def _by_share(rows, summary):
    """Causes that take a part of the call, the largest first."""
    found = [_float_layers(rows), _between_layers(summary), _little_arithmetic(rows)]
    causes = [cause for cause in found if cause[0] >= WORTH_SAYING]
    return [text for _, text in sorted(causes, reverse=True)]


def _float_layers(rows):
    """(share of the call, words) of the layers that did not run in INT8."""
    left = [row for row in rows if not row["int8"]]
    spent = sum(row["share"] or 0 for row in left)
    if not left:
        return 0, ""
    reason, count = Counter(row["why"] for row in left).most_common(1)[0]
    which = "" if count == len(left) else f"{count} of them: "
    verb = "take" if len(left) > 1 else "takes"
    words = f"{len(left)} of {len(rows)} layers did not run in INT8 and {verb} {_percent(spent)}"
    return spent, f"{words} of a call ({which}{reason})"


def _between_layers(summary):
    """(share of the call, words) of what is not in layers."""
    if summary["other"] is None:
        return 0, ""
    spent = summary["other"] + summary["outside"]
    other, rest = _percent(summary["other"]), _percent(summary["outside"])
    words = f"{_percent(spent)} of a call is not in layers ({other} in conversions, pools and"
    return spent, f"{words} other primitives of oneDNN, {rest} outside oneDNN)"


def _little_arithmetic(rows):
    """(share of the call, words) of the INT8 layers that move much memory for what they compute."""
    few = [
        row
        for row in rows
        if row["int8"] and (row["operations_per_byte"] or math.inf) < FEW_OPERATIONS
    ]
    spent = sum(row["share"] or 0 for row in few)
    words = f"{_percent(spent)} of a call is in {len(few)} INT8 layer{'s' * (len(few) > 1)} with "
    return spent, f"{words}fewer than {FEW_OPERATIONS} operations per byte: memory, not arithmetic"


def _batch_too_small(times):
    """Words, where the interval at the smallest batch lies wholly below that at the largest."""
    small, large = min(times, default=0), max(times, default=0)
    few, many = (times[size]["throughput_times"] if times else None for size in (small, large))
    if small == large or few["high"] >= many["low"]:
        return None
    gain = many["median"] / few["median"]
    return f"batch {small} is small: the ratio at batch {large} is {gain:.2f} times that"
