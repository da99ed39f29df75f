"""Solutions of notebook 06."""

from exercises import made, main, slow

from helpers import benchmark, datasets, zoo
from helpers.benchmark import report


def exercise_1(output):
    """Is AlexNet limited by the same things as ResNet50?"""
    int8 = zoo.alexnet(output / "alexnet", "int8")
    spent = benchmark.profile(int8, datasets.load_mnist().test.images[:64], [1, 64], calls=5)
    for size, (ms, executed) in spent.items():
        share = {}
        for one in executed:
            kind = f"{one.primitive} {one.kind}".strip()
            share[kind] = share.get(kind, 0) + one.ms / ms
        first = max(share, key=share.get)
        outside = 1 - sum(share.values())
        print(
            f"  batch {size:2}: {outside:.0%} outside oneDNN, most in {first}, {share[first]:.0%}"
        )
        assert sum(one.weights == "s8" for one in executed) >= 1


def exercise_2(output):
    """Which batch size when every answer has to come within 50 ms?

    From the result of notebook 05; `latencies` of notebook 06 has more batch sizes.
    """
    result = report.read(made(output / "resnet50" / "result.json", "05"))
    fitting = []
    for size in result["settings"]["batch_sizes"]:
        ms = report.batch_of(result, "INT8", size)["latency_ms"]
        slowest = ms["p99"] or ms["p90"] or ms["p50"]
        print(f"  batch {size:2}: {slowest:.1f} ms")
        fitting += [size] * (slowest < 50)
    print(f"  the largest that fits: {max(fitting, default='none')}")


@slow("measures for some minutes")
def exercise_3(output):
    """Have two variables an effect together?"""
    folder = output / "resnet50"
    fp32 = zoo.resnet50("auto", folder / "models").fp32
    int8 = made(folder / "models" / f"int8_of_{fp32.name}", "05")
    both = {"KMP_BLOCKTIME": "200", "ITEX_LAYOUT_OPT": "1"}
    chosen = [
        benchmark.Candidate("INT8", int8),
        benchmark.Candidate("nothing changed", int8),
        benchmark.Candidate("both", int8, both),
    ]
    measured = benchmark.measure(chosen, folder / "exercises", batch_sizes=[1, 16], limit=120)
    for entry in measured["ratios"]:
        times = entry["throughput_times"]
        print(
            f"  batch {entry['batch_size']:2}, {entry['candidate']}: {times['median']:.3g}", end=" "
        )
        print(f"{report.span(times)}, {entry['verdict']}")


if __name__ == "__main__":
    main(__file__, globals())
