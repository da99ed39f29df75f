"""The command line: python -m helpers.quantize."""

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path

from helpers import UserError, benchmark, files, graphs, machine
from helpers.benchmark import candidate, peers, report
from helpers.benchmark.__main__ import positive, shape_of
from helpers.quantize import data, forms, ladder, layers, reading, serving
from helpers.quantize.preparing import apart, import_tensorflow, prepare, step

BATCH_SIZES = (1, 32)


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m helpers.quantize",
        description="From a trained model to INT8 that is proved to run in INT8, keeps the "
        "accuracy, is measured, and can be served.",
    )
    add = parser.add_argument
    add("model", type=Path, help=".keras, .h5, a SavedModel folder or a frozen graph (.pb)")
    text = ".npz (x_train, y_train, x_test, y_test), .npy, or a folder of class folders of images"
    add("--data", type=Path, help=f"{text}; without it inputs are made up: only the speed counts")
    add("--scale", help="value · SCALE + OFFSET of every value: 1/255 or 1/127.5,-1")
    add("--shape", type=shape_of, help="of one input where the model leaves it open: 224,224,3")
    add("--tolerance", type=points, metavar="POINTS",
        help="percentage points that may be lost; default: 1 of the accuracy, without labels 3 of "
        "the agreement with FP32")  # fmt: skip
    text = "what is to run INT8: itex (Intel's extension, the default where it is installed) or "
    text += "tensorflow (today's TensorFlow alone, in env_current/)"
    add("--runtime", choices=("itex", "tensorflow"), help=text)
    add(
        "--peers",
        action="store_true",
        help="also OpenVINO, ONNX Runtime, LiteRT (needs env_peers/)",
    )
    add("--quick", action="store_true", help="less data, shorter measuring")
    add("--limit", type=positive(float), help="seconds of measuring; default: 240, quick 60")
    add("--output", type=Path, default=Path("outputs/own"), metavar="DIR")
    return parser.parse_args(arguments)


def points(text):
    """A number of percentage points."""
    if not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def main(arguments=None):
    options = parse(arguments)
    try:
        if choose_runtime(options):
            go_on_elsewhere(options)
        return run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nInterrupted; what was not finished was not written.", file=sys.stderr)
        return 130
    return 1


def choose_runtime(options):
    """Set the runtime where none was named; whether another Python than this one has it.

    Raises UserError where no Python here has it.
    """
    here = "itex" if machine.has_itex() else "tensorflow"
    options.runtime = options.runtime or here
    if options.runtime == here:
        return False
    if options.runtime == "itex":
        raise UserError(
            "Intel's extension is not installed in this environment. Leave --runtime itex out, for "
            "INT8 in TensorFlow's own operations, or call env_intel_tf/bin/python."
        )
    if candidate.current_absent():
        raise UserError(f"{candidate.current_absent()}, or leave --runtime tensorflow out.")
    return True


def go_on_elsewhere(options):
    """Have env_current's Python take the place of this one, with the same arguments.

    A file of Keras 2, which Keras 3 may read as something else, is read here, and handed over as a
    SavedModel below the output folder.
    """
    version = reading.keras_version(options.model)
    if version and reading.major(version) < 3:
        with step(f"Read the model by its Keras {version}, for today's TensorFlow"):
            folder = options.output.absolute() / "models" / "from_keras_2" / options.model.stem
            options.model = reading.export(options.model, folder, options.shape)
    python = str(candidate.python_of("tensorflow-current"))
    paths = filter(None, (str(candidate.ROOT), os.environ.get("PYTHONPATH")))
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    sys.stdout.flush()
    words = [python, "-P", "-m", "helpers.quantize", *words_of(options)]
    os.execve(python, words, variables)


def words_of(options):
    """The options as they are written in a command line."""
    given = dict(vars(options))
    words = [str(given.pop("model"))]
    for name, value in given.items():
        if isinstance(value, bool):
            words += [f"--{name}"] * value
        elif value is not None:
            text = ",".join(map(str, value)) if name == "shape" else value
            words.append(f"--{name}={text}")
    return words


def run(options):
    """All of the command; its status: 0 when INT8 holds."""
    if options.peers and peers.absent():
        raise UserError(peers.absent())
    output = options.output.absolute()
    with tempfile.TemporaryDirectory(prefix="quantize_") as scratch:
        ready = apart(prepare, options, output, Path(scratch))
        import_tensorflow()
        return go_on(options, output, ready, data.stored(Path(scratch)))


def go_on(options, output, ready, given):
    """What follows quantizing, with a Prepared and its Data: the status."""
    fp32, trials = ready.fp32, ready.trials
    if not trials[-1].passed:
        return instead(options, output, ready, given)
    int8 = graphs.write_graph(graphs.read_graph(trials[-1].graph), output / "models" / "int8.pb")
    with step("Measure FP32, BF16 where the CPU has it, and INT8"):
        result = measure(options, output, benchmark.candidates(fp32, int8), given)
    with step("Look at each layer"):
        size = max(BATCH_SIZES)
        images = given.decision[:size]
        ran = forms.executed(int8, images, size)
        rows, reasons = layers.look(
            result, fp32, int8, images, ready.why, size, ran, ready.simulated
        )
        files.write_json(output / "layers.json", rows)
        print(layers.table(rows))
    with step("Write what serves it, and time that"):
        serving.save(int8, output, *ready.names)
        cost = serving.measure(output, given.report[:1], machine.usable_cores())
        session, signature = (cost[way]["median"] for way in ("session_ms", "signature_ms"))
        print(f"  One input takes {session:.2f} ms in a Session, as serve.py has it, and "
              f"{signature:.2f} ms through the signature (median calls).")  # fmt: skip
    print(f"\n{closing(result, rows, given, ready)}\n{reasons}{advice(result)}")
    if options.peers and not given.made_up:
        print(to_ship(result, ready.tolerance))
    written = "models/fp32.pb, models/int8.pb, saved_model/, serve.py, layers.json, result.json"
    print(f"In {output}: {written} and two figures.")
    return 0


def measure(options, output, chosen, given):
    """Candidates and, if asked for, the peers of the first of them, side by side: the result."""
    if options.peers:
        folder = output / "models" / "peers"
        chosen = chosen + peers.candidates(chosen[0].graph, given.calibration, folder)
    result = benchmark.compare(
        chosen,
        output,
        options.model.stem,
        inputs=given.report,
        labels=given.report_labels,
        batch_sizes=BATCH_SIZES,
        profile="quick" if options.quick else "full",
        settings={"weights": "as given", "data": options.data.name if options.data else "made up"},
        least_sqnr_db=-math.inf,
        limit=options.limit,
    )
    report.show(result, output)
    return result


def instead(options, output, ready, given):
    """Tell that INT8 does not hold, and what BF16 does; status 1."""
    told = ladder.does_not_hold(ready.trials, ready.word, ready.tolerance)
    text = f"{told} Raise --tolerance"
    if not machine.has_bf16():
        print(f"\n{text}, or stay with FP32: this CPU has no BF16 instructions.")
        return 1
    float_ones = benchmark.candidates(ready.fp32, ready.fp32)[:-1]  # without INT8
    with step("Measure BF16 instead"):
        measure(options, output, float_ones, given)
    whose = "ITEX's" if options.runtime == "itex" else "TensorFlow's"
    print(f"\n{text}, or take BF16: the FP32 graph under {whose} auto mixed precision, as above.")
    return 1


def closing(result, rows, given, ready):
    """What holds, in words: layers in INT8, and the accuracy on inputs that decided nothing."""
    last = ready.trials[-1]
    text = f"{sum(row['int8'] for row in rows)} of {len(rows)} layers run in INT8 ({last.name})."
    if given.made_up:
        return f"{text} Whether it keeps the accuracy is not known without data (--data)."
    fp32, int8 = (
        next(entry["accuracy"] for entry in result["candidates"] if entry["name"] == name)
        for name in ("FP32", "INT8")
    )
    if int8:
        lost = 100 * (fp32["top1"] - int8["top1"])
        text += f" Of {int8['images']:,} inputs that took part in no decision FP32 gets "
        text += f"{fp32['top1']:.2%} right, INT8 {int8['top1']:.2%}."
    else:
        same = result["agreement"]["INT8"]["top1"]
        lost = 100 * (1 - same)
        text += f" On inputs that took part in no decision it agrees with FP32 for {same:.2%}."
    if lost <= ready.tolerance:
        return text
    return (
        f"{text} That is a loss of {lost:.2f} points, more than the {ready.tolerance:g} that may "
        "be lost: on the inputs that decided it was less. Give more data, or a lower --tolerance."
    )


def advice(result):
    """What to take where INT8 is slower than FP32 or than BF16, by the ratios; "" elsewhere."""
    sizes, text = result["settings"]["batch_sizes"], ""
    slow = [size for size in sizes if report.ratio(result, "INT8", size)["verdict"] == "slower"]
    bf16 = any(entry["name"] == "BF16" for entry in result["candidates"])

    def times(name, of=sizes):
        return [report.ratio(result, name, size)["throughput_times"] for size in of]

    def medians(name, of):
        return " and ".join(f"{found['median']:.2f}" for found in times(name, of))

    if slow:
        text += f"\nINT8 does not pay on this CPU at batch {' and '.join(map(str, slow))}: "
        text += f"it is {medians('INT8', slow)} times as fast as FP32. "
        if bf16 and all(report.ratio(result, "BF16", one)["verdict"] == "faster" for one in slow):
            text += f"Take BF16 there, which is {medians('BF16', slow)} times as fast as FP32."
        else:
            text += "Stay with FP32 there."
    if bf16:
        pairs = zip(sizes, times("BF16"), times("INT8"))
        less = [size for size, one, other in pairs if one["low"] > other["high"]]
        less = [size for size in less if size not in slow]
        if less:
            text += (
                f"\nBF16 is faster than INT8 on this CPU at batch {' and '.join(map(str, less))}: "
            )
            text += f"{medians('BF16', less)} times as fast as FP32, where INT8 is "
            text += f"{medians('INT8', less)} times. It needs no calibration; take it there."
    return text


def to_ship(result, tolerance):
    """Which of all candidates to ship for latency and for throughput, of those that hold.

    Of several whose intervals overlap that of the fastest none is preferred.
    """
    base, *others = result["candidates"]
    holding = []
    for entry in others:
        share = result["agreement"][entry["name"]]["top1"]
        lost = 1 - share
        if base["accuracy"]:
            lost = base["accuracy"]["top1"] - entry["accuracy"]["top1"]
        if 100 * lost <= tolerance:
            holding.append(entry["name"])
    names = [base["name"], *holding]
    lines = [f"Within {tolerance:g} points are {', '.join(names)}."]
    for goal, size, key, best in (
        ("latency", min(BATCH_SIZES), "latency_times", min),
        ("throughput", max(BATCH_SIZES), "throughput_times", max),
    ):
        times = {name: report.ratio(result, name, size)[key] for name in names}
        first = times[best(names, key=lambda name: times[name]["median"])]
        alike = [
            name
            for name in names
            if times[name]["low"] <= first["high"] and times[name]["high"] >= first["low"]
        ]
        told = "" if len(alike) == 1 else " (their intervals overlap)"
        lines.append(f"For {goal}, at batch {size}, ship {' or '.join(alike)}{told}.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
