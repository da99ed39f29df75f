"""The page at the end of a run, on made-up results of several schemas."""

import json

import nbformat
import pytest

from helpers import UserError
from helpers.run import cli, site

MACHINE = {
    "cpu": "A CPU", "logical_cores": 4, "physical_cores": 2, "usable_cores": 2, "sockets": 1,
    "memory_gib": 8.0, "isa": ["avx2"], "gpus": [], "isa_cap": None, "os": "Linux",
}  # fmt: skip
SOFTWARE = {"python": "3.11.9", "tensorflow": "2.15.1", "itex": None, "commit": "abc"}


def candidate(name, milliseconds, **fields):
    latency = dict.fromkeys(("p50", "p90", "p99", "best", "mean"), milliseconds)
    batch = {"calls": 90, "throughput_fps": 1000 / milliseconds, "latency_ms": latency}
    batches = [{**batch, "batch_size": size} for size in (1, 32)]
    layers = {"int8": 54 if name == "INT8" else 0, "all": 54}
    return {
        "name": name, "bytes": 1_000_000, "batches": batches, "layers": layers, "accuracy": None,
        **fields,
    }  # fmt: skip


def result(model="resnet50"):
    """A result as the first version wrote them (schema 1)."""
    times = {"median": 4.0, "low": 3.9, "high": 4.1, "best": 4.2}
    entry = {"candidate": "INT8", "baseline": "FP32", "throughput_times": times}
    down = {"median": 0.25, "low": 0.24, "high": 0.26, "best": 0.23}
    return {
        "schema": 1, "model": model, "profile": "quick", "created": "2026-01-02T03:04:05Z",
        "machine": dict(MACHINE), "software": dict(SOFTWARE),
        "settings": {
            "threads": 2, "seconds": 1.0, "rounds": 5, "batch_sizes": [1, 32],
            "weights": "random, seed 0", "data": "dummy images",
        },
        "candidates": [candidate("FP32", 40), candidate("INT8", 10)],
        "ratios": [{**entry, "latency_times": down, "batch_size": size} for size in (1, 32)],
        "agreement": {"INT8": {"top1": 0.99, "sqnr_db": 14.7}},
        "noise": {"verdict": "steady", "spread_percent": 3.0, "slowdown_percent": 4.0},
    }  # fmt: skip


def page_of(output, **results):
    for folder, content in results.items():
        (output / folder).mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (output / folder / "result.json").write_text(text)
    return site.write(output, []).read_text()


def row(page, *cells):
    """Whether the page holds table cells with these texts, one after the other."""
    text = page.replace("\n", "")
    return "".join(f"<td>{cell}</td>" for cell in cells) in text


def test_a_result_of_the_first_schema_is_shown(tmp_path):
    page = page_of(tmp_path, resnet50=result())
    assert "weights: random, seed 0" in page and "INT8 gives 4 times the throughput" in page
    assert "Measured on 2 cores of A CPU" in page
    assert row(
        page, 1, "INT8", 100, "10.00", "10.00", "10.00", "10.00", 4, "3.9 – 4.1", 4.2, "faster"
    )
    assert row(page, "INT8", "54 of 54", "not told", "99.0 %", "14.7", "not measured", "1.0")
    assert row(page, "isa", "avx2") and row(page, "itex", "–")


def test_a_result_of_the_command_line_needs_no_weights(tmp_path):
    mine = result("mine")
    del mine["settings"]["weights"]
    page = page_of(tmp_path, benchmark=mine)
    assert (
        "INT8 gives 4 times the throughput" in page
        and "weights" not in page.partition("<h2>mine")[2].partition("</h2>")[0]
    )


def test_percentiles_of_too_few_calls_and_kernels_that_ran(tmp_path):
    new = result()
    new["schema"] = 2
    new["candidates"][1]["kernels"] = {
        "s8": {"count": 53, "share": 0.98},
        "f32": {"count": 1, "share": 0.02},
    }
    for batch in new["candidates"][1]["batches"]:
        batch["latency_ms"].update(p90=None, p99=None)
    page = page_of(tmp_path, resnet50=new)
    assert row(page, 32, "INT8", 100, "10.00", "–", "–", "10.00", 4, "3.9 – 4.1", 4.2, "faster")
    assert row(page, "INT8", "54 of 54", "53 s8, 1 f32", "99.0 %")


def test_a_candidate_without_percentiles_layers_or_agreement(tmp_path):
    lean = result()
    del lean["agreement"], lean["candidates"][1]["layers"]
    for batch in lean["candidates"][1]["batches"]:
        batch["latency_ms"] = {"p50": 10.0, "best": 9.0}
    lean["candidates"][1]["batches"].pop()  # it was measured at batch 1 only
    page = page_of(tmp_path, resnet50=lean)
    assert row(page, 1, "INT8", 100, "10.00", "–", "–", "9.00")
    assert not row(page, 32, "INT8", 100)
    assert row(page, "INT8", "–", "not told", "", "", "not measured", "1.0")


@pytest.mark.parametrize(
    "broken", ['{"model": "half', "[]", "{}", '{"model": "x", "settings": {}}']
)
def test_a_broken_result_is_named_and_the_others_are_shown(broken, tmp_path):
    page = page_of(tmp_path, resnet50=result(), broken=broken)
    assert "INT8 gives 4 times the throughput" in page
    assert f"Left out: {tmp_path / 'broken' / 'result.json'} " in page


def test_figures_lie_beside_the_result(tmp_path):
    """Also where the folder is not named after the model."""
    for folder, content in (("benchmark", b"mine"), ("resnet50", b"another's")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "fp32_int8_times.png").write_bytes(content)
    page = page_of(tmp_path, benchmark=result("resnet50"))
    assert page.count("<img") == 1 and 'alt="Bar charts for resnet50' in page
    assert "data:image/png;base64,bWluZQ==" in page


def test_the_summary_names_a_broken_result_too(tmp_path):
    page_of(tmp_path, resnet50=result(), broken="{")
    told = cli.summary(tmp_path, since=0)
    assert "resnet50 (quick profile)\nModel " in told and "throughput_times" in told
    assert f"Left out: {tmp_path / 'broken' / 'result.json'} " in told
    assert cli.summary(tmp_path, since=2**40) == ""


def test_how_notebooks_of_earlier_runs_ended_is_on_the_page(tmp_path):
    stems = [path.stem for path in cli.notebooks()][:5]
    (tmp_path / "notebooks").mkdir()
    for stem in stems[:1] + stems[2:4]:
        nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebooks" / f"{stem}.ipynb")
    first = cli.States(tmp_path)
    first.set(stems[0], "failed", "3 s")
    first.set(stems[1], "not finished")  # not even a copy was left
    first.set(stems[2], "done", "4 s")
    books = list(cli.States(tmp_path).earlier([{"stem": stems[4]}]))
    assert [(book["stem"], book["state"], book["time"]) for book in books] == [
        (stems[0], "failed, in an earlier run", "3 s"),
        (stems[1], "not finished, in an earlier run", ""),
        (stems[2], "done, in an earlier run", "4 s"),
        (stems[3], "of unknown end, in an earlier run", ""),
    ]
    page = site.write(tmp_path, books).read_text()
    assert '<td class="failed">failed, in an earlier run</td><td>3 s</td>' in page
    assert '<td class="failed">not finished, in an earlier run</td>' in page
    assert "<td>done, in an earlier run</td>" in page


def test_a_page_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site.Path, "write_text", full)
    with pytest.raises(UserError, match="disk is full"):
        site.write(tmp_path, [])
