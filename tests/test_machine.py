import os
import subprocess
import sys

import pytest

from helpers import machine

XEON = (
    "processor : 0\nmodel name : Test\nflags : fpu avx2 avx512f avx512_vnni avx512_bf16 amx_int8\n"
)


@pytest.fixture
def xeon(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(XEON)
    return path


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        ("", ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"]),
        ("AVX512_CORE_VNNI", ["avx2", "avx512f", "avx512_vnni"]),
        ("avx512_core", ["avx2", "avx512f"]),
        ("AVX2", ["avx2"]),
        ("AVX512_CORE_AMX", ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"]),
    ],
)
def test_isa_flags_follow_the_onednn_cap(xeon, monkeypatch, cap, expected):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert machine.isa_flags(xeon) == expected


def test_this_cpu_is_reported_as_the_kernel_does(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True).stdout.split()
    assert machine.isa_flags() == [flag for flag in machine.ISA_FLAGS if flag in lscpu]


def test_expectation_differs_by_instruction_set(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.int8_level() == "none" and not machine.has_bf16()
    assert "neither DL Boost nor AMX" in machine.expectation()


def usable(**environment):
    code = "from helpers import machine; print(machine.usable_cores())"
    done = subprocess.run(
        ["taskset", "-c", "0", sys.executable, "-c", code]
        if environment.pop("pin", False)
        else [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ".", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_usable_cores_follow_affinity_and_the_batch_job():
    assert usable(pin=True) == 1
    assert usable(SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="1") == 1
    assert usable(SLURM_JOB_ID="7", SLURM_CPUS_ON_NODE="1") == 1  # a job without --cpus-per-task
    assert usable(PBS_JOBID="7", NCPUS="1") == 1
    assert usable(SLURM_CPUS_PER_TASK="0", SLURM_CPUS_ON_NODE="0") == usable()


def test_hyper_threads_count_once(monkeypatch, tmp_path):
    real = machine.Path

    def fake(path):
        text = str(path)
        if text.endswith("thread_siblings_list"):
            cpu = int(text.split("/cpu")[-1].split("/")[0])
            file = tmp_path / str(cpu)
            file.write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
            return real(file)
        return real(path)

    monkeypatch.setattr(machine, "Path", fake)
    assert machine._physical(range(4)) == 2


def test_description_is_complete():
    here = machine.describe()
    assert 1 <= here["usable_cores"] <= here["physical_cores"] <= here["logical_cores"]
    assert here["memory_gib"] > 0.5 and here["cpu"]
    assert here["cpu"] in machine.summary(here)
    versions = machine.software()
    assert versions["tensorflow"] == "2.15.1" and versions["itex"] == "2.15.0.0"


def test_importing_helpers_does_not_import_tensorflow():
    code = (
        "import sys; from helpers import benchmark, download, graphs, quantization, report; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=".").returncode == 0


def test_intel_gpus_are_told_from_others(tmp_path):
    assert machine.intel_gpus(tmp_path) == []
    for node, vendor in (("renderD128", "0x8086"), ("renderD129", "0x10de")):
        for path in (f"dev/dri/{node}", f"sys/class/drm/{node}/device/vendor"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(vendor + "\n")
    assert machine.intel_gpus(tmp_path) == ["renderD128"]


def test_a_gpu_is_named_where_it_ran():
    here = {**machine.describe(), "device": "XPU", "gpus": ["renderD128"]}
    assert machine.summary(here).startswith("Intel GPU (renderD128)")
