"""The measuring tool: candidates in processes of their own, interleaved rounds, one result.

`compare` measures and writes result.json, `measure` only measures; `candidates` gives FP32, BF16
and INT8. `python -m helpers.benchmark --help` is the command line.
"""

from helpers.benchmark.candidate import BF16_KNOBS, Candidate, candidates, current
from helpers.benchmark.measurement import compare, measure
from helpers.benchmark.processes import ProcessEnded
from helpers.benchmark.profiling import executed_kernels, outputs, profile
from helpers.benchmark.settings import read_settings

__all__ = [
    "BF16_KNOBS",
    "Candidate",
    "ProcessEnded",
    "candidates",
    "compare",
    "current",
    "executed_kernels",
    "measure",
    "outputs",
    "profile",
    "read_settings",
]
