"""tests/zoo.sh: small families through the command, and its page of runs that end as told."""

import os

import pytest
import zoo

SHAPE = (96, 96, 3)


@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small", "RegNetX002"])
def test_a_family_runs_in_int8(name, tmp_path):
    """All of it, but for the grouped convolutions of RegNet, which end a process in oneDNN."""
    model = zoo.make(name, tmp_path / f"{name}.keras", SHAPE)
    end = zoo.quantize(model, tmp_path / "out", 2)
    assert "result" in end and not {"failed", "refused"} & end.keys(), end["log"][-3000:]
    grouped = [row for row in end["layers"] if "grouped" in (row["why"] or "")]
    assert len(grouped) == (13 if name == "RegNetX002" else 0)
    end["layers"] = [row for row in end["layers"] if row not in grouped]
    assert zoo.share(end) >= zoo.ENOUGH, end["log"][-3000:]
    assert end["result"]["agreement"]["INT8"]["sqnr_db"] > 5, "the weights are those of chaos"
    assert zoo.row_of(name, end)[:2] == [name, f"{len(end['layers'])} of {len(end['layers'])}"]


def done(int8=20, of=20, resolved=True):
    """What `zoo.quantize` gives of a command that has done all."""
    times = {"candidate": "INT8", "baseline": "FP32", "throughput_times": {"median": 2.0}}
    ratios = [{**times, "batch_size": size, "resolved": resolved} for size in (1, 32)]
    result = {"ratios": ratios, "agreement": {"INT8": {"sqnr_db": 20.0}}}
    rows = [{"int8": index < int8} for index in range(of)]
    return {"seconds": 60.0, "log": "", "result": result, "layers": rows}


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """What each family is to end as, {name: end}, and how to call main: its status."""
    ends = dict.fromkeys(zoo.FAMILIES, done())

    def make(name, path, shape=None):
        path.write_text("model")
        return path

    monkeypatch.setattr(zoo, "make", make)
    monkeypatch.setattr(zoo, "quantize", lambda model, output, *_: ends[output.name])
    where = ["--document", str(tmp_path / "page.md"), "--output", str(tmp_path)]
    return ends, lambda *words: zoo.main([*words, *where])


def test_the_page_has_a_row_for_each(runs, tmp_path, capsys):
    ends, main = runs
    ends["VGG16"] = {"seconds": 9.0, "log": "", "refused": "It has loops | and more."}
    ends["Xception"] = done(resolved=False)
    assert main() == 0, "what is refused in a sentence is no failure"
    text = (tmp_path / "page.md").read_text()
    assert list(zoo.rows_in(tmp_path / "page.md")) == zoo.FAMILIES
    assert "| MobileNet | 20 of 20 | 2.00 | 2.00 | – | – | – | 20.0 dB | 60 s |" in text
    assert "| VGG16 | It has loops / and more. | – |" in text
    assert "| Xception | 20 of 20 | ~2.00 |" in text
    assert "All as they should be." in capsys.readouterr().out
    assert not (tmp_path / "MobileNet" / "MobileNet.keras").exists()


def test_names_renew_their_rows_only_and_are_judged(runs, tmp_path):
    ends, main = runs
    assert main("VGG16") == 0 and "Not run here" in (tmp_path / "page.md").read_text()
    main()
    assert "Not run here" not in (tmp_path / "page.md").read_text()
    ends["MobileNet"] = done(int8=18)
    ends["ResNet50"] = done(int8=19)
    assert main("MobileNet", "ResNet50") == 1 and main("ResNet50") == 0
    rows = zoo.rows_in(tmp_path / "page.md")
    assert len(rows) == len(zoo.FAMILIES)
    assert [rows[name][1] for name in ("MobileNet", "ResNet50", "VGG16")] == [
        *("18 of 20", "19 of 20", "20 of 20")
    ]
    assert main() == 0 and main("--check") == 1


def test_each_machine_has_a_section_of_its_own(runs, tmp_path, monkeypatch):
    main, document, own = runs[1], tmp_path / "page.md", zoo.machine.summary
    main("VGG16")
    first = zoo.sections(document)
    monkeypatch.setattr(zoo.machine, "summary", lambda _: "2 cores of another (AMX)")
    assert not zoo.rows_in(document)
    main("MobileNet")
    assert list(zoo.rows_in(document)) == ["MobileNet"]
    assert list(zoo.sections(document)) == [*first, "2 cores of another (AMX)"]
    monkeypatch.setattr(zoo.machine, "summary", own)
    assert list(zoo.rows_in(document)) == ["VGG16"]
    kept = document.read_text()
    main("VGG16")
    assert document.read_text() == kept, "what is written again is as it was"


def test_the_second_table_is_kept_beside_the_first(runs, tmp_path, monkeypatch):
    main = runs[1]
    document, name = tmp_path / "page.md", "INT8, TensorFlow 2.21"
    result = {
        "candidates": [{"name": name, "kernels": {"s8": {"count": 19}, "f32": {"count": 1}}}],
        "agreement": {name: {"sqnr_db": 21.0}, "INT8": {"sqnr_db": 20.0}},
        "ratios": [
            {
                **{"candidate": one, "baseline": base, "batch_size": 32, "resolved": True},
                "throughput_times": {"median": times, "low": 0.9 * times, "high": 1.1 * times},
            }
            for one, base, times in (
                (name, "FP32", 3.0),
                ("INT8", name, 0.9),
                ("LiteRT INT8", "FP32", 4.0),
            )
        ],
    }
    monkeypatch.setattr(zoo, "current_absent", lambda: None)
    monkeypatch.setattr(
        zoo,
        "in_own_operations",
        lambda models, limit, peers: {"result": result, "name": name, "beside_peers": peers},
    )
    assert main("VGG16", "--current") == 0 and main("MobileNet") == 0
    row = "| VGG16 | 19 of 20 | – | 3.00 | – | 0.90 | 21.0 dB | 20.0 dB |"
    assert row in document.read_text()
    assert list(zoo.rows_in(document)) == ["MobileNet", "VGG16"]
    assert list(zoo.rows_in(document, zoo.OWN_COLUMNS)) == ["VGG16"]
    assert not zoo.rows_in(document, zoo.ALL_COLUMNS) and zoo.ALL_HEAD not in document.read_text()
    assert main("VGG16", "--current", "--peers") == 0 and main("MobileNet") == 0
    together = zoo.rows_in(document, zoo.ALL_COLUMNS)
    assert list(together) == ["VGG16, 1", "VGG16, 32"] and set(together["VGG16, 1"][1:]) == {"–"}
    assert together["VGG16, 32"][1:] == ["–", "3.00 [2.70 – 3.30]", "–", "–", "4.00 [3.60 – 4.40]"]
    monkeypatch.setattr(zoo, "in_own_operations", lambda *_: {"failed": "it ended"})
    assert main("VGG16", "--current") == 1 and "| VGG16 | FAILED: it ended" in document.read_text()


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("raise ValueError", "FAILED: it ended with status 1"),
        ("import os; os.abort()", "FAILED: it was ended by signal SIGABRT"),
        ("import time; time.sleep(60)", "FAILED: no end after 2 s"),
        (
            "import sys; sys.exit('error: It has loops.\\nGive another.')",
            "It has loops. Give another.",
        ),
    ],
)
def test_how_a_command_ends_is_told_apart(code, word, monkeypatch, tmp_path):
    run = zoo.subprocess.run
    monkeypatch.setattr(
        zoo.subprocess, "run", lambda words, **how: run([words[0], "-c", code], **how)
    )
    row = zoo.row_of("VGG16", zoo.quantize("model", tmp_path / "out", 1, timeout=2))
    assert row[1] == word and len(row) == len(zoo.COLUMNS)


def test_a_model_that_is_not_made_does_not_end_the_others(runs, tmp_path, monkeypatch):
    make = zoo.make

    def fails(name, path):
        if name == "VGG16":
            raise RuntimeError("out of memory")
        return make(name, path)

    monkeypatch.setattr(zoo, "make", fails)
    assert runs[1]() == 1
    rows = zoo.rows_in(tmp_path / "page.md")
    assert len(rows) == len(zoo.FAMILIES) and rows["VGG16"][1].startswith("FAILED")


def test_a_name_of_no_family_is_refused(capsys):
    with pytest.raises(SystemExit):
        zoo.main(["LeNet"])
    assert "'LeNet' is none of MobileNet" in capsys.readouterr().err
    assert os.access(zoo.ROOT / "tests" / "zoo.sh", os.X_OK)


@pytest.mark.parametrize(
    ("columns", "least"), [(zoo.COLUMNS, 12), (zoo.OWN_COLUMNS, 3), (zoo.ALL_COLUMNS, 6)]
)
def test_the_page_in_docs_is_of_these_networks(columns, least):
    """In every section; in one of them there are so many."""
    counts, order = [], [(name, size) for name in zoo.FAMILIES for size in ("", "1", "32")]
    for text in zoo.sections(zoo.DOCUMENT).values():
        rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
        rows = [row for row in rows if len(row) == len(columns)]
        assert not rows or rows[0] == list(columns), "the page has another head than the code"
        names = [tuple(row[0].replace(", ", ",").partition(",")[::2]) for row in rows[2:]]
        assert names == [name for name in order if name in names]
        counts.append(len(names))
    assert max(counts) >= least
    assert "FAILED" not in zoo.DOCUMENT.read_text()
