"""The command line: python -m helpers.benchmark."""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

from helpers import UserError, graphs, machine
from helpers.benchmark import peers, report
from helpers.benchmark.candidate import candidates, current
from helpers.benchmark.measurement import compare, dummy_inputs
from helpers.benchmark.settings import read_settings


def shape_of(text):
    """The sizes in 224,224,3 (or 224x224x3)."""
    if not re.fullmatch(r"\d+([,x]\d+)*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no shape; write it like 224,224,3")
    return tuple(int(size) for size in re.split("[,x]", text))


def positive(kind):
    """What argparse is to read as a number above 0."""

    def read(text):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    read.__name__ = kind.__name__
    return read


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m helpers.benchmark",
        description="Compare frozen TensorFlow graphs (FP32, BF16, INT8) side by side.",
    )
    add = parser.add_argument
    add("--fp32", required=True, type=Path, help="frozen FP32 graph (.pb)")
    add("--int8", required=True, type=Path, help="frozen INT8 graph (.pb)")
    add("--bf16", action="store_true", help="also the FP32 graph under auto mixed precision")
    add(
        "--peers",
        action="store_true",
        help="also OpenVINO, ONNX Runtime, LiteRT (needs env_peers/)",
    )
    text = "also INT8 in TensorFlow's own integer operations, run in env_current/ (frozen .pb)"
    add("--integer", type=Path, metavar="GRAPH", help=text)
    add("--calibration", type=Path, help="images for --peers as .npy; default: dummy images")
    add("--settings", type=Path, metavar="FILE", help="what notebook 06 found best here")
    add("--batch-size", type=positive(int), nargs="+", metavar="N", help="default: 1 32")
    add("--seconds", type=positive(float), help="per turn: round, candidate and batch size")
    add("--rounds", type=positive(int), help="exactly so many, resolved or not")
    add("--limit", type=positive(float), help="seconds of measuring; default: 240, quick 60")
    add("--quick", action="store_true", help="shorter turns, and a lower limit")
    add("--threads", type=positive(int), help="default: physical cores this process may use")
    text = "processes of each candidate that share the cores and work at the same time; default: 1"
    add("--instances", type=positive(int), metavar="N", help=text)
    add("--inputs", type=Path, help="inputs as .npy (N, …); default: made up")
    add("--shape", type=shape_of, help="of one input where the graph does not tell: 224,224,3")
    add("--input-name", help="where the graph has several inputs")
    add("--output-name", help="where the graph has several outputs")
    add("--output", type=Path, default=Path("outputs/benchmark"), metavar="DIR")
    options = parser.parse_args(arguments)
    if options.peers and options.inputs and not options.calibration:
        parser.error("--peers with --inputs needs --calibration: training images as .npy")
    return options


def main(arguments=None):
    options = parse(arguments)
    try:
        report.show(run(options), options.output)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted; nothing was written.")


def run(options):
    """Measure what the options of the command line ask for; gives the result."""
    tuned = read_settings(options.settings) if options.settings else {}
    batch_sizes = options.batch_size or tuned.get("batch_sizes", [1, 32])
    names = {"input_name": options.input_name, "output_name": options.output_name}
    chosen = candidates(options.fp32, options.int8, bf16=options.bf16, **names)
    for candidate in [*chosen, *(way for one in chosen for way in one.variants)]:
        candidate.knobs = {**tuned.get("knobs", {}), **candidate.knobs}
    inputs = load_inputs(options.inputs) if options.inputs else None
    if inputs is None:
        inputs = made_up(options, chosen, max(64, *batch_sizes))
    if options.integer:
        chosen.append(current(options.integer, **names))
    count = options.instances or tuned.get("instances", 1)
    if count > 1:
        share_cores(chosen, count)
    if options.peers:
        if count > 1:
            raise UserError("--peers are measured as one process each: give --instances 1.")
        if peers.absent():
            raise UserError(peers.absent())
        images = load_inputs(options.calibration) if options.calibration else None
        if images is None:
            images = made_up(options, chosen, 16, seed=1)
        chosen += peers.candidates(options.fp32, images, options.output / "models", **names)
    effort = {"seconds": options.seconds, "limit": options.limit}
    if options.rounds:
        effort |= {"min_rounds": options.rounds, "max_rounds": options.rounds}
    return compare(
        chosen,
        options.output,
        options.fp32.stem,
        inputs=inputs,
        batch_sizes=batch_sizes,
        profile="quick" if options.quick else "full",
        threads=options.threads or tuned.get("threads"),
        settings={
            "weights": "as given",
            "data": options.inputs.name if options.inputs else "made up",
        },
        **effort,
    )


def share_cores(chosen, count):
    """Have each candidate be `count` pinned processes with equally many cores, under ITEX.

    Raises UserError where the cores (or memory) do not allow so many.
    """
    shares = machine.splits(machine.cores())
    if count not in shares:
        raise UserError(
            f"The {len(machine.cores())} cores here are not shared by {count} processes; "
            f"--instances may be {', '.join(map(str, shares))}."
        )
    for candidate in chosen:
        candidate.instances, candidate.variants = shares[count], []


def made_up(options, chosen, count, seed=0):
    """Dummy inputs for the graphs of the command line."""
    fp32 = graphs.read_graph(options.fp32)
    signature = graphs.find_signature(fp32, options.input_name, options.output_name, options.fp32)
    facts = vars(signature) | ({"shape": options.shape} if options.shape else {})
    return dummy_inputs([chosen[0], chosen[-1]], facts, count, seed)


def load_inputs(path):
    """The array in an .npy file; UserError when it is not one."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a NumPy array: {error}") from error


if __name__ == "__main__":
    main()
