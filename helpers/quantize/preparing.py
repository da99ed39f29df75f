"""The first half of the command, in a process of its own: from the file to INT8 that holds.

Of a large network reading and quantizing leave gigabytes that Python and TensorFlow do not give
back; they end with that process, and what measures has the memory.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

from helpers import UserError, graphs, machine
from helpers.quantize import data, forms, ladder, reading, serving

TOLERANCE = {"accuracy": 1.0, "agreement with FP32": 3.0}  # percentage points


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the second half of the command goes on with.

    `names` are those of the original's input and output. Of `trials` the last decides; `word` says
    what it is judged by, `tolerance` how many points of that may be lost. `why` says of each layer
    that is left in FP32 why. `simulated` is as in layers.layers, None where nothing holds.
    """

    fp32: Path
    names: tuple[str, str]
    word: str
    tolerance: float
    trials: list[ladder.Trial]
    why: dict[str, str]
    simulated: Path | None


@contextlib.contextmanager
def step(title):
    """Tell what begins, and afterwards how long it took."""
    print(f"\n{title}", flush=True)
    start = time.monotonic()
    yield
    print(f"  ({time.monotonic() - start:.0f} s)", flush=True)


def import_tensorflow():
    """Import TensorFlow without the lines that 2.21 prints then whatever its log level is."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def prepare(options, output, scratch):
    """Read, freeze and quantize what the command line asks for, into <output>/models: a Prepared.

    The data are left in the folder `scratch`, for data.stored. Raises UserError as reading.read,
    data.read and ladder.climb do.
    """
    import_tensorflow()
    with step("Read the model and the data, and freeze"):
        source = reading.read(options.model, options.shape)
        given = read_data(options, source)
        serving.clear(output)
        data.store(given, scratch)
        models = output / "models"
        fp32 = graphs.write_graph(source.graph_def, models / "fp32.pb")
        sqnr = reading.check(source, fp32, given.decision[:32])
        print(f"  The frozen graph gives what the model gives: SQNR {min(sqnr, 200):.0f} dB.")
    with step("Quantize with Intel Neural Compressor, until it holds"):
        judge = ladder.Judge(fp32, given.decision, given.decision_labels)
        tolerance = math.inf if given.made_up else options.tolerance
        tolerance = TOLERANCE[judge.word] if tolerance is None else tolerance
        if not given.made_up:
            print(f"  Judged by {judge.word} on {len(given.decision):,} inputs; FP32 has "
                  f"{judge.baseline:.2%}, {tolerance:g} points may be lost.")  # fmt: skip
        form = forms.form_of(options.runtime)(fp32, given.calibration, models / "trials")
        trials, why = ladder.climb(
            fp32, given.calibration, judge, tolerance, models / "trials", form=form
        )
        last = trials[-1]
        simulated = form.simulated(last.graph) if last.passed else None
    names = source.input_name, source.output_name
    return Prepared(fp32, names, judge.word, tolerance, trials, why, simulated)


def read_data(options, source):
    """The Data for a Source; tells what the two are."""
    given = data.read_for(source, options.data, options.scale, options.quick)
    listed = graphs.layers(source.graph_def)
    signature = graphs.find_signature(source.graph_def)
    print(f"  {source.kind} with {len(listed)} convolutions and matrix products; input "
          f"'{source.input_name}' {signature.shape} {signature.dtype}.")  # fmt: skip
    if given.made_up:
        print("  No data: inputs are made up, so of what follows only the speed counts.")
    return given


def apart(function, *arguments):
    """What `function(*arguments)` gives in a fresh Python, which takes its memory along.

    Other than machine.in_own_process it prints where this one prints, and pickles what passes.
    Raises what it raises of UserError and KeyboardInterrupt, and UserError when it is ended.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # until it can tell of a Ctrl-C itself
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()
    try:
        answer = ours.recv()
    except KeyboardInterrupt:
        _interrupt(process)
        raise
    except EOFError:
        process.join()
        raise UserError(
            f"The process that reads and quantizes the model {machine.ending(process.exitcode)}."
        ) from None
    process.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _interrupt(process):
    """Have a process end, with time to remove what it has half written."""
    process.join(2)  # a terminal has interrupted it, too
    if process.is_alive():
        os.kill(process.pid, signal.SIGINT)
        process.join(10)
    process.kill()
    process.join()


def _answer(pipe, function, arguments):
    """Send what the function gives, or that it could not, through the pipe."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        answer = function(*arguments)
    except (UserError, KeyboardInterrupt) as error:
        answer = error
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send(answer)


def _end_with_parent():
    """End this process when the one that started it has ended, by whatever signal."""
    multiprocessing.parent_process().join()
    os._exit(1)
