"""Solutions of notebook 05."""

import subprocess
import sys

from exercises import ROOT, main, slow

from helpers import benchmark, zoo
from helpers.benchmark import report


def pair(output):
    """FP32 and INT8 ResNet50 of notebook 05."""
    resnet50 = zoo.resnet50("auto", output / "resnet50" / "models")
    made_here = output / "resnet50" / "models" / f"int8_of_{resnet50.fp32.name}"
    return resnet50.fp32, resnet50.int8 or made_here


@slow("measures for a minute or two")
def exercise_1(output):
    """Where does throughput stop growing?"""
    _, int8 = pair(output)
    sizes = [1, 8, 32, 64]
    chosen, folder = [benchmark.Candidate("INT8", int8)], output / "resnet50" / "exercises"
    measured = benchmark.measure(chosen, folder, batch_sizes=sizes, profile="quick", max_rounds=7)
    for size in sizes:
        batch = report.batch_of(measured, "INT8", size)
        ms = batch["latency_ms"]["p50"]
        print(f"  batch {size:2}: {batch['throughput_fps']:6.0f} images/s, {ms:7.1f} ms")


@slow("measures for a minute")
def exercise_2(output):
    """Two graphs of your own, compared by the same code."""
    fp32, int8 = pair(output)
    words = ["-m", "helpers.benchmark", "--fp32", fp32, "--int8", int8, "--quick"]
    words += ["--limit", "30", "--output", output / "benchmark"]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


@slow("measures for a minute")
def exercise_3(output):
    """What would this CPU do without its newest instructions?"""
    fp32, int8 = pair(output)
    for cap in ("ALL", "AVX512_CORE", "AVX2"):
        knobs = {"ONEDNN_MAX_CPU_ISA": cap}
        chosen = [benchmark.Candidate(n, p, knobs) for n, p in (("FP32", fp32), ("INT8", int8))]
        folder = output / "resnet50" / "exercises"
        measured = benchmark.measure(chosen, folder, batch_sizes=[1], profile="quick", limit=15)
        times = report.ratio(measured, "INT8", 1)["throughput_times"]
        print(
            f"  {cap:12} INT8 is {times['median']:.3g} {report.span(times)} times as fast as FP32"
        )


if __name__ == "__main__":
    main(__file__, globals())
