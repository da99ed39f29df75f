"""The matrix of tests/every_cpu.sh, with a run_all.sh and a comparison that end as told."""

import os
import subprocess

import every_cpu
import pytest


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """{(notebook, cap): what is to go wrong}, and after the runs in which order they came."""
    wrong, came = {}, []

    def run(command, env, stdout, stderr):
        stem, cap = command[-1], env.get("ONEDNN_MAX_CPU_ISA", "none")
        came.append((cap, stem))
        assert env["RESNET50_URL"].endswith(":9") and "--quick" in command
        stdout.write(f"log of {stem}\n")
        return subprocess.CompletedProcess(command, wrong.get((stem[:2], cap)) == "fails")

    def replayed(notebook, executed, folder):
        cap = executed.parents[1].name
        differs = wrong.get((notebook.stem[:2], cap)) == "differs"
        return subprocess.CompletedProcess([], differs, f"nbval of {executed.stem}\n", "")

    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX")  # of the caller, which must not count
    monkeypatch.setattr(every_cpu.subprocess, "run", run)
    monkeypatch.setattr(every_cpu, "replayed", replayed)
    monkeypatch.setattr(every_cpu.machine, "describe", lambda: {})
    monkeypatch.setattr(every_cpu.machine, "summary", lambda described: "2 cores of a CPU")
    return wrong, came


def rows_of(printed):
    lines = printed.partition("by ONEDNN_MAX_CPU_ISA")[2].splitlines()[1:]
    return [line.split("  ") for line in lines]


def test_all_that_pass(runs, tmp_path, capsys):
    words = ["--output", str(tmp_path), "--cap", "none", "--cap", "AVX2", "06", "01"]
    assert every_cpu.main(words) == 0
    books = ["01_check_machine", "06_tune_inference"]
    assert runs[1] == [(cap, book) for cap in ("none", "AVX2") for book in books]
    printed = capsys.readouterr().out
    head, first, second, end = rows_of(printed)
    assert head[0] == "notebook" and head[-1].strip() == "AVX2"
    assert (first[0].strip(), second[0].strip()) == tuple(books) and end == ["All passed."]
    assert first[-1].strip() == "0 s" and "2 cores of a CPU" in printed
    assert (tmp_path / "AVX2" / "06_tune_inference.log").read_text() == (
        "log of 06_tune_inference\nnbval of 06_tune_inference\n"
    )


@pytest.mark.parametrize(("what", "word"), [("fails", "FAILED, 0 s"), ("differs", "DIFFERS, 0 s")])
def test_it_goes_on_after_a_failure_and_ends_with_it(what, word, runs, tmp_path, capsys):
    wrong, came = runs
    wrong["01", "AVX2"] = what
    assert every_cpu.main(["--output", str(tmp_path), "01", "02"]) == 1
    assert len(came) == 2 * len(every_cpu.CAPS)
    printed = capsys.readouterr().out
    first = rows_of(printed)[1]
    assert [cell.strip() for cell in first if cell.strip()].count(word) == 1
    assert "1 of 10 failed." in printed and "log of 01_check_machine" in printed


def test_a_cap_that_changes_nothing_may_be_left_out(runs, tmp_path, capsys, monkeypatch):
    """On a CPU with AVX-512 and VNNI: what BF16 caps is not there, and AVX2 is less."""
    has = {"AVX2": ["avx2"], "AVX512_CORE": ["avx512f"]}
    monkeypatch.setattr(
        every_cpu.machine, "isa_flags", lambda: has.get(os.environ.get("ONEDNN_MAX_CPU_ISA"), ["x"])
    )
    words = ["--output", str(tmp_path), "--distinct", "--cap", "AVX2", "--cap", "AVX512_CORE"]
    assert every_cpu.main([*words, "--cap", "AVX512_CORE_BF16", "01"]) == 0
    assert [cap for cap, _ in runs[1]] == ["AVX2", "AVX512_CORE"]
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX"
    _, row, end = rows_of(capsys.readouterr().out)
    assert row[-1].strip() == "as none" and end == ["All passed."]


def test_a_word_without_a_notebook_is_refused(capsys):
    with pytest.raises(SystemExit):
        every_cpu.main(["nonsense"])
    assert "no notebook has 'nonsense'" in capsys.readouterr().err
    assert os.access(every_cpu.ROOT / "tests" / "every_cpu.sh", os.X_OK)
