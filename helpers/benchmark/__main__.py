"""The command line: python -m helpers.benchmark."""


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m helpers.benchmark",
        description="Compare frozen TensorFlow graphs (FP32, BF16, INT8) side by side.",
    )
    add = parser.add_argument
    add("--fp32", required=True, type=Path, help="frozen FP32 graph (.pb)")
    add("--int8", required=True, type=Path, help="frozen INT8 graph (.pb)")
    add("--bf16", action="store_true", help="also the FP32 graph under auto mixed precision")
    add("--peers", action="store_true", help="also OpenVINO and ONNX Runtime (set_env.sh --peers)")
    add("--calibration", type=Path, help="images for --peers as .npy; default: dummy images")
    add("--settings", type=Path, metavar="FILE", help="threads, batch sizes, knobs of notebook 06")
    add("--batch-size", type=int, nargs="+", metavar="N", help="default: 1 32")
    add("--seconds", type=float, help="per round, candidate and batch size")
    add("--rounds", type=int, help="interleaved rounds")
    add("--quick", action="store_true", help="fewer and shorter rounds")
    add("--threads", type=int, help="default: physical cores this process may use")
    add("--inputs", type=Path, help="inputs as .npy (N, …); default: dummy images")
    add("--shape", help="shape of one input where the graph does not tell, e.g. 224,224,3")
    add("--input-name", help="where the graph has several inputs")
    add("--output-name", help="where the graph has several outputs")
    add("--output", type=Path, default=Path("outputs/benchmark"), metavar="DIR")
    options = parser.parse_args(arguments)
    effort = {"seconds": options.seconds, "rounds": options.rounds}
    effort = {key: value for key, value in effort.items() if value is not None}
    asked = [*(options.batch_size or [1]), *effort.values(), options.threads or 1]
    if min(asked) <= 0 or options.threads == 0:
        parser.error("batch sizes, rounds, seconds and threads must be positive")
    if options.peers and options.inputs and not options.calibration:
        parser.error("--peers with --inputs needs --calibration: training images as .npy")
    try:
        tuned = read_settings(options.settings) if options.settings else {}
        batch_sizes = options.batch_size or tuned.get("batch_sizes", [1, 32])
        inputs = None
        if options.inputs:
            inputs = load_inputs(options.inputs)
        elif options.shape:
            shape = [int(size) for size in options.shape.split(",")]
            inputs = dummy_inputs({"shape": shape}, max(64, *batch_sizes))
        chosen = candidates(
            options.fp32,
            options.int8,
            bf16=options.bf16,
            input_name=options.input_name,
            output_name=options.output_name,
        )
        for one in chosen:
            one.knobs = {**tuned.get("knobs", {}), **one.knobs}
        if options.peers:
            chosen += peer_candidates(options)
        result = compare(
            chosen,
            options.output,
            options.fp32.stem,
            inputs=inputs,
            batch_sizes=batch_sizes,
            profile="quick" if options.quick else "full",
            threads=options.threads or tuned.get("threads"),
            settings={"data": str(options.inputs or "dummy images")},
            **effort,
        )
        report.show(result, options.output)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted; nothing was written.")


def peer_candidates(options):
    """The peers' candidates for the command line's options."""
    if peers.absent():
        raise UserError(peers.absent())
    names = (options.input_name, options.output_name)
    if options.calibration:
        images = load_inputs(options.calibration)
    else:
        shape = options.shape and [int(size) for size in options.shape.split(",")]
        shape = shape or models.find_signature(models.read_graph(options.fp32), *names).shape
        images = dummy_inputs({"input": names[0], "shape": shape}, 16, seed=1)
    return peers.candidates(options.fp32, images, options.output / "models" / "peers", *names)


SETTINGS = {"threads": int, "batch_sizes": list, "knobs": dict, "notes": dict}


def read_settings(path):
    """What notebook 06 chose: threads, batch_sizes, knobs (environment variables), notes.

    All are optional; `notes` is not used. Raises UserError for a file that is something else.
    """
    try:
        settings = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as settings: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings: an object with {', '.join(SETTINGS)}.")
    for name, value in settings.items():
        if name not in SETTINGS:
            raise UserError(
                f"{path}: there is no setting '{name}'. There are: {', '.join(SETTINGS)}."
            )
        numbers = value if name == "batch_sizes" else [value] if name == "threads" else [1]
        texts = [*value, *value.values()] if name == "knobs" and isinstance(value, dict) else []
        if (
            type(value) is not SETTINGS[name]
            or not numbers
            or not all(type(one) is int and one > 0 for one in numbers)
            or not all(type(one) is str for one in texts)
        ):
            raise UserError(f"{path}: {json.dumps(value)} will not do for '{name}'.")
    return settings


def load_inputs(path):
    """The array in an .npy file; UserError when it is not one."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a NumPy array: {error}") from error
