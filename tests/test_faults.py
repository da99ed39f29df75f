"""Does the regression test catch anything? Faults planted, and what notices each.

The same notebooks without a fault pass in test_headless.py, whose whole run leaves the models.
"""

import shutil
from dataclasses import dataclass

import pytest
from conftest import ROOT, nbval


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in `file`; then the cell of `notebook` that holds `caught` fails."""

    name: str
    file: str
    old: str
    new: str
    notebook: str
    caught: str


CANDIDATES, WORKER = "helpers/benchmark/candidate.py", "helpers/benchmark/worker.py"
MEASUREMENT, REPORT = "helpers/benchmark/measurement.py", "helpers/benchmark/report.py"
BOOK_03 = "notebooks/03_quantize_alexnet.ipynb"
# these runs need no good timings
LONG = '"seconds": 0.3, "min_calls": 1, "min_rounds": 7, "max_rounds": 100, "limit": 60'
SHORT = '"seconds": 0.02, "min_calls": 1, "min_rounds": 2, "max_rounds": 2, "limit": 1'
FAULTS = [
    Fault(
        "INT8 and FP32 swapped",
        CANDIDATES,
        'best = Candidate("FP32", fp32, variant',
        'best = Candidate("FP32", int8, variant',
        "04_benchmark_alexnet",
        "result = benchmark.compare(",
    ),
    Fault(
        "one layer fewer quantized",
        BOOK_03,
        '"def quantize(name, config, loader=calibration):\\n",',
        '"def quantize(name, config, loader=calibration):\\n",\n'
        '"    fp32 = StaticQuantConfig(weight_dtype=\\"fp32\\", act_dtype=\\"fp32\\")\\n",\n'
        '"    config.set_local(\\"model/conv2d_2/Conv2D\\", fp32)\\n",',
        "03_quantize_alexnet",
        "'INT8' if layer.int8 else 'float'",
    ),
    Fault(
        "accuracy 5 points lower",
        WORKER,
        "np.save(file, self._graph.predict(inputs, batch_size))",
        "outputs = self._graph.predict(inputs, batch_size)\n"
        "            twentieth = len(outputs) // 20\n"
        "            outputs[:twentieth] = np.roll(outputs[:twentieth], 1, axis=1)\n"
        "            np.save(file, outputs)",
        "04_benchmark_alexnet",
        'fp32["accuracy"]["top1"] > 0.92',
    ),
    Fault(
        "calibration reads test images",
        BOOK_03,
        "CalibrationLoader(data.train.images[:count], batch_size=100)",
        "CalibrationLoader(data.test.images[:count], batch_size=100)",
        "03_quantize_alexnet",
        "np.shares_memory(calibration.images",
    ),
    Fault(
        "throughput from the last batch only",
        "helpers/stats.py",
        '"throughput_fps": images / seconds',
        '"throughput_fps": batch_size / rounds[-1].calls[-1]',
        "04_benchmark_alexnet",
        'abs(batch["throughput_fps"] / fps - 1)',
    ),
    Fault(
        "a figure is not written",
        REPORT,
        'figure.savefig(part, format="png", dpi=110)',
        "pass",
        "04_benchmark_alexnet",
        "report.show(",
    ),
    Fault(
        "a helper renamed",
        "helpers/graphs.py",
        "def layers(graph_def):",
        "def quantized_layers(graph_def):",
        "03_quantize_alexnet",
        "graphs.layers(",
    ),
    Fault(
        "a cell that raises",
        "notebooks/01_check_machine.ipynb",
        '"flags = machine.isa_flags()\\n",',
        '"flags = machine.isa_flags()[99]\\n",',
        "01_check_machine",
        "machine.isa_flags()[99]",
    ),
    Fault(
        "a stored count edited by hand",
        BOOK_03,
        "7 in the file, 7 ran",
        "7 in the file, 6 ran",
        "03_quantize_alexnet",
        "int8_kernels = sum(",
    ),
    Fault(
        "a stored table edited by hand",
        "notebooks/01_check_machine.ipynb",
        "AMX: INT8 matrix multiply in hardware",
        "AMX: INT4 matrix multiply in hardware",
        "01_check_machine",
        "machine.ISA_FLAGS.items()",
    ),
]


# these two are noticed by different cells of one notebook: planted together they save a run
TOGETHER = [
    fault
    for fault in FAULTS
    if fault.name in ("accuracy 5 points lower", "a figure is not written")
]
PLANTED = [TOGETHER, *([fault] for fault in FAULTS if fault not in TOGETHER)]


@pytest.mark.parametrize("faults", PLANTED, ids=lambda faults: faults[0].name.replace(" ", "-"))
def test_a_planted_fault_is_caught(faults, outputs, tmp_path):
    checkout, models = tmp_path / "checkout", tmp_path / "outputs"
    for name in ("helpers", "notebooks", "tests"):
        shutil.copytree(ROOT / name, checkout / name)
    # models only: no figure or result of an earlier run
    shutil.copytree(outputs / "alexnet" / "models", models / "alexnet" / "models")
    replace(checkout / MEASUREMENT, LONG, SHORT)
    for fault in faults:
        replace(checkout / fault.file, fault.old, fault.new)
    book = checkout / "notebooks" / f"{faults[0].notebook}.ipynb"
    until = ["-x"] if len(faults) == 1 else []
    done = nbval(book, models, tmp_path, *until, root=checkout)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-2000:]
    cells = failing_cells(done.stdout)
    for fault in faults:
        assert any(fault.caught in cell for cell in cells), done.stdout


def replace(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1, "the place to change has changed"
    file.write_text(text.replace(old, new))


def failing_cells(report):
    """The source of each cell that nbval shows as failed."""
    return [part.partition("Traceback:")[0] for part in report.split("Input:")[1:]]
