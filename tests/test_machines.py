"""Many results side by side: what is read, what is mixed, and what is said of it.

The results are those of results/, changed: their speeds, their CPUs, or what is in the file.
"""

import copy
import csv
import json
import os
import re
import time

import pytest
import refresh
from conftest import ROOT

from helpers import UserError, machine, machines
from helpers.benchmark.result import Result
from helpers.machines import __main__ as command
from helpers.machines import drawing, lessons, page, sharing, table
from helpers.machines.reading import KINDS, kind_of
from helpers.run import cli, contribute

REAL = {  # four of the package: their figures are known below, however many are added
    name: json.loads((ROOT / "results" / f"{name}.json").read_text())
    for name in (
        f"amd-epyc-zen{n}-2-cores_{net}" for n in (3, 4) for net in ("alexnet", "resnet50")
    )
}
ZEN4, ZEN3 = (REAL[f"amd-epyc-zen{n}-2-cores_resnet50"] for n in (4, 3))
AMX = [*machine.ISA_FLAGS]


def changed(result, fps=1.0, times=1.0, **fields):
    """A copy, `fps` times as fast in all, and `times` of that in INT8.

    `fields` are those of the machine, or others by path: settings__threads=4.
    """
    new = copy.deepcopy(result)
    new["created"] = f"{fps} {times} {fields}"  # another measurement
    for candidate in new["candidates"]:
        factor = fps * (times if candidate["name"] == "INT8" else 1)
        for batch in candidate["batches"]:
            batch["throughput_fps"] *= factor
            for key in batch["latency_ms"]:
                batch["latency_ms"][key] /= factor
    for ratio in new["ratios"]:
        if ratio["candidate"] == "INT8":
            for key in ("median", "low", "high", "best"):
                ratio["throughput_times"][key] *= times
    for name, value in fields.items():
        *path, last = name.split("__")
        part = new if path else new["machine"]
        for step in path:
            part = part[step]
        part[last] = value
    return new


def written(folder, *results):
    for number, content in enumerate(results):
        text = content if isinstance(content, str) else json.dumps(content)
        path = folder / f"{number:04}" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return folder


def group_of(folder, *results, mix=()):
    """The only group of these results."""
    [group] = machines.groups(machines.read([written(folder, *results)]).entries, mix)
    return group


def said(folder, *results, mix=(), size=32):
    return lessons.topics(group_of(folder, *results, mix=mix), size)


def told(folder, capsys, *words):
    """Status and output of the command line on a folder."""
    status = command.main([str(folder), "--output", str(folder.parent / "made"), *words])
    done = capsys.readouterr()
    return status, done.out + done.err


def test_every_file_of_the_package_is_read():
    files = machines.read([ROOT / "results"])
    assert len(files.entries) == len(list((ROOT / "results").glob("*.json"))) > 4
    assert not files.left_out
    for entry in files.entries:
        assert ("capped" in entry.file) == bool(entry.result.machine.isa_cap), entry.file


def test_the_files_of_the_package_are_read_and_compared(tmp_path, capsys):
    status, out = told(written(tmp_path / "in", *REAL.values()), capsys, "--output", str(tmp_path))
    assert status == 0 and "Left out" not in out
    assert re.search(r"AMD EPYC, 2 cores  VNNI .* 27\.7 \(13\.9\) .* 104 \(52\.1\)", out)
    assert re.search(r"AVX2 only .* – .* 2\.42 \[2\.23 - 2\.58\] +no ", out)
    text = (tmp_path / "index.html").read_text()
    assert text.count("<img") == 6 and text.count('alt="Chart of') == 6 and "<script" not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert len(list(tmp_path.glob("*.png"))) == 6
    rows = list(csv.DictReader(open(tmp_path / "machines.csv")))
    [row] = [
        r for r in rows if (r["candidate"], r["batch_size"], r["vnni"]) == ("INT8", "32", "yes")
    ]
    assert float(row["per_core"]) == pytest.approx(104.232 / 2, rel=1e-4)
    assert row["per_instance"] == row["images_per_s"] and row["amx"] == "no"
    assert row["throughput_times"] == "3.78397" and row["coverage"] == ""  # schema 1 has none
    assert len(rows) == 3 * 3 + 3 * 2 + 2 * 3 + 2 * 2


def test_every_kind_of_cpu_has_a_name():
    flags = [AMX, ["avx512f", "avx512_vnni"], ["avx2", "avx_vnni"], ["avx512f"], ["avx2"], []]
    assert [kind_of(flags_) for flags_ in flags] == list(KINDS)


BROKEN = {
    "truncated": (json.dumps(ZEN4)[:900], "no whole JSON"),
    "empty": ("", "no whole JSON"),
    "text": ("Killed", "no whole JSON"),
    "list": ("[]", "no result"),
    "fields": ('{"schema": 1}', "it lacks model"),
    "string": (json.dumps(changed(ZEN4, settings__threads="2")), "settings.threads: "),
    "true": (json.dumps(changed(ZEN4, settings__threads=True)), "settings.threads: "),
    "nan": (json.dumps(changed(ZEN4, fps=float("nan"))), "throughput_fps: .*finite"),
    "infinite": (json.dumps(changed(ZEN4, fps=float("inf"))), "throughput_fps: .*finite"),
    "negative": (json.dumps(changed(ZEN4, fps=-1.0)), "throughput_fps: .*greater than 0"),
    "deep": ("[" * 100_000, "no whole JSON"),
    "newer": (json.dumps(ZEN4 | {"schema": 99}), "schema 99 is newer"),
    "huge": (json.dumps(ZEN4 | {"more": "x" * 2_100_000}), "it has 2 MB"),
    "binary": ("\udcff\udcfe", "no whole JSON"),
}  # fmt: skip
BROKEN["reversed"] = (
    json.dumps(
        ZEN4
        | {
            "ratios": [
                {
                    **ZEN4["ratios"][0],
                    "throughput_times": {"median": 2.0, "low": 3.0, "high": 4.0},
                }
            ]
        }
    ),
    "does not hold its median",
)


def test_broken_files_are_named_with_the_reason_and_cost_themselves_only(tmp_path, capsys):
    for name, (text, _) in BROKEN.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "result.json").write_text(text, errors="surrogateescape")
    (tmp_path / "in" / "folder" / "result.json").mkdir(parents=True)
    os.mkfifo(tmp_path / "in" / "pipe.json")
    (tmp_path / "in" / "settings.json").write_text('{"threads": 2}')  # what else lies in outputs/
    status, out = told(tmp_path / "in", capsys)
    assert status == 1 and "There is no result to compare" in out  # nothing could be read
    written(tmp_path / "in" / "good", ZEN4)
    status, out = told(tmp_path / "in", capsys)
    assert status == 0 and "1 result: 1 with VNNI" in out
    for name, (_, reason) in BROKEN.items():
        assert re.search(rf"^Left out: {name}/result.json: .*{reason}", out, re.M), name
    assert "Left out: folder/result.json: it is a folder" in out
    assert "Left out: pipe.json: it is no plain file" in out
    assert "settings.json" not in out and "no results: 1 files" in out
    assert out.count("Left out: ") == len(BROKEN) + 2
    assert (tmp_path / "made" / "index.html").read_text().count('<li class="failed">') == 17


def test_a_file_that_is_not_there_and_one_that_is_there_twice(tmp_path, capsys):
    folder = written(tmp_path / "in", ZEN4, ZEN4 | {"software": {"tensorflow": "2.15.1"}})
    known = machines.read([folder, folder / "0000" / "result.json", tmp_path / "none.json"])
    assert len(known.entries) == 1 and len(known.left_out) == 2
    assert "counted once" in known.left_out[0] and "no such file" in known.left_out[1]
    other = written(tmp_path / "other", ZEN3)  # of the same name, below another folder
    names = [entry.file for entry in machines.read([folder, other]).entries]
    assert len(set(names)) == 2


def test_environments_and_hidden_folders_are_not_searched(tmp_path):
    for name in (".hidden", "env"):
        written(tmp_path / name, ZEN4)
    (tmp_path / "env" / "pyvenv.cfg").touch()
    assert not machines.read([tmp_path]).entries


def test_names_from_elsewhere_harm_neither_page_nor_table_nor_spreadsheet(tmp_path, capsys):
    nasty = changed(
        ZEN4, cpu="=HYPERLINK(1) <script>alert(1)</script> $x_1$ \x1b[31m\n" + "y" * 900
    )
    written(tmp_path / "in", nasty, ZEN3)
    status, out = told(tmp_path / "in", capsys)
    assert status == 0 and "\x1b" not in out and "y" * 90 not in out
    assert "<script" not in (tmp_path / "made" / "index.html").read_text()
    rows = list(csv.DictReader(open(tmp_path / "made" / "machines.csv")))
    assert rows[0]["cpu"].startswith("'=HYPERLINK(1) <script>") and len(rows[0]["cpu"]) < 90


MIXTURES = [
    ("model", "other"),
    ("profile", "quick"),
    ("settings__threads", 8),
    *((f"software__{name}", "9.9") for name in ("tensorflow", "itex", "onednn", "commit")),
    ("machine__device", "XPU"),
    ("candidates", [c | {"layers": {"int8": 0, "all": 9}} for c in ZEN4["candidates"]]),
    ("candidates", [c | {"instances": 4} for c in ZEN4["candidates"]]),
]


@pytest.mark.parametrize(("field", "value"), MIXTURES, ids=lambda value: str(value)[:12])
def test_what_differs_in_more_than_the_machine_gets_a_group_of_its_own(field, value, tmp_path):
    other = changed(ZEN3, **{field: value}) if "__" in field else changed(ZEN3) | {field: value}
    entries = machines.read([written(tmp_path, ZEN4, other)]).entries
    assert len(entries) == 2 and len(machines.groups(entries)) == 2


def test_other_batch_sizes_are_never_in_one_table(tmp_path):
    other = changed(ZEN3)
    for candidate in other["candidates"]:
        candidate["batches"][1]["batch_size"] = 64
    for ratio in other["ratios"]:
        ratio["batch_size"] = {1: 1, 32: 64}[ratio["batch_size"]]
    group = group_of(tmp_path, ZEN4, other)
    assert [len(table.lines(group, size)) for size in group.sizes] == [2, 1, 1]


def test_mixed_only_on_request_and_said_so(tmp_path, capsys):
    folder = written(tmp_path / "in", ZEN4, changed(ZEN3, software__commit="abc"))
    _, out = told(folder, capsys)
    assert "They are in 2 groups" in out and "Mixed" not in out
    _, out = told(folder, capsys, "--mix", "commit")
    assert "groups" not in out and "Mixed, as asked for: package (f947b144f9c0: 1, abc: 1)" in out
    assert "Mixed, as asked for" in (tmp_path / "made" / "index.html").read_text()
    status, out = told(folder, capsys, "--mix", "model")
    assert status == 1 and "differ in 'model' are not mixed" in out


def test_choice_and_order(tmp_path, capsys):
    slow = changed(ZEN4, fps=0.1, times=1.1, cpu="A slow one")
    folder = written(tmp_path / "in", ZEN4, slow, *REAL.values())
    words = ["--model", "resnet50", "--batch-size", "32", "--candidate", "FP32", "INT8"]
    _, out = told(folder, capsys, *words)
    assert "alexnet" not in out and "BF16" not in out and "Batch 1:" not in out
    rows = [line for line in out.splitlines() if "cores  " in line]
    assert [row.split(",")[0] for row in rows] == ["AMD EPYC", "AMD EPYC", "A slow one"]
    _, out = told(folder, capsys, *words, "--sort", "ratio", "--top", "1")
    assert "\nA slow one" in out and "\nAMD" not in out and "and 2 machines more" in out
    _, out = told(folder, capsys, "--kind", "avx2")
    assert "cores  VNNI" not in out and "2 results: 2 with AVX2 only" in out
    for option in (["--model", "x"], ["--batch-size", "5"], ["--candidate", "FP8"]):
        status, out = told(folder, capsys, *option)
        assert status == 1 and "There are" in out


def test_the_headline_has_a_row_for_each_kind_measured_or_not(tmp_path):
    entries = machines.read([written(tmp_path / "real", ZEN4, ZEN3)]).entries
    head, rule, amx, vnni, avx2 = table.headline(entries, "resnet50").splitlines()
    assert amx == "| AMX | nobody yet: no file in results/ |  |  |  |  |  |"
    assert vnni.startswith(
        "| VNNI | AMD EPYC, 2 cores | 27.7 | 54.7 | 104 | 1.98 [1.97 - 1.99] | 3.78 ["
    )
    assert avx2 == "| AVX2 only | AMD EPYC, 2 cores | 17.3 | – | 41.3 | – | 2.42 [2.23 - 2.58] |"
    assert len({row.count("|") for row in (head, rule, amx, vnni, avx2)}) == 1
    more = [changed(ZEN4, times=2, isa=AMX), changed(ZEN4, isa=["avx2"], isa_cap="AVX2")]
    entries += machines.read([written(tmp_path, *more)]).entries
    rows = table.headline(entries, "resnet50").splitlines()
    assert "| AMX | AMD EPYC, 2 cores | 27.7 | 54.7 | 208 |" in rows[2] and len(rows) == 5
    xeon = changed(ZEN4, fps=2, cpu="Intel(R) Xeon(R) Processor", microarchitecture="Ice Lake")
    both = [tmp_path / "real", written(tmp_path / "xeon", xeon)]
    entries = machines.read(both).entries
    rows = table.headline(entries, "resnet50").splitlines()
    assert rows[3] == vnni and rows[4].startswith("| VNNI | Intel Xeon Ice Lake, 2 cores | 55.4 |")


def test_the_readme_has_the_headline_of_the_results_there_are():
    shown = (ROOT / "README.md").read_text().split("<!-- machines -->\n")[1]
    assert shown.startswith(f"{refresh.kinds_of_cpu()}\n<!-- /machines -->")
    entries = machines.chosen(machines.read([ROOT / "results"]).entries, ["resnet50"])
    assert machines.groups(entries, ("commit",))[0].sizes[-1] == 32, "as the README says"


def test_instances_and_cores_are_divided_by(tmp_path):
    busy = changed(ZEN4, settings__threads=4)  # two threads on each of two cores
    for candidate in busy["candidates"]:
        candidate["instances"] = 4
    group = group_of(tmp_path, busy)
    [entry] = group.entries
    row = next(row for row in table.records([entry]) if row["candidate"] == "INT8")
    assert row["per_core"] == row["images_per_s"] / 2 and entry.threads == 4
    assert row["per_instance"] == row["images_per_s"] / 4
    assert "INT8: 26.1 at batch 32" in table.instances_line(group)


def test_vnni_is_said_to_gain_more_where_the_files_show_it(tmp_path):
    here = said(tmp_path / "as it is", ZEN4, ZEN3)
    assert here["gains"] == [
        "At batch 32 INT8 gives 3.78 [3.71 - 3.82] times the throughput of FP32 on CPUs with VNNI "
        "(1 result); 2.42 [2.23 - 2.58] on CPUs with AVX2 only (1 result, not resolved "
        "to ±5 %)."
    ]
    more = [changed(result, fps=1.1) for result in (ZEN4, ZEN3)]
    [two] = said(tmp_path / "two", ZEN4, ZEN3, *more)["gains"]
    assert "with VNNI (2 results);" in two and "(2 results, not resolved to ±5 %)" in two
    sentences = here["vnni"]
    assert "can give 4; 95% of that is achieved" in sentences[0]
    assert "gains less, 2.42" in sentences[0]
    [same] = said(tmp_path / "same", ZEN4, changed(ZEN3, times=1.5))["vnni"]
    assert "do not show that it gains more" in same
    [less] = said(tmp_path / "less", ZEN4, changed(ZEN3, times=2))["vnni"]
    assert "CPUs without it gain more here, 4.85" in less
    [more] = said(tmp_path / "more", changed(ZEN4, times=1.3))["vnni"]
    assert "4.92 is more" in more and "without it" not in more.lower()
    assert not said(tmp_path / "none", ZEN3)["vnni"]


def test_a_single_odd_result_among_many_does_not_decide(tmp_path):
    odd, many = changed(ZEN4, times=0.5), [changed(ZEN4, fps=1 + n / 100) for n in range(11)]
    few = said(tmp_path / "few", odd, *many[:3], ZEN3)
    assert "do not show that it gains more" in few["vnni"][0]
    here = said(tmp_path / "many", odd, *many, ZEN3)
    assert "gains less, 2.42" in here["vnni"][0]
    assert "3.78 [3.71 - 3.82]" in here["gains"][0] and "the middle 80 %" in here["gains"][0]
    assert "their ratio by 1:" in here["travel"][0]


def test_of_amx_nothing_is_said_but_by_files_of_amx(tmp_path):
    entries = group_of(tmp_path / "without", ZEN4, ZEN3).entries
    assert not re.search(r"\d", lessons.missing_amx(entries))
    assert not said(tmp_path / "none", ZEN4, ZEN3)["amx"]
    fast = changed(ZEN4, times=2, isa=AMX)
    assert lessons.missing_amx(group_of(tmp_path / "one", fast).entries) is None
    [more] = said(tmp_path / "more", ZEN4, fast)["amx"]
    assert "AMX gains more than VNNI, 7.57 against 3.78" in more
    [less] = said(tmp_path / "less", ZEN4, changed(ZEN4, times=0.5, isa=AMX))["amx"]
    assert "AMX gains less than VNNI here, 1.89" in less
    [same] = said(tmp_path / "same", ZEN4, changed(ZEN4, isa=AMX))["amx"]
    assert "do not show that AMX gains more" in same
    capped = changed(fast, isa_cap="AVX512_CORE_AMX")
    assert not said(tmp_path / "cap", ZEN4, capped)["amx"]


def test_wider_vectors_and_cores(tmp_path):
    here = said(tmp_path / "as it is", ZEN4, ZEN3)
    assert "13.9 images/s per core with AVX-512 and 8.63 with AVX2 only" in here["wider"][0]
    assert "1.6 times. A vector of AVX-512 holds 16" in here["wider"][0]
    assert "it takes 2.52 cores of the second" in here["core"][0]
    fast = changed(ZEN3, fps=2)
    less = said(tmp_path / "less", ZEN4, fast)
    assert "0.802 times, so here the wider vectors do not decide" in less["wider"][0]
    same = said(tmp_path / "same", changed(ZEN4, fps=0.65), ZEN3)
    assert "do not show what wider vectors are worth" in same["wider"][0]
    equal = said(tmp_path / "equal", changed(ZEN4, fps=0.39), ZEN3)
    assert "a core is not shown to be worth more" in equal["core"][0]
    alone = said(tmp_path / "alone", ZEN4)
    assert not alone["wider"] and not alone["core"]


def test_what_further_cores_bring(tmp_path):
    def sentence(name, threads, physical, fps):
        facts = {"settings__threads": threads, "physical_cores": physical}
        few = changed(ZEN4, physical_cores=physical)
        entries = machines.read([written(tmp_path / name, few, changed(ZEN4, fps=fps, **facts))])
        return lessons.cores(machines.groups(entries.entries))

    [good] = sentence("good", 8, 8, 3.6)
    assert "8 threads do 3.6 times the images of 2, on 4 times the cores" in good
    assert "a core is worth 90% of what" in good
    assert "a second thread on a core brings 10%" in sentence("smt", 4, 2, 1.1)[0]
    assert "brings nothing" in sentence("smt none", 4, 2, 1.01)[0]
    assert "costs time" in sentence("smt less", 4, 2, 0.8)[0]
    assert sentence("same", 2, 2, 1.1) == []


def test_how_ratios_travel(tmp_path):
    one = said(tmp_path / "one", ZEN4, ZEN3)["travel"]
    assert (
        "their ratio by 1.56: it differs as far as FP32's speed and less than INT8's speed"
        in one[0]
    )
    assert "No two of these results are of one kind" in one[1]
    better = said(tmp_path / "better", ZEN4, changed(ZEN4, fps=2))["travel"]
    assert better == [
        "Between 2 results on CPUs with VNNI the throughput of FP32 at batch 32 differs by 2 "
        "times, that of INT8 by 2, their ratio by 1: it travels better than the times."
    ]
    worse = group_of(tmp_path / "worse", changed(ZEN4, fps=1.5), changed(ZEN4, times=2.25))
    found = lessons.spreads(worse.entries, worse, 32)
    assert [round(value, 3) for value in found.values()] == [1.5, 1.5, 2.25]
    assert "worse than the times" in lessons.topics(worse, 32)["travel"][0]
    assert drawing.travel_title({"x": found}) == (
        "Here ratios differ more between machines than times"
    )
    assert not said(tmp_path / "alone", ZEN4)["travel"][1:]
    assert drawing.draw_travel(group_of(tmp_path / "single", ZEN4), 32) is None


def test_a_cap_stands_apart_and_beside_the_real_cpu(tmp_path, capsys):
    capped = changed(
        ZEN4, fps=0.7, times=0.6, isa=["avx2"], isa_cap="AVX2", microarchitecture="Zen 4"
    )
    both = said(tmp_path / "both", ZEN3, capped)
    assert not both["core"]  # one real machine only
    [sentence] = both["caps"]
    assert sentence == (
        "AVX2 only by cap on AMD EPYC Zen 4 beside AVX2 only as it is on AMD EPYC, at batch 32, "
        "INT8: 2.27 against 2.42 times FP32 (-6%), 9.7 against 8.63 images/s of FP32 per core "
        "(+12%), 21.9 against 20.7 images/s of INT8 per core (+6%). The cap does not tell the "
        "ratio of the real CPU to within 5 %; the speeds are its own."
    )
    near = changed(capped, times=1.06)
    assert (
        "tells the ratio of the real CPU to within"
        in said(tmp_path / "near", ZEN3, near)["caps"][0]
    )
    assert not said(tmp_path / "alone", ZEN4, capped)["caps"]
    status, out = told(tmp_path / "both", capsys)
    assert status == 0 and "1 with AVX2 only, 1 with AVX2 only by cap" in out


def test_one_machine_with_and_without_a_cap(tmp_path):
    cap = {"isa": ["avx2"], "isa_cap": "AVX2"}
    [sentence] = said(tmp_path / "slower", ZEN4, changed(ZEN4, fps=0.5, **cap))["wider"]
    assert (
        "On one and the same AMD EPYC" in sentence and "2 times as fast with AVX-512." in sentence
    )
    [same] = said(tmp_path / "same", ZEN4, changed(ZEN4, **cap))["wider"]
    assert "is not shown to be faster with AVX-512" in same
    other = changed(ZEN4, fps=0.5, memory_gib=64.0, **cap)
    assert not said(tmp_path / "other", ZEN4, other)["wider"]


def test_without_ratios_or_int8_little_is_said_and_nothing_breaks(tmp_path, capsys):
    bare = changed(ZEN4) | {"ratios": [], "candidates": ZEN4["candidates"][:1]}
    folder = written(tmp_path / "in", bare)
    status, out = told(folder, capsys)
    assert status == 0 and "gives" not in out and " 27.7 (13.9)" in out


def test_a_thousand_results_in_seconds_with_figures_that_can_be_read(tmp_path, capsys):
    for number in range(1000):
        source = list(REAL.values())[number % 4]
        new = changed(source, 0.5 + number / 1000, 1 + number % 7 / 50, cpu=f"CPU {number % 50}")
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.json").write_text(json.dumps(new))
    start = time.process_time()
    status, out = told(tmp_path / "in", capsys, "--top", "5")
    assert time.process_time() - start < 10 and status == 0
    assert "1000 results: 500 with VNNI, 500 with AVX2 only" in out
    assert out.count("and 495 machines more") == 5  # a table for each batch size
    assert len(out.splitlines()) < 120
    group = machines.groups(machines.read([tmp_path / "in"]).entries)[0]
    figure, alt = drawing.draw(group, group.sizes[-1], "speed")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["VNNI\n250 results", "AVX2 only\n250 results"]  # a row per kind
    assert "and 488 more" in alt and figure.get_size_inches()[1] < 8
    assert out.count("it travels better than the times") == 6


def test_up_to_a_dozen_machines_have_a_bar_each_in_the_colours_of_all_figures(tmp_path):
    group = group_of(tmp_path, ZEN4, ZEN3, *(changed(ZEN4, fps=1 + n / 10) for n in range(1, 5)))
    figure, _ = drawing.draw(group, 32, "speed")
    [axes] = figure.axes
    assert len(axes.get_yticklabels()) == 6 and len(axes.patches) == 3 * 5 + 2
    assert figure.get_suptitle().startswith("INT8 does 125 images/s with VNNI, 41.3 with AVX2")
    cores = group_of(tmp_path / "cores", ZEN4, changed(ZEN3, settings__threads=1), mix=["threads"])
    figure, _ = drawing.draw(cores, 32, "speed")
    assert "per core" in figure.axes[0].get_xlabel()


def test_figures_of_the_largest_groups_only(tmp_path):
    many = [changed(ZEN4, software__commit=f"abc{n}") for n in range(6)]
    groups = machines.groups(machines.read([written(tmp_path, *many)]).entries)
    sections = list(page.sections(groups))
    assert [bool(section["figures"]) for section in sections] == [True] * page.DRAWN + [False] * 2
    assert all(section["tables"] for section in sections)


# --- a result of one's own for results/


@pytest.fixture
def mine():
    """A full result of this machine and commit, resolved, in today's form."""
    here, now = machine.describe(), machine.software()
    new = copy.deepcopy(ZEN4) | {"schema": 2, "failed": {}, "created": machine.now()}
    new["machine"] = here | {"device": "CPU"}
    new["software"] = now | {"onednn": "3.3.0", "commit": "0123456789ab"}
    new["noise"] |= {"resolved": 4, "ratios": 4}
    new["settings"] |= {"min_rounds": 7, "max_rounds": 200, "limit": 240.0}
    if not machine.has_bf16():
        new["candidates"] = [c for c in new["candidates"] if c["name"] != "BF16"]
        new["ratios"] = [r for r in new["ratios"] if r["candidate"] != "BF16"]
    kinds = {"FP32": "f32", "BF16": "bf16", "INT8": "s8"}
    for candidate in new["candidates"]:
        candidate |= {
            "sha256": "0" * 64, "environment": {"OMP_NUM_THREADS": "2"}, "instances": 1,
            "kernels": {kinds[candidate["name"]]: {"count": 54, "share": 1.0}},
            "kernels_source": "oneDNN's log", "variants": [],
        }  # fmt: skip
        for batch in candidate["batches"]:
            batch |= {"rounds": 12, "best_fps": 2 * batch["throughput_fps"]}
    for ratio in new["ratios"]:
        for key in ("throughput_times", "latency_times"):
            middle = ratio[key]["median"]
            ratio[key] |= {"low": 0.97 * middle, "high": 1.03 * middle, "coverage": 0.95}
        ratio |= {"verdict": "faster", "group": 0, "resolved": True}
    return new


def lacking(result):
    software = machine.software() | {"commit": "0123456789ab"}
    return sharing.lacking(result, machine.describe(), software)


def test_a_whole_resolved_result_is_fit(mine):
    assert lacking(mine) == []


def without(result, name):
    result["candidates"] = [c for c in result["candidates"] if c["name"] != name]
    result["ratios"] = [r for r in result["ratios"] if r["candidate"] != name]


def widen(result):
    result["ratios"][-1]["latency_times"]["high"] *= 2


LACKING = {
    "quick settings": lambda r: r.update(profile="quick"),
    "schema 1": lambda r: r.update(schema=1),
    "its model is mine": lambda r: r.update(model="mine"),
    "not of this machine as it is now .cpu": lambda r: r["machine"].update(cpu="another"),
    "isa_cap differ": lambda r: r["machine"].update(isa_cap="AVX2"),
    "of commit abcdef0": lambda r: r["software"].update(commit="abcdef0"),
    "other versions .itex.": lambda r: r["software"].update(itex="1.0"),
    "which oneDNN": lambda r: r["software"].update(onednn=None),
    "did not run on the CPU": lambda r: r["machine"].update(device="XPU"),
    "INT8 was not measured": lambda r: without(r, "INT8"),
    "INT8 was not measured at batch 1": lambda r: r["candidates"][-1]["batches"].pop(0),
    "ratio of INT8 is missing at batch 32": lambda r: r["ratios"].pop(),
    "INT8 at batch 32.: measure at a quieter hour": widen,
    "BF16 was left out": lambda r: r["failed"].update(BF16="crashed"),
    "no whole result": lambda r: r.pop("settings"),
}


@pytest.mark.parametrize("sentence", LACKING)
def test_what_is_lacking_is_said(sentence, mine):
    LACKING[sentence](mine)
    reasons = lacking(mine)
    assert any(re.search(sentence, reason) for reason in reasons), reasons


def test_nothing_is_no_result(mine):
    assert "no whole result" in lacking(None)[0]


PLANTED = "anna on host7 in /home/anna"


def plant(value):
    """The value with a name planted into every dict: as a key, and as what it says where it may."""
    if isinstance(value, dict):
        first = next(iter(value.values()), None)
        more = {PLANTED: first if isinstance(first, dict) else PLANTED}
        return {key: plant(part) for key, part in value.items()} | more
    if isinstance(value, list):
        return [plant(part) for part in value]
    return value


def texts(value, path=()):
    """(path, text) of every text in a result."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(part, (dict, list)):
            yield from texts(part, (*path, key))
        elif isinstance(part, str):
            yield (*path, key), part


def test_no_name_of_a_person_host_or_folder_gets_through(mine):
    """Planted as fields that are too many, and at the end of every text there is, one by one."""
    clean = sharing.anonymous(plant(mine))
    assert not re.search("anna|host7|home", json.dumps(clean))
    assert clean["machine"]["cpu"] == mine["machine"]["cpu"] and clean["ratios"] == mine["ratios"]
    assert set(clean) == set(Result.__annotations__)
    refused, let = set(), set()
    for path, text in texts(mine):
        for planted in (f"{text} {PLANTED}", f"{PLANTED}/{text}"):
            named = copy.deepcopy(mine)
            part = named
            for step in path[:-1]:
                part = part[step]
            part[path[-1]] = planted
            try:
                found = json.dumps(sharing.anonymous(named))
                assert not re.search("anna|host7|home", found), path
                let.add(path[-1])
            except UserError as error:
                assert PLANTED not in str(error)
                refused.add(path[-1])
    assert {"weights", "data", "graph", "os"} <= let and {"cpu", "model", "sha256"} <= refused


def test_a_cap_is_in_the_name_of_the_file(mine):
    mine["machine"] |= {"cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "isa": AMX}
    mine["machine"]["microarchitecture"] = None
    name = "intel-xeon-platinum-8481c-amx-2-cores_resnet50.json"
    assert sharing.file_name(mine) == name
    mine["machine"] |= {"isa": ["avx2"], "isa_cap": "AVX2"}
    assert sharing.file_name(mine) == name.replace("amx", "avx2-capped-avx2")
    assert [sharing.file_name(result) for result in (ZEN4, ZEN3)] == [
        "amd-epyc-vnni-2-cores_resnet50.json",  # schema 1 does not name the design
        "amd-epyc-avx2-2-cores_resnet50.json",
    ]


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """(folder for results, output folder, a list of the runner's calls) of a clean checkout."""
    monkeypatch.setattr(contribute, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(contribute, "ROOT", tmp_path)
    software = machine.software() | {"commit": "0123456789ab"}
    monkeypatch.setattr(machine, "software", lambda: dict(software))
    return tmp_path / "results", tmp_path / "out"


def contributed(output, *words, makes=None, calls=None):
    """The status of --contribute; a run of the notebooks writes the result `makes`."""

    def run_notebooks(arguments):
        calls is not None and calls.append(arguments)
        if makes:
            (output / "resnet50").mkdir(parents=True, exist_ok=True)
            (output / "resnet50" / "result.json").write_text(json.dumps(makes))
        return 0 if makes else 1

    options = cli.parse(["--contribute", "--output", str(output), *words])
    stems = [path.stem for path in cli.notebooks(options.words)]
    return contribute.run(options, stems, run_notebooks)


def test_contribute_measures_writes_and_takes_what_is_there(shared, mine, capsys):
    results, output = shared
    calls = []
    words = ["resnet50", "-p", "limit", "600"]
    assert contributed(output, *words, makes=mine, calls=calls) == 0
    assert calls == [["05_benchmark_resnet50", "--output", str(output), "-p", "limit", "600"]]
    [path] = results.iterdir()
    assert path.name.endswith(f"{mine['settings']['threads']}-cores_resnet50.json")
    assert len(machines.read([results]).entries) == 1
    assert str(path) in capsys.readouterr().out
    assert contributed(output, "resnet50", calls=calls) == 0 and len(calls) == 1  # it is there
    assert "there already" in capsys.readouterr().out
    mine["created"] = "2027-01-01T00:00:00Z"  # another machine of the kind, or another day
    (output / "resnet50" / "result.json").write_text(json.dumps(mine))
    assert contributed(output, "resnet50") == 0
    assert sorted(p.name for p in results.iterdir())[1].endswith("_resnet50_2.json")


def test_contribute_says_what_is_lacking_and_writes_nothing(shared, mine, capsys):
    results, output = shared
    widen(mine)
    assert contributed(output, "resnet50", makes=mine) == 1
    out = capsys.readouterr().out
    assert "is not fit for it:" in out and "1 of " in out and not results.exists()
    assert contributed(output, "resnet50") == 1  # the run itself failed
    assert "is not taken: 1 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "commit", "sentence"),
    [
        (["--quick"], "0123456789ab", "Leave out --quick"),
        (["01", "07"], "0123456789ab", "01_check_machine, 07_inside_int8 measures a network"),
        ([], "0123456789ab+", "files of the package are changed here"),
        ([], None, "no git checkout"),
    ],
    ids=["quick", "words", "changed", "no git"],
)
def test_contribute_refuses_before_it_measures(
    words, commit, sentence, shared, capsys, monkeypatch
):
    monkeypatch.setattr(machine, "software", lambda: {"commit": commit})
    calls = []
    assert contributed(shared[1], *words, calls=calls) == 1 and not calls
    assert sentence in capsys.readouterr().out


def test_the_command_hands_over_to_contribute(monkeypatch):
    calls = []
    monkeypatch.setattr(contribute, "run", lambda *given: calls.append(given) or 7)
    assert cli.main(["--contribute", "05"]) == 7
    assert calls[0][1:] == (["05_benchmark_resnet50"], cli.main)
