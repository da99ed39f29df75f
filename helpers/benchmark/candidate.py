"""What is measured, and the environment that its process gets."""

import importlib.metadata
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from helpers import UserError, machine

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "env_peers"  # the environment of the other runtimes (./set_env.sh --peers)
CURRENT = ROOT / "env_current"  # that of today's TensorFlow, without ITEX (./set_env.sh --current)
OWN = ("tensorflow", "tensorflow-current")  # runtimes that take a frozen graph of TensorFlow
BF16_KNOBS = {
    "ITEX_AUTO_MIXED_PRECISION": "1",
    "ITEX_AUTO_MIXED_PRECISION_DATA_TYPE": "BFLOAT16",
}
# TensorFlow's operations hand each piece of their work to another thread and wait; with this the
# thread that calls does one piece itself. It is read where all CPUs are used (mkl_threadpool.h).
CALLER_KNOBS = {"TF_ONEDNN_THREADPOOL_USE_CALLER_THREAD": "1"}
# What steers TensorFlow, ITEX, oneDNN, OpenMP or the allocator. A worker inherits none of it, but
# for the cap, which is an experiment of the reader's own; all that it has is in its result.
STEERING = (
    *("DNNL_", "GLIBC_TUNABLES", "GOMP_", "ITEX_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_"),
    *("OMP_", "ONEDNN_", "TF_", "XLA_FLAGS", "_ITEX_", "_ONEDNN_"),
)
CAP = "ONEDNN_MAX_CPU_ISA"
CLOCK = time.perf_counter  # the same for all processes of a machine


@dataclass
class Candidate:
    """One thing to measure: a frozen graph and the environment its process starts with.

    A name that begins with FP32, BF16 or INT8 is a promise: oneDNN's weights are then checked to
    be f32, bf16 or s8 when it runs. `stock` leaves ITEX's optimisers out. `instances` are the
    logical CPUs of each of several processes that work at the same time; () is one process with
    all threads, not pinned. "tensorflow-current" is the `runtime` of `current`; models of others
    are made by helpers.benchmark.peers.
    `variants` are other ways to run the same: at each batch size the fastest of all is measured.
    One that is not `required` may fail: then it is left out, and the result says why; `refused`
    says so of one that has no model.
    """

    name: str
    graph: Path
    knobs: dict = field(default_factory=dict)
    input_name: str | None = None
    output_name: str | None = None
    stock: bool = False
    instances: tuple = ()
    runtime: str = "tensorflow"
    variant: str = ""
    variants: list = field(default_factory=list)
    required: bool = True
    options: dict = field(default_factory=dict)
    refused: str = ""

    def __post_init__(self):
        self.graph = self.graph and Path(self.graph)

    @property
    def bytes(self):
        """The size of the model; OpenVINO keeps the weights in a file beside it.

        A file that is not there counts nothing: the process that loads it says so.
        """
        weights = [self.graph.with_suffix(".bin")] if self.graph.suffix == ".xml" else []
        return sum(path.stat().st_size for path in [self.graph, *weights] if path.exists())

    @property
    def weights(self):
        """The type of the weights that its name promises: "f32", "bf16", "s8" or None."""
        types = {"FP32": "f32", "BF16": "bf16", "INT8": "s8"}
        return types.get(self.name.split()[0].rstrip(","))

    @property
    def gib(self):
        """What its processes need of memory, roughly: TensorFlow, and the graph several times.

        Measured on VGG16 (0.52 GiB): 4.7 GiB, and 7.3 while the graph is optimised.
        """
        alone = 0.8 + 7.5 * self.bytes / 2**30
        return sum(one.gib for one in self.variants) + alone * max(1, len(self.instances))


def candidates(fp32, int8, bf16=None, **names):
    """FP32, BF16 (the FP32 graph under ITEX auto mixed precision) and INT8, in this order.

    FP32 runs with ITEX or without, whichever is faster at a batch size. `bf16` None means: where
    the CPU has it. `names` may hold input_name and output_name. Raises UserError where BF16 is
    asked for and not there. Where there is no ITEX all run in TensorFlow alone, BF16 under its own
    auto mixed precision.
    """
    if bf16 is None:
        bf16 = machine.has_bf16()
    if not machine.has_itex():
        alone = {"stock": True, **names}
        middle = [Candidate("BF16", fp32, BF16_KNOBS | CALLER_KNOBS, **alone)] if bf16 else []
        base, int8 = (
            Candidate(name, graph, dict(CALLER_KNOBS), **alone)
            for name, graph in (("FP32", fp32), ("INT8", int8))
        )
        return [base, *middle, int8]
    stock = Candidate("FP32", fp32, stock=True, variant="without ITEX", **names)
    best = Candidate("FP32", fp32, variant="ITEX", variants=[stock], **names)
    middle = [Candidate("BF16", fp32, dict(BF16_KNOBS), **names)] if bf16 else []
    return [best, *middle, Candidate("INT8", int8, **names)]


def current(graph, **names):
    """INT8 in integer operations (helpers.quantize.integer), run by the TensorFlow of env_current.

    `names` may hold input_name and output_name. Raises UserError where env_current/ is absent.
    """
    if current_absent():
        raise UserError(current_absent())
    found = importlib.metadata.distributions(name="tensorflow", path=_packages(CURRENT))
    release = ".".join(next(iter(found)).version.split(".")[:2])
    way = {"stock": True, "runtime": "tensorflow-current", **names}
    return Candidate(f"INT8, TensorFlow {release}", graph, dict(CALLER_KNOBS), **way)


def current_absent():
    """None where env_current/ is there, else the sentence that says how to get it."""
    if (CURRENT / ".finished").exists():
        return None
    return "Today's TensorFlow is not installed (no env_current/): run ./set_env.sh --current"


def _packages(environment):
    return [str(path) for path in environment.glob("lib/python3*/site-packages")]


def python_of(runtime):
    """The Python that has a runtime's packages."""
    if runtime == "tensorflow":
        return sys.executable
    return (CURRENT if runtime == "tensorflow-current" else PEERS) / "bin" / "python"


def refuse_bf16(candidate):
    """Raise UserError for a candidate in BF16 on a CPU without it, where ITEX would crash."""
    wanted = candidate.weights == "bf16" or candidate.knobs.get("ITEX_AUTO_MIXED_PRECISION") == "1"
    if wanted and not machine.has_bf16():
        cap = f" (oneDNN is capped at {os.environ[CAP]})" if os.environ.get(CAP) else ""
        raise UserError(
            f"{candidate.name} was not started: this CPU has no BF16 instructions{cap}, and ITEX's "
            "mixed precision ends the process without them. Leave BF16 out."
        )


def environment(threads, knobs=None):
    """The whole environment of a process that measures.

    Nothing of STEERING is inherited but the cap; what is set here and `knobs` are all there is.
    Jupyter's way to draw is left behind: other environments do not have it, and end over it.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name == CAP or not name.startswith((*STEERING, "MPLBACKEND"))
    }
    return {
        **inherited,
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "TF_ENABLE_ONEDNN_OPTS": "1",  # off by default on CPUs without AVX-512
        "OMP_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "KMP_BLOCKTIME": "1",  # ms; by default an idle worker spins into the next turn
        "_ONEDNN_CONSTANT_CACHE": "1",  # ITEX's default, which `helpers` switches off elsewhere
        "PYTHONPATH": str(ROOT),
        **(knobs or {}),
    }


def steering(variables):
    """The part of an environment that steers what is measured."""
    return {name: variables[name] for name in sorted(variables) if name.startswith(STEERING)}
