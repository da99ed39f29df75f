"""Every architecture of Keras Applications through `python -m helpers.quantize`, one by one.

The weights are random and have the statistics of a working network (see `working`); those of the
AlexNet of the notebooks are trained. What comes out
is printed and kept in docs/networks.md; with names only their rows are made anew. The status is 1
when a family ends in a traceback, an abort or no time; with names or --check also when less than
95 % of its layers run in INT8.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import machine
from helpers.benchmark import peers
from helpers.benchmark.candidate import current, current_absent, python_of

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "networks.md"
FAMILIES = [
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0"),
    *("NASNetMobile", "DenseNet121", "ResNet50", "ResNet50V2", "ResNetRS50", "RegNetX002"),
    *("RegNetY002", "ConvNeXtTiny", "InceptionV3", "Xception", "VGG16", "InceptionResNetV2"),
    "AlexNet",
]
ENOUGH = 0.95  # of the layers in INT8
DAMPING = 0.3  # of the branch that is added to a shortcut
COLUMNS = (
    *("network", "layers in INT8", "INT8 : FP32, batch 1", "batch 32", "BF16 : FP32, batch 1"),
    *("batch 32", "INT8 : OpenVINO, batch 32", "SQNR of INT8", "time of the command"),
)
OWN_COLUMNS = (
    *("network", "layers in INT8", "INT8 : FP32, batch 1", "batch 32"),
    *("ITEX's INT8 : INT8, batch 1", "batch 32", "SQNR of INT8", "of ITEX's"),
)
OTHERS = {"OpenVINO": "openvino", "ONNX Runtime": "onnxruntime", "LiteRT": "litert"}
ALL_COLUMNS = ("network, batch", "ITEX", "TensorFlow's own", *OTHERS)
HEAD = """\
# Which networks run in INT8

One network of each family of Keras Applications, from a Keras file through the command of
[own-model.md](own-model.md), without data. The weights are random and have the statistics of a
working network: what runs and how fast does not depend on them, the accuracy of a trained one does.
The AlexNet is that of the notebooks, from its frozen graph.

- **layers in INT8** are those that oneDNN executed so, of all convolutions and matrix products. The
  grouped convolutions of RegNet stay in float: ITEX cannot run them in INT8.
- **INT8 : FP32** is how many times as fast INT8 is, the median of interleaved rounds; with a **~**
  where its interval is wider than ±5 %: measured for seconds, or beside other work. An interval
  covers the chance within a run; at another hour another run may lie outside it.
- **INT8 : OpenVINO** is INT8's throughput beside that of OpenVINO's own INT8, made by NNCF of the
  same frozen graph, in the same rounds (`--peers`).
- **SQNR** compares the outputs of INT8 with those of FP32, on images of nothing.
- **time** is that of the whole command with `--quick`, and with `--peers` where OpenVINO was
  measured: from reading the file to timing what serves it.

A second table has each network quantized again, in the integer operations that TensorFlow itself
has (`tests/zoo.sh --current`; those of `--runtime tensorflow`, its first attempt), and measured
beside the graphs of the first, in the same rounds: FP32 and ITEX's INT8 in TensorFlow {tensorflow},
this INT8 in that of `env_current/`. SQNR is of both on the same images.

A third has INT8 of all runtimes side by side (`tests/zoo.sh --current --peers`), in the rounds of
the second: how many times as fast as FP32 each is, the median and its interval.

`tests/zoo.sh` writes this page; with names of networks it makes their rows anew, on another machine
a section of that machine.
"""
PLACE = "## On "
OWN_HEAD = "### The same in today's TensorFlow, without ITEX"
ALL_HEAD = "### INT8 of every runtime in the same rounds, times FP32"


def parse(arguments):
    parser = argparse.ArgumentParser(prog="tests/zoo.sh", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(FAMILIES)}; default: all")
    add("--limit", type=float, default=10, metavar="SECONDS", help="of measuring; default: 10")
    add("--timeout", type=float, default=1800, metavar="SECONDS", help="of a family")
    add("--output", type=Path, metavar="DIR", help="a folder per family is made in it")
    add("--peers", action="store_true",
        help="also beside OpenVINO, ONNX Runtime and LiteRT (set_env.sh --peers)")  # fmt: skip
    add("--current", action="store_true",
        help="also INT8 in TensorFlow's own operations (set_env.sh --current)")  # fmt: skip
    add("--keep", action="store_true", help="also models and graphs, gigabytes of them")
    add("--document", type=Path, default=DOCUMENT, metavar="FILE")
    add("--check", action="store_true", help="status 1 where not nearly all layers run in INT8")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in FAMILIES:
            parser.error(f"'{name}' is none of {', '.join(FAMILIES)}")
    if options.current and current_absent():
        parser.error(current_absent())
    return options


def working(name, shape=None, seed=0):
    """A network of Keras Applications whose random weights have the statistics of a working one.

    As in helpers/zoo.py: batch norms get the statistics of one pass over images of nothing,
    residual branches are damped, and the last layer tells images apart.
    Layers without a batch norm behind them start as He et al. 2015 has it.
    """
    import tensorflow as tf

    from helpers import datasets

    tf.keras.utils.set_random_seed(seed)
    network = getattr(tf.keras.applications, name)
    model = network(weights=None, **({"input_shape": shape} if shape else {}))
    if None in model.input_shape[1:]:  # MobileNetV3
        model = network(weights=None, input_shape=(224, 224, 3))
    images = datasets.dummy_images(32, *model.input_shape[1:], seed=seed) + 128
    dropped = {}
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "BatchNormalization":
            layer.momentum = 0.0  # the moving statistics become those of the next batch
        elif kind == "Add":
            damp(model, layer)
        elif kind == "LayerScale":  # of ConvNeXt, 1e-6 before training
            layer.gamma.assign(tf.fill(layer.gamma.shape, DAMPING))
        elif kind in ("Dropout", "StochasticDepth"):
            field = "rate" if kind == "Dropout" else "drop_path_rate"
            dropped[layer] = field, getattr(layer, field)
            setattr(layer, field, 0)
        elif getattr(layer, "activation", None) is tf.keras.activations.relu and layer.weights:
            *_, read, given = layer.kernel.shape  # Keras starts as Glorot and Bengio 2010 have it
            layer.kernel.assign(layer.kernel * (1 + given / read) ** 0.5)
    tf.config.run_functions_eagerly(True)  # Keras would compile each grouped convolution
    model(images, training=True)
    tf.config.run_functions_eagerly(False)
    for layer, (field, rate) in dropped.items():
        setattr(layer, field, rate)
    spread_classes(model, images)
    return model


def damp(model, add):
    """Make small what is added to a shortcut: of several inputs of an Add the last one made."""
    ends = []
    for tensor in add.input:
        layer = tensor._keras_history.layer
        while type(layer).__name__ in ("Dropout", "Activation", "MaxPooling2D"):
            layer = layer.input._keras_history.layer
        if type(layer).__name__ in ("BatchNormalization", "Conv2D"):
            ends.append(layer)
    if ends:
        last = max(ends, key=model.layers.index)
        weight = last.kernel if hasattr(last, "kernel") else last.gamma
        weight.assign(weight * DAMPING)


def spread_classes(model, images):
    """Have the layer that gives the logits look at that in which images differ, as training does.

    Its kernel is mixed of what the features of each image differ by from their mean: random ones
    would see that mean above all, and what quantization does to it.
    """
    import tensorflow as tf

    last = [layer for layer in model.layers if hasattr(layer, "kernel")][-1]
    features = tf.keras.Model(model.input, last.input)(images).numpy().reshape(len(images), -1)
    shape = last.kernel.shape
    mean = features.mean(axis=0)
    mixed = tf.random.normal((len(images), shape[-1]), seed=0).numpy()
    kernel = (features - mean).T @ mixed
    scale = 3 / ((features - mean) @ kernel).std(axis=0).mean()
    last.set_weights([(kernel * scale).reshape(shape), -mean @ kernel * scale])


def calling(python, call):
    """The words of a command that makes a call of this module in a Python."""
    paths = [str(ROOT / "tests"), str(ROOT)]
    return [python, "-c", f"import sys; sys.path[:0] = {paths!r}\nimport zoo; {call}"]


def make(name, path, shape=None):
    """Write a family's model to a file, in a process of its own, which takes its memory along.

    Gives the file: `path`, or the frozen graph that notebook 02 makes beside it.
    """
    words = calling(sys.executable, f"zoo.working({name!r}, {shape!r}).save({str(path)!r})")
    if name == "AlexNet":
        words = [ROOT / "run_all.sh", "02", "--quick", "--output", path.parent]
        path = path.parent / "alexnet" / "models" / "alexnet_fp32.pb"
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} was not made:\n{done.stderr[-2000:]}")
    return path


def quantize(model, output, limit, timeout=None, peers=False):
    """The command on a model's file: what became of it, a dict as `row_of` takes it.

    What it prints goes to <output>/log.txt.
    """
    output.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "helpers.quantize", model, "--quick", "--limit", str(limit)]
    words += ["--peers"] if peers else []
    if Path(model).suffix == ".keras":
        words += ["--scale", "1"]  # made-up images have the values of pixels, as in `working`
    start = time.monotonic()
    with open(output / "log.txt", "w") as log:
        try:
            status = subprocess.run(
                [*words, "--output", output], cwd=ROOT, stdout=log, stderr=log, timeout=timeout
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    end = {"seconds": time.monotonic() - start, "log": (output / "log.txt").read_text()}
    if status == 0:
        end["result"] = json.loads((output / "result.json").read_text())
        end["layers"] = json.loads((output / "layers.json").read_text())
    refused = re.search(r"^error: (.+)", end["log"], re.M | re.S)
    if status is None:
        end["failed"] = f"no end after {timeout:.0f} s"
    elif "Traceback" in end["log"] or (status and not (status == 1 and refused)):
        end["failed"] = f"it {machine.ending(status)}"
    elif status:
        end["refused"] = " ".join(refused[1].split())
    return end


def in_own_operations(models, limit, beside_peers=False):
    """INT8 in TensorFlow's own operations beside FP32 and ITEX's INT8, as `own_row` takes it.

    `models` holds fp32.pb and int8.pb as the command left them; integer.pb is written there. Gives
    {"result", "name", "beside_peers"} or {"failed": why}.
    """
    fp32, integer = models / "fp32.pb", models / "integer.pb"
    making = calling(python_of("tensorflow-current"), f"zoo.make_integer({str(models)!r})")
    measuring = [sys.executable, "-m", "helpers.benchmark", "--fp32", fp32, "--quick"]
    measuring += ["--int8", models / "int8.pb", "--integer", integer, "--limit", str(limit)]
    measuring += ["--inputs", models / "inputs.npy", "--output", models]
    if beside_peers:
        measuring += ["--peers", "--calibration", models / "calibration.npy"]
    with open(models / "own.txt", "w") as log:
        for words in (making, measuring):
            done = subprocess.run(words, cwd=ROOT, stdout=log, stderr=log)
            if done.returncode:
                print((models / "own.txt").read_text()[-3000:])
                return {"failed": f"it {machine.ending(done.returncode)}"}
    name = current(integer).name
    result = json.loads((models / "result.json").read_text())
    return {"result": result, "name": name, "beside_peers": beside_peers}


def make_integer(models):
    """Write integer.pb, of fp32.pb, and inputs.npy, into a folder; runs in env_current/."""
    import numpy as np

    from helpers import datasets, graphs
    from helpers.quantize import integer

    models = Path(models)
    fp32 = models / "fp32.pb"
    shape = graphs.find_signature(graphs.read_graph(fp32)).shape[-3:]
    largest = 1 if shape[-1] == 1 else 255  # the AlexNet takes numbers up to 1, the others pixels
    for name, count, seed in (("calibration", 32, 1), ("inputs", 64, 2)):
        images = (datasets.dummy_images(count, *shape, seed=seed) + 128) * (largest / 255)
        np.save(models / f"{name}.npy", images.astype(np.float32))
    integer.quantize(fp32, np.load(models / "calibration.npy"), models / "integer.pb")


def own_row(name, end):
    """The cells of a family's row in the table of TensorFlow's own operations."""
    if "failed" in end:
        return [name, f"FAILED: {end['failed']}", *["–"] * (len(OWN_COLUMNS) - 2)]
    result, own = end["result"], end["name"]
    kernels = next(entry["kernels"] for entry in result["candidates"] if entry["name"] == own)
    counts = {kind: entry["count"] for kind, entry in kernels.items()}
    pairs = (own, "FP32"), ("INT8", own)
    ratios = [ratio(result, one, size, base) for one, base in pairs for size in (1, 32)]
    quality = [f"{result['agreement'][which]['sqnr_db']:.1f} dB" for which in (own, "INT8")]
    return [name, f"{counts.get('s8', 0)} of {sum(counts.values())}", *ratios, *quality]


def all_rows(name, end):
    """{network and batch: cells} of a family in the table of all runtimes; {} without peers."""
    if "failed" in end or not end["beside_peers"]:
        return {}
    kinds = ["INT8", end["name"], *(peers.NAMES[runtime] for runtime in OTHERS.values())]
    found = {}
    for entry in end["result"]["ratios"]:
        if entry["baseline"] == "FP32":
            text = "{median:.2f} [{low:.2f} – {high:.2f}]".format(**entry["throughput_times"])
            found[entry["candidate"], entry["batch_size"]] = text
    cells = {size: [found.get((kind, size), "–") for kind in kinds] for size in (1, 32)}
    return {f"{name}, {size}": [f"{name}, {size}", *of_size] for size, of_size in cells.items()}


def share(end):
    """The share of layers that ran in INT8; 0 where nothing did."""
    rows = end.get("layers") or [{"int8": False}]
    return sum(row["int8"] for row in rows) / len(rows)


def ratio(result, name, size, baseline="FP32"):
    """How many times as fast as the baseline, as a cell; "–" where it was not measured."""
    for entry in result["ratios"]:
        if (entry["candidate"], entry["baseline"], entry["batch_size"]) == (name, baseline, size):
            text = f"{entry['throughput_times']['median']:.2f}"
            return text if entry["resolved"] else f"~{text}"
    return "–"


def row_of(name, end):
    """The cells of a family's row."""
    spent = f"{end['seconds']:.0f} s"
    if "result" not in end or "failed" in end:
        what = f"FAILED: {end['failed']}" if "failed" in end else end["refused"]
        return [name, what.replace("|", "/"), *["–"] * (len(COLUMNS) - 3), spent]
    result, rows = end["result"], end["layers"]
    ratios = [ratio(result, kind, size) for kind in ("INT8", "BF16") for size in (1, 32)]
    ratios.append(ratio(result, "INT8", 32, "OpenVINO INT8"))
    sqnr = f"{result['agreement']['INT8']['sqnr_db']:.1f} dB"
    return [name, f"{sum(row['int8'] for row in rows)} of {len(rows)}", *ratios, sqnr, spent]


def table(columns, rows):
    """The lines of a table in Markdown, of rows by name, in the order of FAMILIES."""
    ordered = sorted(rows, key=lambda name: FAMILIES.index(name.partition(",")[0]))
    lines = [columns, ["---"] * len(columns), *(rows[name] for name in ordered)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(document, rows, own, together, limit):
    """The text of the document with this machine's section made of its rows by name.

    `rows`, `own` and `together` are those of the section's tables; all but the first may have none.
    """
    here, tensorflow = machine.summary(machine.describe()), machine.software()["tensorflow"]
    stamp = f"TensorFlow {tensorflow}, at least {limit:g} s of measuring each. "
    stamp += f"Last run on {date.today():%Y-%m-%d}."
    left = ", ".join(name for name in FAMILIES if name not in rows)
    stamp += f" Not run here: {left}." if left else ""
    whole = sum(re.fullmatch(r"(\d+) of \1", cells[1]) is not None for cells in rows.values())
    stamp += f" Every layer runs in INT8 in {whole} of {len(rows)} networks."
    text = f"{textwrap.fill(stamp, 100)}\n\n{table(COLUMNS, rows)}\n"
    for head, columns, more in (
        (OWN_HEAD, OWN_COLUMNS, own),
        (ALL_HEAD, ALL_COLUMNS, together),
    ):
        text += f"\n{head}\n\n{table(columns, more)}\n" if more else ""
    parts = sections(document) | {here: text}
    told = [f"{PLACE}{place}\n\n{part}" for place, part in parts.items()]
    return "\n".join([HEAD.format(tensorflow=tensorflow), *told])


def sections(document):
    """{machine: text} of a document, one for each machine on which rows were made."""
    text = document.read_text() if document.exists() else ""
    _, *parts = re.split(rf"^{PLACE}", text, flags=re.M)
    found = (part.partition("\n\n") for part in parts)
    return {place: text.rstrip("\n") + "\n" for place, _, text in found}


def rows_in(document, columns=COLUMNS):
    """The rows of one of the tables of this machine's section, {name: cells}."""
    text = sections(document).get(machine.summary(machine.describe()), "")
    found = (line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| ")
    width = len(columns)
    return {
        cells[0]: cells
        for cells in found
        if cells[0].partition(",")[0] in FAMILIES and len(cells) == width
    }


def main(arguments=None):
    options = parse(arguments)
    base = Path(options.output or tempfile.mkdtemp(prefix="zoo.")).absolute()
    print(f"On {machine.summary(machine.describe())}; outputs and logs in {base}", flush=True)
    rows, bad = rows_in(options.document), []
    own, together = (rows_in(options.document, columns) for columns in (OWN_COLUMNS, ALL_COLUMNS))
    for name in options.names or FAMILIES:
        output = base / name
        output.mkdir(parents=True, exist_ok=True)
        try:
            model = make(name, output / f"{name}.keras")
        except RuntimeError as error:
            end = {"seconds": 0.0, "log": str(error), "failed": "Keras makes no such model"}
        else:
            end = quantize(model, output, options.limit, options.timeout, options.peers)
        if options.current and "result" in end:
            made = in_own_operations(output / "models", options.limit, options.peers)
            own[name] = own_row(name, made)
            together |= all_rows(name, made)
            print("  ".join(own[name]), flush=True)
            if "FAILED" in own[name][1]:
                bad.append(name)
        if not options.keep:
            for folder in ("models", "saved_model", "alexnet"):
                shutil.rmtree(output / folder, ignore_errors=True)
            (output / f"{name}.keras").unlink(missing_ok=True)
        rows[name] = row_of(name, end)
        print("  ".join(rows[name]), flush=True)
        if "failed" in end:
            print(end["log"][-3000:])
        if "failed" in end or ((options.names or options.check) and share(end) < ENOUGH):
            bad.append(name)
        options.document.write_text(page(options.document, rows, own, together, options.limit))
    print(f"Not as they should be: {', '.join(bad)}." if bad else "All as they should be.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
