"""The INT8 network as a folder that serves it without this package: a SavedModel and a script."""

import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from helpers import UserError, files, graphs, machine
from helpers.benchmark.candidate import environment
from helpers.benchmark.worker import aligned, time_calls, warm_up

TEMPLATE = '''\
"""Answers requests with the INT8 network in saved_model/ beside this file."""

import argparse
import os
import statistics
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "saved_model"
# What is read once, when TensorFlow is imported. Threads of one core share its INT8 unit
core = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
files = [Path(core.format(number)) for number in os.sched_getaffinity(0)]
cores = len({path.read_text() if path.exists() else path for path in files})
os.environ.setdefault("OMP_NUM_THREADS", str(cores))
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("KMP_BLOCKTIME", "1")  # ms for which an idle thread spins
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
<variables>
import numpy as np
import tensorflow as tf


def load():
    """(function from a batch (N, …) to the answer, TensorInfo of its input)."""
    tf.get_logger().setLevel("ERROR")
    config = tf.compat.v1.ConfigProto()
    rewrite = config.graph_options.rewrite_options
<session>    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    model = tf.compat.v1.saved_model.load(session, ["serve"], str(FOLDER))
    signature = model.signature_def["serving_default"]
    (source,), (target,) = signature.inputs.values(), signature.outputs.values()
    return session.make_callable(target.name, feed_list=[source.name]), source


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("request", nargs="?", help="an .npy (N, …); by default random numbers")
    parser.add_argument("--to", metavar="ANSWER.npy", help="where to save the answer")
    options = parser.parse_args()
    answer, source = load()
    sizes = [side.size for side in source.tensor_shape.dim][1:]
    if not options.request and (source.tensor_shape.unknown_rank or min(sizes, default=1) < 0):
        parser.error("inputs have no fixed shape: give an .npy")
    random = np.random.default_rng(0).random
    batch = np.load(options.request) if options.request else random((1, *sizes))
    batch = batch.astype(tf.as_dtype(source.dtype).as_numpy_dtype)
    result, times = answer(batch), []
    for _ in range(25):
        start = time.perf_counter()
        answer(batch)
        times.append(1e3 * (time.perf_counter() - start))
    print(f"request {batch.shape}, answer {result.shape}, {os.environ['OMP_NUM_THREADS']} threads")
    print(f"{statistics.median(times[5:]):.2f} ms a call (median of 20 after 6 to warm up)")
    if options.to:
        with open(options.to, "wb") as file:
            np.save(file, result)
'''
# What the forms of INT8 need beside: variables that are read at the import, and of the Session
ONEDNN = """\
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # off by default on CPUs without AVX-512
"""
QDQ = {
    "<variables>": 'os.environ.setdefault("ITEX_CPP_MIN_LOG_LEVEL", "2")\n'
    + ONEDNN
    + """\
os.environ["_ONEDNN_CONSTANT_CACHE"] = "1"  # reordered weights are kept; one network a process!
""",
    "<session>": """\
    rewrite.meta_optimizer_iterations = rewrite.ONE  # a second pass finds nothing more
    rewrite.memory_optimization = rewrite.NO_MEM_OPT
""",
}
INTEGER = {
    "<variables>": ONEDNN
    + """\
# the thread that calls works, too: at batch 1 handing over costs as much as small layers do
os.environ["TF_ONEDNN_THREADPOOL_USE_CALLER_THREAD"] = "1"
""",
    "<session>": """\
    rewrite.use_plugin_optimizers = rewrite.OFF  # TensorFlow's own operations, as they are
""",
}


def script(form):
    """serve.py for one of the forms of INT8, QDQ or INTEGER."""
    text = TEMPLATE
    for mark, lines in form.items():
        text = text.replace(mark, lines)
    return text


WAYS = {"session_ms": "serve.py", "signature_ms": "tf.saved_model.load"}
ROUNDS, SECONDS = 6, 0.3  # of each way, in turns


def clear(folder):
    """Remove what an earlier run has left: nothing of it may be taken for a result of this one."""
    folder = Path(folder)
    for name in ("models/int8.pb", "serve.py", "layers.json", "result.json"):
        (folder / name).unlink(missing_ok=True)
    for figure in folder.glob("fp32_int8_*.png"):
        figure.unlink()
    shutil.rmtree(folder / "saved_model", ignore_errors=True)


def save(int8, folder, input_name, output_name):
    """Write <folder>/saved_model/ and <folder>/serve.py of a frozen INT8 graph; gives the folder.

    The SavedModel has one signature, serving_default, whose keys are `input_name` and
    `output_name`: those that the model had before it was frozen. Each of the two is whole or
    absent, and replaces an older one. Raises UserError for what is no graph of one input and
    output, for a name that is empty, and for a folder that cannot be written.
    """
    folder = Path(folder)
    if not input_name or not output_name:
        raise UserError("The signature of a SavedModel needs a name for its input and its output.")
    graph_def = graphs.read_graph(int8)
    signature = graphs.find_signature(graph_def, path=int8)
    with _whole_folder(folder / "saved_model") as part:
        _write(graph_def, signature, {"input": input_name, "output": output_name}, part)
    with files.whole(folder / "serve.py") as part:
        part.write_text(script(INTEGER if graphs.is_integer(graph_def) else QDQ))
    return folder


def _write(graph_def, signature, keys, path):
    """Write a GraphDef as a SavedModel without variables."""
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # no word of TensorFlow 2 having other ways
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        v1.import_graph_def(graph_def, name="")
        source, target = (
            v1.saved_model.build_tensor_info(graph.get_tensor_by_name(f"{name}:0"))
            for name in (signature.input, signature.output)
        )
        serving = v1.saved_model.build_signature_def(
            {keys["input"]: source},
            {keys["output"]: target},
            v1.saved_model.signature_constants.PREDICT_METHOD_NAME,
        )
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session, ["serve"], signature_def_map={"serving_default": serving}
        )
        try:
            builder.save()
        except tf.errors.OpError as error:
            raise UserError(f"TensorFlow cannot write {path.parent}: {error.message}") from error


@contextlib.contextmanager
def _whole_folder(path):
    """As files.whole, for a folder: an older one goes when the new one is there."""
    part, older = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        yield part
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, older)
        try:
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.replace(older, path)
            raise
    except OSError as error:
        raise files.storage_error(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def measure(folder, images, threads=None):
    """What a call costs at batch 1: {"session_ms", "signature_ms"}, each {"best", "median"}.

    The first is the way of serve.py, a Session; the second is the signature that
    tf.saved_model.load gives. Each runs in a process of its own, in turns, with `threads` (all
    cores by default) on the first of `images` (N, …). Raises UserError when one of them ends.
    """
    threads = threads or machine.usable_cores()
    with tempfile.TemporaryDirectory(prefix="serving_") as scratch, contextlib.ExitStack() as stack:
        np.save(f"{scratch}/inputs.npy", images[:1])
        servers = {}
        for way in WAYS:
            servers[way] = stack.enter_context(_server(way, folder, scratch, threads))
        calls = {way: [] for way in WAYS}
        for ask in servers.values():  # all have warmed up before the first turn
            ask("time")
        for turn in range(ROUNDS):
            for way in list(WAYS)[:: -1 if turn % 2 else 1]:
                calls[way] += servers[way]("time")
    return {
        way: {"best": 1e3 * min(spent), "median": 1e3 * statistics.median(spent)}
        for way, spent in calls.items()
    }


@contextlib.contextmanager
def _server(way, folder, scratch, threads):
    """A process that serves in one way: a function that sends it a word and gives the answer."""
    log = Path(scratch, f"{way}.log")
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "helpers.quantize.serving", way, folder, scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment(threads),
        )

    def ask(word):
        with contextlib.suppress(BrokenPipeError):  # that it has ended is seen below
            print(word, file=process.stdin, flush=True)
        if line := process.stdout.readline():
            return json.loads(line)
        ended = machine.ending(process.wait())
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise UserError(f"{WAYS[way]} of {folder} was not measured: its process {ended}. {last}")

    try:
        yield ask
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _call(way, folder, images):
    """What calls the network in `folder` in one way with a batch."""
    if way == "session_ms":
        spec = importlib.util.spec_from_file_location("serve", Path(folder, "serve.py"))
        serve = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(serve)
        answer, source = serve.load()
        batch = aligned(images.astype(serve.tf.as_dtype(source.dtype).as_numpy_dtype))
        return lambda: answer(batch)
    import tensorflow as tf

    loaded = tf.saved_model.load(str(Path(folder, "saved_model")))
    signature = loaded.signatures["serving_default"]
    ((key, spec),) = signature.structured_input_signature[1].items()
    (target,) = signature.structured_outputs
    batch = aligned(images.astype(spec.dtype.as_numpy_dtype))

    def call():
        assert loaded  # what has the signature has to stay
        return signature(**{key: tf.constant(batch)})[target].numpy()

    return call


def main():
    """Answers each line of its input with the times (s) of some calls: see `measure`."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # TensorFlow's libraries print there, too
    way, folder, scratch = sys.argv[1:]
    call = _call(way, folder, np.load(f"{scratch}/inputs.npy"))
    warm_up(call, SECONDS)
    for _ in sys.stdin:
        print(json.dumps(time_calls(call, SECONDS, 3)), file=answers)


if __name__ == "__main__":
    main()
