"""What this machine and its software are, as far as INT8 and BF16 speed depends on them."""

import ctypes
import importlib.metadata
import math
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

# CPU flags in /proc/cpuinfo that decide which kernels oneDNN picks, and what each is for.
ISA_FLAGS = {
    "avx2": "256-bit vectors",
    "avx_vnni": "DL Boost on 256-bit vectors: INT8 multiply-add in one instruction",
    "avx512f": "512-bit vectors",
    "avx512_vnni": "DL Boost: INT8 multiply-add in one instruction",
    "avx512_bf16": "BF16 multiply-add on 512-bit vectors",
    "avx512_fp16": "FP16 arithmetic on 512-bit vectors",
    "amx_tile": "AMX tile registers",
    "amx_int8": "AMX: INT8 matrix multiply in hardware",
    "amx_bf16": "AMX: BF16 matrix multiply in hardware",
}

# What oneDNN may use under each value of ONEDNN_MAX_CPU_ISA.
# Source: oneDNN developer guide, "CPU dispatcher control".
_ISA_CAPS = {
    "SSE41": "",
    "AVX": "",
    "AVX2": "avx2",
    "AVX2_VNNI": "avx2 avx_vnni",
    "AVX2_VNNI_2": "avx2 avx_vnni",
    "AVX512_CORE": "avx2 avx512f",
    "AVX512_CORE_VNNI": "avx2 avx512f avx512_vnni",
    "AVX512_CORE_BF16": "avx2 avx512f avx512_vnni avx512_bf16",
    "AVX512_CORE_FP16": "avx2 avx512f avx512_vnni avx512_bf16 avx512_fp16",
}


def _cpuinfo(path="/proc/cpuinfo"):
    fields = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def isa_flags(cpuinfo="/proc/cpuinfo"):
    """The ISA_FLAGS that this CPU has and oneDNN may use (ONEDNN_MAX_CPU_ISA lowers it)."""
    present = set(_cpuinfo(cpuinfo).get("flags", "").split())
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if cap in _ISA_CAPS:
        present &= set(_ISA_CAPS[cap].split())
    return [flag for flag in ISA_FLAGS if flag in present]


def has_bf16():
    """Whether BF16 runs in hardware here (AVX-512 BF16 or AMX)."""
    return bool({"avx512_bf16", "amx_bf16"} & set(isa_flags()))


def int8_level(flags=None):
    """The best INT8 unit among `flags` (by default this CPU's): 'AMX', 'DL Boost', 'none'."""
    flags = isa_flags() if flags is None else flags
    if "amx_int8" in flags:
        return "AMX"
    return "DL Boost" if {"avx512_vnni", "avx_vnni"} & set(flags) else "none"


def expectation(flags=None):
    """One sentence: what INT8 can be expected to gain on a CPU with these flags, and why."""
    return {
        "AMX": "This CPU has AMX: INT8 (and BF16) matrix products run in a hardware matrix unit, "
        "so expect INT8 to be several times faster than FP32.",
        "DL Boost": "This CPU has DL Boost but no AMX: INT8 uses one instruction where FP32 needs "
        "several, so expect INT8 to be up to about 2 to 4 times faster than FP32.",
        "none": "This CPU has neither DL Boost nor AMX (or oneDNN may not use them): INT8 still "
        "saves memory traffic, but expect a small gain, and none at some batch sizes.",
    }[int8_level(flags)]


def _cgroup_quota():
    """CPUs that the cgroup's quota allows (cgroup v2, then v1), or None when there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else float(quota) / float(period)


def _physical(cpus):
    """How many physical cores the given logical CPUs lie on."""
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(cpu)
    return len(cores)


def usable_cores():
    """Physical cores this process may use: affinity, cgroup quota and the batch job's allocation.

    Never less than 1. Slurm's and PBS' variables count only inside such a job; Slurm sets
    SLURM_CPUS_PER_TASK only where it was asked for, SLURM_CPUS_ON_NODE always.
    """
    limits = [_physical(os.sched_getaffinity(0))]
    quota = _cgroup_quota()
    if quota:
        limits.append(math.ceil(quota))
    for job, count in (
        ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK"),
        ("SLURM_JOB_ID", "SLURM_CPUS_ON_NODE"),
        ("PBS_JOBID", "NCPUS"),
    ):
        if job in os.environ and os.environ.get(count, "").isdigit():
            limits.append(int(os.environ[count]))
    return max(1, min(limits))


def intel_gpus(root="/"):
    """Render nodes (/dev/dri/renderD*) that belong to an Intel GPU; `root` is for tests."""
    found = []
    for node in sorted(Path(root).glob("dev/dri/renderD*")):
        vendor = Path(root, "sys/class/drm", node.name, "device/vendor")
        if vendor.exists() and vendor.read_text().strip() == "0x8086":
            found.append(node.name)
    return found


def describe():
    """The machine as a dict, for `result.json` (memory in GiB)."""
    info = _cpuinfo()
    logical = os.cpu_count() or 1
    sockets = {
        path.read_text().strip()
        for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id")
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": info.get("model name", platform.machine()),
        "logical_cores": logical,
        "physical_cores": _physical(range(logical)),
        "usable_cores": usable_cores(),
        "sockets": max(1, len(sockets)),
        "memory_gib": round(memory, 1),
        "isa": isa_flags(),
        "gpus": intel_gpus(),
        "isa_cap": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "os": f"{platform.system()} {platform.release()}",
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    """The commit of this package, with '+' when tracked files were changed; None outside git."""
    here = Path(__file__).parent

    def git(*words):
        return subprocess.run(
            ["git", "-C", here, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def software():
    """Versions as a dict, for `result.json`; 'onednn' is filled in by the benchmark's workers."""
    return {
        "python": platform.python_version(),
        "tensorflow": _version("tensorflow"),
        "itex": _version("intel-extension-for-tensorflow"),
        "neural_compressor": _version("neural-compressor"),
        "numpy": _version("numpy"),
        "onednn": None,
        "commit": _commit(),
    }


def onednn_version():
    """The release of the oneDNN library loaded in this process, or None."""
    paths = re.findall(r"\S*onednn\S*\.so\S*", Path("/proc/self/maps").read_text())
    for path in dict.fromkeys(paths):
        version = ctypes.CDLL(path).dnnl_version
        version.restype = ctypes.POINTER(ctypes.c_int * 3)
        return ".".join(str(part) for part in version().contents)
    return None


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def summary(machine):
    """One line naming the machine of a `result.json`."""
    if machine.get("device") == "XPU":
        return f"Intel GPU ({', '.join(machine['gpus'])}) beside {machine['cpu']}"
    level = int8_level(machine["isa"])
    unit = "no DL Boost" if level == "none" else level
    cap = f", oneDNN capped at {machine['isa_cap']}" if machine.get("isa_cap") else ""
    return f"{machine['usable_cores']} cores of {machine['cpu']} ({unit}{cap})"
