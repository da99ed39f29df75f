import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbclient
import nbformat
import psutil
import pytest
from conftest import ROOT, needs

from helpers import UserError, machine, topology

AVX2 = "fpu avx2"
VNNI = f"{AVX2} avx512f avx512_vnni avx512_bf16"
AMX = f"{VNNI} avx_vnni avx512_fp16 amx_tile amx_int8 amx_bf16"
# cpuinfo of real processors: the vendor, family, model and name as virtual machines show them
CPUS = {
    "Zen 3": ("AuthenticAMD", 25, 1, "AMD EPYC", AVX2),
    "Zen 4": ("AuthenticAMD", 25, 17, "AMD EPYC", VNNI),
    "Xeon": ("GenuineIntel", 6, 143, "Intel(R) Xeon(R) Processor", AMX),
    "Skylake": ("GenuineIntel", 6, 85, "Intel(R) Xeon(R) Processor", f"{AVX2} avx512f"),
}
GIB = 2**30


@pytest.fixture(autouse=True)
def outside_of_jobs_and_caps(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PBS_")) or name.endswith("_MAX_CPU_ISA"):
            monkeypatch.delenv(name)


def cpuinfo(folder, name):
    vendor, family, model, title, flags = CPUS[name]
    fields = {"processor": 0, "vendor_id": vendor, "cpu family": family, "model": model}
    fields |= {"model name": title, "stepping": 4, "flags": flags}
    path = folder / "cpuinfo"
    path.write_text("".join(f"{field}\t: {value}\n" for field, value in fields.items()))
    return path


def plant(root, **files):
    """Write files below `root`: a name with __ for / and its text."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


# --- instruction sets ---


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        ("", AMX),
        ("SSE41", ""),
        ("AVX2", "avx2"),
        ("AVX2_VNNI", "avx2 avx_vnni"),
        ("avx512_core", "avx2 avx512f"),
        ("AVX512_CORE_VNNI", "avx2 avx512f avx512_vnni"),
        ("AVX512_CORE_BF16", "avx2 avx512f avx512_vnni avx512_bf16"),
        ("AVX512_CORE_FP16", "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16"),
        ("AVX512_CORE_AMX", AMX),
        ("AVX512_CORE_AMX_FP16", AMX),
        ("ALL", AMX),
        ("DEFAULT", AMX),
        ("AVX10_1_512", AMX),  # not known to oneDNN 3.3
        ("AVX3", AMX),
    ],
)
def test_isa_flags_follow_the_onednn_cap(tmp_path, monkeypatch, cap, expected):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert set(machine.isa_flags(cpuinfo(tmp_path, "Xeon"))) == set(expected.split()) - {"fpu"}
    known = cap.upper() if cap not in ("", "ALL", "DEFAULT", "AVX10_1_512", "AVX3") else None
    assert machine.isa_cap() == machine.describe()["isa_cap"] == known


def test_the_older_name_of_the_cap_counts_where_the_other_is_empty(monkeypatch):
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX")
    assert machine.isa_cap() == "AVX"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")
    assert machine.isa_cap() == "AVX"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.isa_cap() == "AVX2"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    assert machine.isa_cap() is None


# dnnl_cpu_isa_t of dnnl_types.h: its bits, and the flag whose presence each stands for
ISA_BITS = {
    0x4: "avx2",
    0x8: "avx_vnni",
    0x20: "avx512f",
    0x40: "avx512_vnni",
    0x80: "avx512_bf16",
    0x100: "avx512_fp16",
    0x400: "amx_int8",
    0x800: "amx_bf16",
}


@pytest.mark.parametrize("cap", ["", "nonsense", "DEFAULT", *machine._ISA_CAPS])
def test_onednn_itself_takes_the_cap_so(cap):
    """The library of ITEX says which instructions it will use, on this CPU and under each cap."""
    code = (
        "import ctypes, json, sys; from helpers import machine;"
        "isa = ctypes.CDLL(sys.argv[1]).dnnl_get_effective_cpu_isa();"
        "print(json.dumps([isa, machine.isa_flags()]))"
    )
    isa, flags = json.loads(child(code, onednn(), ONEDNN_MAX_CPU_ISA=cap))
    said = {flag for bit, flag in ISA_BITS.items() if isa & bit}
    # oneDNN names the highest step that it reaches as a whole, not the single flags beside it
    assert said <= set(flags)
    assert machine.int8_level(said) == machine.int8_level(flags)
    assert machine.has_bf16(said) == machine.has_bf16(flags)
    assert ("avx2" in said) == ("avx2" in flags) and ("avx512f" in said) == ("avx512f" in flags)


def test_this_cpu_is_reported_as_the_kernel_does():
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True).stdout.split()
    assert machine.isa_flags() == [flag for flag in machine.ISA_FLAGS if flag in lscpu]


@pytest.mark.parametrize(
    ("cpu", "cap", "has"),
    [
        ("Zen 3", "", False),
        ("Zen 3", "AVX512_CORE_BF16", False),  # a cap adds nothing
        ("Zen 4", "", True),
        ("Zen 4", "AVX512_CORE_BF16", True),
        ("Zen 4", "AVX512_CORE_VNNI", False),
        ("Zen 4", "AVX2", False),
        ("Xeon", "AVX512_CORE_BF16", True),
        ("Xeon", "AVX2_VNNI", False),
        ("Skylake", "", False),
    ],
)
def test_bf16_needs_both_the_cpu_and_the_cap(tmp_path, monkeypatch, cpu, cap, has):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    info = machine._cpuinfo(cpuinfo(tmp_path, cpu))
    monkeypatch.setattr(machine, "_cpuinfo", lambda _: info)
    assert machine.has_bf16() is has


@pytest.mark.parametrize(
    ("family", "model", "name"),
    [
        (23, 0x01, "Zen"),
        (23, 0x31, "Zen 2"),
        (23, 0x71, "Zen 2"),
        (25, 0x01, "Zen 3"),
        (25, 0x0F, "Zen 3"),
        (25, 0x10, "Zen 4"),
        (25, 0x21, "Zen 3"),
        (25, 0x50, "Zen 3"),
        (25, 0x61, "Zen 4"),
        (25, 0xA0, "Zen 4"),
        (26, 0x02, "Zen 5"),
        (26, 0x44, "Zen 5"),
        (26, 0x50, None),  # later than this list
        (21, 0x02, None),
    ],
)
def test_amd_is_named_by_its_design(tmp_path, monkeypatch, family, model, name):
    monkeypatch.setitem(CPUS, "AMD", ("AuthenticAMD", family, model, "AMD EPYC", AVX2))
    assert machine.microarchitecture(cpuinfo(tmp_path, "AMD")) == name


@pytest.mark.parametrize(
    ("model", "stepping", "name"),
    [
        (0x4F, 1, "Broadwell"),
        (0x55, 4, "Skylake"),
        (0x55, 7, "Cascade Lake"),
        (0x55, 11, "Cooper Lake"),
        (0x6A, 6, "Ice Lake"),
        (0x8F, 8, "Sapphire Rapids"),
        (0xCF, 2, "Emerald Rapids"),
        (0xAD, 1, "Granite Rapids"),
        (0xB7, 1, None),  # no server
    ],
)
def test_intel_servers_are_named_by_their_design(tmp_path, monkeypatch, model, stepping, name):
    monkeypatch.setitem(CPUS, "Intel", ("GenuineIntel", 6, model, "Intel", AVX2))
    path = cpuinfo(tmp_path, "Intel")
    path.write_text(path.read_text().replace("stepping\t: 4", f"stepping\t: {stepping}"))
    assert machine.microarchitecture(path) == name


@pytest.mark.parametrize("vendor", ["GenuineIntel", "HygonGenuine"])
def test_who_is_not_amd_is_not_taken_for_it(tmp_path, monkeypatch, vendor):
    monkeypatch.setitem(CPUS, "other", (vendor, 25, 1, "other", AVX2))
    assert machine.microarchitecture(cpuinfo(tmp_path, "other")) is None


@pytest.mark.parametrize(
    ("cpu", "cap", "line"),
    [
        ("Zen 3", "", "2 cores of AMD EPYC (Zen 3, AVX2 only)"),
        ("Zen 4", "", "2 cores of AMD EPYC (Zen 4, VNNI)"),
        ("Zen 4", "avx2", "2 cores of AMD EPYC (Zen 4, AVX2 only, oneDNN capped at AVX2)"),
        ("Zen 4", "SSE41", "2 cores of AMD EPYC (Zen 4, no AVX2, oneDNN capped at SSE41)"),
        ("Xeon", "", "2 cores of Intel(R) Xeon(R) Processor (Sapphire Rapids, AMX)"),
        (
            "Xeon",
            "AVX512_CORE",
            "2 cores of Intel(R) Xeon(R) Processor "
            "(Sapphire Rapids, AVX-512 without VNNI, oneDNN capped at AVX512_CORE)",
        ),
    ],
)
def test_the_machine_is_named_with_its_int8_unit(tmp_path, monkeypatch, cpu, cap, line):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    path = cpuinfo(tmp_path, cpu)
    here = {
        "cpu": CPUS[cpu][3],
        "microarchitecture": machine.microarchitecture(path),
        "usable_cores": 2,
        "isa": machine.isa_flags(path),
        "isa_cap": machine.isa_cap(),
    }
    assert machine.summary(here) == line
    del here["microarchitecture"]  # results of earlier versions
    for design in machine.DESIGNS:
        line = line.replace(f"{design}, ", "")
    assert machine.summary(here) == line


@pytest.mark.parametrize(
    ("flags", "level", "words"),
    [
        (AMX, "AMX", ["has AMX", "4 times and more"]),
        (VNNI, "VNNI", ["VNNI but no AMX", "up to about 4 times"]),
        ("avx2 avx_vnni", "VNNI", ["VNNI but no AMX", "up to about 4 times"]),
        (AVX2, "none", ["neither VNNI nor AMX", "32 INT8", "8 in FP32", "about 2 times"]),
        ("avx2 avx512f", "none", ["64 INT8", "16 in FP32", "about 2 times"]),
        ("", "none", ["no AVX2"]),
    ],
)
def test_expectation_differs_by_instruction_set(flags, level, words):
    text = machine.expectation(flags.split())
    assert machine.int8_level(flags.split()) == level
    assert all(word in text for word in words), text
    assert text.startswith("This CPU has ") and text.endswith(".") and "\n" not in text
    assert "DL Boost" not in text and ("depthwise" in text or "avx2" not in flags)


# --- cores ---


def sockets(root, monkeypatch, *counts, threads=1, allowed=None):
    """A faked /sys of sockets with `counts` cores each; as on Linux, second threads come last."""
    total = sum(counts)
    places = [socket for socket, count in enumerate(counts) for _ in range(count)]
    for cpu in range(total * threads):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        siblings = range(cpu % total, total * threads, total)
        plant(folder, topology__thread_siblings_list=",".join(map(str, siblings)))
        plant(folder, topology__physical_package_id=places[cpu % total])
        (folder / f"node{places[cpu % total]}").mkdir()
    cpus = set(range(total * threads)) if allowed is None else set(allowed)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)


def sizes(shares):
    """{processes: cores of each}, after what has to hold for every split."""
    assert list(shares) == sorted(shares) and len(shares) <= 6 and 1 in shares
    for count, parts in shares.items():
        assert len(parts) == count and len({len(part) for part in parts}) == 1
        used = [cpu for part in parts for cpu in part]
        assert len(used) == len(set(used)), "a CPU is shared"
    return {count: len(parts[0]) for count, parts in shares.items()}


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, {1: 1}),
        (2, {1: 2, 2: 1}),
        (3, {1: 3, 3: 1}),
        (6, {1: 6, 2: 3, 3: 2, 6: 1}),
        (8, {1: 8, 2: 4, 4: 2, 8: 1}),
        (11, {1: 11, 2: 5, 5: 2, 11: 1}),
        (13, {1: 13, 2: 6, 4: 3, 6: 2, 13: 1}),
        (16, {1: 16, 2: 8, 4: 4, 8: 2, 16: 1}),
        (24, {1: 24, 2: 12, 4: 6, 8: 3, 12: 2, 24: 1}),
        (64, {1: 64, 2: 32, 4: 16, 16: 4, 32: 2, 64: 1}),
    ],
)
def test_every_number_of_cores_can_be_split(tmp_path, monkeypatch, cores, expected):
    sockets(tmp_path, monkeypatch, cores)
    here = machine.cores(tmp_path)
    assert len(here) == machine.usable_cores(tmp_path) == cores
    shares = machine.splits(here, memory=1000)
    assert sizes(shares) == expected
    for count, parts in shares.items():
        assert len(machine.idle(here, parts)) == cores - count * expected[count]


def test_what_is_left_over_is_named(tmp_path, monkeypatch):
    sockets(tmp_path, monkeypatch, 11)
    here = machine.cores(tmp_path)
    shares = machine.splits(here, memory=1000)
    assert shares[2] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    assert machine.idle(here, shares[2]) == (10,) and machine.idle(here, shares[1]) == ()


def test_processes_stay_within_a_socket(tmp_path, monkeypatch):
    sockets(tmp_path, monkeypatch, 32, 32, threads=2)
    here = machine.cores(tmp_path)
    assert len(here) == 64 and {core.node for core in here} == {0, 1}
    shares = machine.splits(here, memory=1000)
    assert sizes(shares) == {1: 64, 2: 32, 4: 16, 16: 4, 32: 2, 64: 1}
    assert shares[1] == [tuple(range(64))] and shares[2][1] == tuple(range(32, 64))
    for count, parts in shares.items():
        assert count == 1 or all(len({cpu // 32 for cpu in part}) == 1 for part in parts)


def test_uneven_sockets_are_not_mixed(tmp_path, monkeypatch):
    """A job with 6 cores of one socket and 5 of the other, as schedulers hand them out."""
    sockets(tmp_path, monkeypatch, 8, 8, allowed=[1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15])
    here = machine.cores(tmp_path)
    shares = machine.splits(here, memory=1000)
    assert sizes(shares) == {1: 11, 2: 5, 5: 2, 11: 1}
    assert shares[2] == [(1, 2, 3, 4, 5), (8, 9, 11, 13, 15)]
    assert machine.idle(here, shares[2]) == (6,) and machine.idle(here, shares[5]) == (15,)


def test_cores_of_a_socket_come_together_whatever_their_numbers(tmp_path, monkeypatch):
    sockets(tmp_path, monkeypatch, 4, 4)
    for cpu in range(8):  # even CPUs on one socket, odd ones on the other
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}"
        plant(folder, topology__physical_package_id=cpu % 2)
    shares = machine.splits(machine.cores(tmp_path), memory=1000)
    assert shares[2] == [(0, 2, 4, 6), (1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (1000, [1, 2, 4, 16, 32, 64]),
        (64, [1, 2, 4, 8, 16, 32]),
        (10, [1, 2, 4, 5]),
        (3.9, [1]),
        (0.5, [1]),
    ],
)
def test_never_more_processes_than_fit_into_memory(tmp_path, monkeypatch, memory, expected):
    sockets(tmp_path, monkeypatch, 64)
    here = machine.cores(tmp_path)
    assert list(machine.splits(here, memory=memory)) == expected
    assert list(machine.splits(here, memory=memory / 4, each=0.5)) == expected
    monkeypatch.setattr(topology, "available_memory", lambda: memory)
    assert list(machine.splits(here)) == expected


def test_hyper_threads_count_once(tmp_path, monkeypatch):
    sockets(tmp_path, monkeypatch, 4, threads=2)
    assert [core.cpu for core in machine.cores(tmp_path)] == [0, 1, 2, 3]
    sockets(tmp_path / "part", monkeypatch, 4, threads=2, allowed=[1, 5, 6, 7])
    assert [core.cpu for core in machine.cores(tmp_path / "part")] == [1, 6, 7]
    assert machine.usable_cores(tmp_path / "part") == 3


def test_cores_where_the_system_shows_no_topology(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert machine.cores(tmp_path) == [(3, 0, 0), (5, 0, 0)]


def test_cores_of_this_machine():
    here = machine.cores()
    assert {core.cpu for core in here} <= os.sched_getaffinity(0)
    assert len(here) == machine.usable_cores() >= 1


# --- limits ---


def test_nested_cpu_quotas_of_cgroup_2(tmp_path, monkeypatch):
    sockets(tmp_path, monkeypatch, 8)
    plant(tmp_path, proc__self__cgroup="0::/user.slice/job/step")
    base = tmp_path / "sys/fs/cgroup"
    plant(base / "user.slice/job/step", **{"cpu.max": "max 100000"})
    assert machine.usable_cores(tmp_path) == 8
    plant(base / "user.slice", **{"cpu.max": "500000 100000"})
    assert machine.usable_cores(tmp_path) == 5
    plant(base / "user.slice/job", **{"cpu.max": "250000 100000"})
    assert machine.usable_cores(tmp_path) == len(machine.cores(tmp_path)) == 3
    plant(base / "user.slice/job/step", **{"cpu.max": "50000 50000"})
    assert machine.usable_cores(tmp_path) == 1
    plant(base / "other", **{"cpu.max": "10000 100000"})  # a neighbour's is not ours
    plant(base / "user.slice/job/step", **{"cpu.max": "800000 100000"})
    assert machine.usable_cores(tmp_path) == 3


def test_nested_cpu_quotas_of_cgroup_1(tmp_path, monkeypatch):
    sockets(tmp_path, monkeypatch, 8)
    plant(tmp_path, proc__self__cgroup="4:cpu,cpuacct:/slurm/job_7\n3:memory:/\n0::/")
    base = tmp_path / "sys/fs/cgroup/cpu"
    for folder, quota in (("slurm/job_7", -1), ("slurm", -1), ("", -1)):
        plant(base / folder, **{"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": 100000})
    assert machine.usable_cores(tmp_path) == 8
    plant(base / "slurm", **{"cpu.cfs_quota_us": 400000})
    assert machine.usable_cores(tmp_path) == 4
    plant(base / "slurm/job_7", **{"cpu.cfs_quota_us": 200000})
    assert machine.usable_cores(tmp_path) == 2


def test_a_seat_leaves_its_share_less_what_its_processes_hold(tmp_path, monkeypatch, free):
    monkeypatch.setenv("SEAT_MEMORY", f"{os.getpid()} 16.5")
    before = machine.available_memory(tmp_path)
    assert 8 < before < 16.5
    hold = "held = bytearray(b'1') * 2**29; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        beside = machine.available_memory(tmp_path)
        child.communicate(b"\n")
    assert before - beside == pytest.approx(0.5, abs=0.1)
    monkeypatch.setenv("SEAT_MEMORY", f"{child.pid} 16.5")  # a seat that has ended holds nothing
    assert machine.available_memory(tmp_path) == 16.5


@pytest.mark.parametrize("path", ["/docker/0123abcd", "/../../machine.slice/0123abcd", "/..", "/"])
def test_a_container_sees_its_own_limit_at_the_root(tmp_path, monkeypatch, path):
    """In a container the path is often the host's, and what is mounted is the own group."""
    sockets(tmp_path, monkeypatch, 8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(64 * GIB))
    plant(tmp_path, proc__self__cgroup=f"0::{path}")
    base = tmp_path / "sys/fs/cgroup"
    plant(base, **{"cpu.max": "200000 100000", "memory.max": 4 * GIB, "memory.current": GIB})
    assert machine.usable_cores(tmp_path) == 2 and machine.available_memory(tmp_path) == 3


def test_a_group_within_a_container_counts_as_well(tmp_path, monkeypatch):
    """The path is the host's, of which the container sees the end that is its own."""
    sockets(tmp_path, monkeypatch, 8)
    plant(tmp_path, proc__self__cgroup="0::/docker/0123abcd/step")
    plant(tmp_path / "sys/fs/cgroup/step", **{"cpu.max": "300000 100000"})
    plant(tmp_path / "sys/fs/cgroup", **{"cpu.max": "500000 100000"})
    assert machine.usable_cores(tmp_path) == 3


def test_cgroup_2_beside_cgroup_1(tmp_path, monkeypatch):
    sockets(tmp_path, monkeypatch, 8)
    plant(tmp_path, proc__self__cgroup="2:memory:/\n0::/job")
    plant(tmp_path / "sys/fs/cgroup/unified/job", **{"cpu.max": "300000 100000"})
    assert machine.usable_cores(tmp_path) == 3


def test_a_quota_takes_cores_of_one_socket_and_node(tmp_path, monkeypatch):
    sockets(tmp_path, monkeypatch, 8)
    for cpu in range(8):  # neighbouring CPUs lie on different sockets, and on nodes of those
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}"
        plant(folder, topology__physical_package_id=cpu % 2)
        (folder / "node0").rmdir()
        (folder / f"node{cpu % 4}").mkdir()
    plant(tmp_path, proc__self__cgroup="0::/")
    plant(tmp_path / "sys/fs/cgroup", **{"cpu.max": "400000 100000"})
    assert machine.cores(tmp_path) == [(0, 0, 0), (4, 0, 0), (2, 0, 2), (6, 0, 2)]


class Memory:
    def __init__(self, available):
        self.available = available


@pytest.fixture
def free(monkeypatch):
    """64 GiB are free on the host."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(64 * GIB))


def test_available_memory_is_what_is_free_without_limits(tmp_path, free):
    assert machine.available_memory(tmp_path) == 64
    plant(tmp_path, proc__self__cgroup="0::/a")
    plant(tmp_path, **{"sys__fs__cgroup__a__memory.max": "max"})
    assert machine.available_memory(tmp_path) == 64


def test_nested_memory_limits_of_cgroup_2(tmp_path, free):
    plant(tmp_path, proc__self__cgroup="0::/slice/job/step")
    base = tmp_path / "sys/fs/cgroup"
    plant(base / "slice/job/step", **{"memory.max": "max", "memory.current": GIB})
    plant(base / "slice/job", **{"memory.max": 16 * GIB, "memory.current": 10 * GIB})
    assert machine.available_memory(tmp_path) == 6
    plant(base / "slice/job", **{"memory.stat": f"anon {7 * GIB}\ninactive_file {3 * GIB}"})
    assert machine.available_memory(tmp_path) == 9
    plant(base / "slice", **{"memory.max": 20 * GIB, "memory.current": 18 * GIB})
    assert machine.available_memory(tmp_path) == 2
    plant(base / "slice", **{"memory.current": 21 * GIB})
    assert machine.available_memory(tmp_path) == 0


def test_nested_memory_limits_of_cgroup_1(tmp_path, free):
    plant(tmp_path, proc__self__cgroup="5:memory:/slurm/job_7\n1:cpu:/\n0::/")
    base = tmp_path / "sys/fs/cgroup/memory"
    (tmp_path / "sys/fs/cgroup/unified").mkdir(parents=True)
    for folder in (base, base / "slurm", base / "slurm/job_7"):
        plant(folder, **{"memory.limit_in_bytes": 9223372036854771712})
        plant(folder, **{"memory.usage_in_bytes": GIB})
    assert machine.available_memory(tmp_path) == 64
    plant(base / "slurm", **{"memory.limit_in_bytes": 8 * GIB})
    plant(base / "slurm", **{"memory.usage_in_bytes": 5 * GIB})
    plant(base / "slurm", **{"memory.stat": f"inactive_file 0\ntotal_inactive_file {2 * GIB}"})
    assert machine.available_memory(tmp_path) == 5
    plant(base / "slurm/job_7", **{"memory.limit_in_bytes": 4 * GIB})
    plant(base / "slurm/job_7", **{"memory.usage_in_bytes": 3 * GIB})
    assert machine.available_memory(tmp_path) == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "8192"}, 8),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "6"}, 12),
        ({"SLURM_MEM_PER_NODE": "0"}, 64),  # --mem=0: all there is
        ({"SLURM_MEM_PER_CPU": "2048"}, 64),
    ],
)
def test_slurm_limits_memory(tmp_path, free, monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machine.available_memory(tmp_path) == 64  # left over from a job, not in one
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert machine.available_memory(tmp_path) == expected


def test_memory_of_this_machine():
    free = psutil.virtual_memory()
    assert 0 < machine.available_memory() <= free.total / GIB


def child(code, *arguments, python=(sys.executable,), root=ROOT, **environment):
    """What a Python process with this environment prints; `root` holds its helpers/."""
    done = subprocess.run(
        [*python, "-c", code, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def usable(**environment):
    code = "from helpers import machine; print(machine.usable_cores())"
    return int(child(code, **environment))


@needs("taskset")
def test_usable_cores_follow_affinity_and_the_batch_job():
    pinned = ("taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable)
    assert usable(python=pinned) == 1
    assert usable(SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="1") == 1
    assert usable(SLURM_JOB_ID="7", SLURM_CPUS_ON_NODE="1") == 1  # a job without --cpus-per-task
    assert usable(PBS_JOBID="7", NCPUS="1") == 1
    assert usable(SLURM_CPUS_PER_TASK="0", SLURM_CPUS_ON_NODE="0") == usable()


# --- software ---


def onednn():
    packages = Path(sysconfig.get_path("purelib"))
    return str(packages / "intel_extension_for_tensorflow" / "libonednn_cpu_so.so")


@pytest.mark.parametrize("then", ["pass", "os.unlink(sys.argv[1])"], ids=["kept", "deleted"])
def test_onednn_is_found_wherever_it_lies(tmp_path, then):
    library = tmp_path / "a path with  spaces, größer (deleted)" / "libonednn_cpu_so.so"
    library.parent.mkdir()
    shutil.copy(onednn(), library)
    needed = {path.parent for path in Path(sysconfig.get_path("purelib")).rglob("libiomp5.so")}
    code = (
        "import ctypes, os, sys; from helpers import machine;"
        f"ctypes.CDLL(sys.argv[1]); {then}; print(machine.onednn_version())"
    )
    try:
        version = child(code, str(library), LD_LIBRARY_PATH=":".join(map(str, needed)), LC_ALL="C")
    finally:
        library.unlink(missing_ok=True)  # 150 MB
    assert version == "3.3.0"


def test_onednn_version_without_itex():
    assert child("from helpers import machine; print(machine.onednn_version())") == "None"


def test_a_library_that_only_lies_beside_onednn_is_not_asked(tmp_path):
    library = tmp_path / "onednn.so" / "libm.so.6"
    library.parent.mkdir()
    original = next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("/libm.so.6")
    )
    shutil.copy(original, library)
    code = (
        "import ctypes, sys; from helpers import machine; ctypes.CDLL(sys.argv[1]);"
        "assert sys.argv[1] in open('/proc/self/maps').read(); print(machine.onednn_version())"
    )
    assert child(code, str(library)) == "None"


@needs("git")
def test_the_commit_is_told_in_any_path(tmp_path):
    checkout = tmp_path / "a checkout, größer"
    shutil.copytree(ROOT / "helpers", checkout / "helpers")
    git = ["git", "-C", checkout, "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "All of it"]):
        subprocess.run([*git, *words], check=True)
    code = "from helpers import machine; print(machine.software()['commit'])"
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert child(code, root=checkout, LC_ALL="C") == commit[:12]
    (checkout / "helpers/machine.py").open("a").write("\n")
    assert child(code, root=checkout) == commit[:12] + "+"
    # unpacked somewhere within another repository: that one's commit says nothing of this package
    shutil.copytree(ROOT / "helpers", checkout / "unpacked/helpers")
    assert child(code, root=checkout / "unpacked") == "None"


def test_description_is_complete():
    here = machine.describe()
    assert 1 <= here["usable_cores"] <= here["physical_cores"] <= here["logical_cores"]
    assert here["memory_gib"] > 0.5 and here["cpu"]
    assert here["cpu"] in machine.summary(here)
    assert here["microarchitecture"] == machine.microarchitecture()
    versions = machine.software()
    assert versions["tensorflow"] == "2.15.1" and versions["itex"] == "2.15.0.0"


def test_importing_helpers_does_not_import_tensorflow():
    modules = sorted(path.stem for path in (ROOT / "helpers").glob("[a-z]*.py"))
    assert {"machine", "topology", "graphs", "zoo"} <= set(modules)
    code = (
        f"import sys; from helpers import {', '.join(modules)}; print('tensorflow' in sys.modules)"
    )
    assert child(code) == "False"


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


# --- code that may crash ---


def described(words, number):
    import ctypes

    ctypes.CDLL(None).puts(b"noise of a library, written when the process ends")
    print("noise")
    return {"words": words, "half": number / 2}


def aborting():
    import os

    os.abort()


def killed():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def raising():
    raise ValueError("the reason")


def test_a_process_of_its_own_gives_back_what_was_computed():
    words = ["größer", 'it\'s a "quote"\n']
    assert machine.in_own_process(described, words, 3) == {"words": words, "half": 1.5}


@pytest.mark.parametrize(
    ("function", "cap", "words"),
    [
        (aborting, "", ["aborting", "signal SIGABRT.", "leave that step out on this CPU."]),
        (aborting, "AVX2", ["SIGABRT", "or unset the cap AVX2 of oneDNN."]),
        (killed, "", ["SIGKILL", "too little memory"]),
        (raising, "", ["ended with status 1", "ValueError: the reason"]),
    ],
)
def test_the_end_of_a_process_of_its_own_becomes_a_sentence(monkeypatch, function, cap, words):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    with pytest.raises(UserError) as error:
        machine.in_own_process(function)
    assert all(word in str(error.value) for word in words), error.value


def test_a_crash_in_notebook_01_leaves_the_kernel_alive(tmp_path):
    book = nbformat.read(ROOT / "notebooks/01_check_machine.ipynb", 4)
    product = "tf.matmul(matrix, matrix).numpy()"
    for cell in book.cells:
        if product in cell.source:
            cell.source = cell.source.replace(product, "import os; os.abort()")
    written = {"profile": "quick", "output": str(tmp_path)}
    book.cells.insert(2, nbformat.v4.new_code_cell(f"globals().update({written})"))
    nbclient.execute(book, cwd=ROOT / "notebooks", kernel_name="python3")
    text = "\n".join(str(cell.get("outputs")) for cell in book.cells)
    assert "best_times, in a process of its own, was ended by signal SIGABRT." in text
    assert "All checks passed." in text and (tmp_path / "machine.json").exists()


def test_signals_without_a_name_have_their_number():
    assert machine.ending(-40) == "was ended by signal 40"
    assert machine.ending(-11) == "was ended by signal SIGSEGV" and "2" in machine.ending(2)


def test_a_prepared_room_knows_the_commit_it_was_made_from(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "helpers" / "machine.py"))
    assert machine._commit() is None
    (tmp_path / "room.json").write_text('{"commit": "0123456789ab"}')
    assert machine._commit() == "0123456789ab"
