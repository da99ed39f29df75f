"""What this machine and its software are, as far as INT8 and BF16 speed depends on them."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import psutil

from helpers import UserError
from helpers.topology import available_memory, cores, idle, splits, usable_cores

__all__ = [
    "ISA_FLAGS",
    "available_memory",
    "cores",
    "describe",
    "ending",
    "expectation",
    "has_bf16",
    "has_itex",
    "idle",
    "in_own_process",
    "int8_level",
    "intel_gpus",
    "isa_cap",
    "isa_flags",
    "microarchitecture",
    "now",
    "onednn_libraries",
    "onednn_version",
    "software",
    "splits",
    "summary",
    "usable_cores",
]

# CPU flags in /proc/cpuinfo that decide which kernels oneDNN picks, and what each is for. VNNI is
# the name of the instructions, on AMD's CPUs as well; Intel calls them DL Boost.
ISA_FLAGS = {
    "avx2": "256-bit vectors",
    "avx_vnni": "VNNI on 256-bit vectors: INT8 multiply-add in one instruction",
    "avx512f": "512-bit vectors",
    "avx512_vnni": "VNNI: INT8 multiply-add in one instruction",
    "avx512_bf16": "BF16 multiply-add on 512-bit vectors",
    "avx512_fp16": "FP16 arithmetic on 512-bit vectors",
    "amx_tile": "AMX tile registers",
    "amx_int8": "AMX: INT8 matrix multiply in hardware",
    "amx_bf16": "AMX: BF16 matrix multiply in hardware",
}

# The ISA_FLAGS that oneDNN may use under each value of ONEDNN_MAX_CPU_ISA. AVX2_VNNI is part of
# AVX512_CORE_FP16 and above, not of the AVX512 steps below. ALL, DEFAULT and unknown values (in
# oneDNN 3.3 also those of AVX10) are no cap. Source: oneDNN, src/cpu/x64/cpu_isa_traits.hpp.
_CORE_FP16 = "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16"
_ISA_CAPS = {
    "SSE41": "",
    "AVX": "",
    "AVX2": "avx2",
    "AVX2_VNNI": "avx2 avx_vnni",
    "AVX2_VNNI_2": "avx2 avx_vnni",
    "AVX512_CORE": "avx2 avx512f",
    "AVX512_CORE_VNNI": "avx2 avx512f avx512_vnni",
    "AVX512_CORE_BF16": "avx2 avx512f avx512_vnni avx512_bf16",
    "AVX512_CORE_FP16": _CORE_FP16,
    "AVX512_CORE_AMX": f"{_CORE_FP16} amx_tile amx_int8 amx_bf16",
    "AVX512_CORE_AMX_FP16": f"{_CORE_FP16} amx_tile amx_int8 amx_bf16",
}

# AMD's designs: family, first and last model, name.
# Source: Linux, arch/x86/kernel/cpu/amd.c, "Figure out Zen generations".
_ZEN = (
    (0x17, 0x00, 0x2F, "Zen"),
    (0x17, 0x50, 0x5F, "Zen"),
    (0x17, 0x30, 0x4F, "Zen 2"),
    (0x17, 0x60, 0x7F, "Zen 2"),
    (0x17, 0x90, 0x91, "Zen 2"),
    (0x17, 0xA0, 0xAF, "Zen 2"),
    (0x19, 0x00, 0x0F, "Zen 3"),
    (0x19, 0x20, 0x5F, "Zen 3"),
    (0x19, 0x10, 0x1F, "Zen 4"),
    (0x19, 0x60, 0xAF, "Zen 4"),
    (0x1A, 0x00, 0x2F, "Zen 5"),
    (0x1A, 0x40, 0x4F, "Zen 5"),
    (0x1A, 0x60, 0x7F, "Zen 5"),
)
# Intel's designs of servers, family 6: model, first and last stepping, name.
# Sources: Linux, arch/x86/include/asm/intel-family.h; for the steppings of 0x55 its
# tools/power/x86/intel-speed-select and arch/x86/events/intel.
_XEON = (
    (0x3F, 0, 15, "Haswell"),
    (0x4F, 0, 15, "Broadwell"),
    (0x55, 0, 4, "Skylake"),
    (0x55, 5, 9, "Cascade Lake"),
    (0x55, 10, 15, "Cooper Lake"),
    (0x6A, 0, 15, "Ice Lake"),
    (0x6C, 0, 15, "Ice Lake"),
    (0x8F, 0, 15, "Sapphire Rapids"),
    (0xCF, 0, 15, "Emerald Rapids"),
    (0xAD, 0, 15, "Granite Rapids"),
    (0xAE, 0, 15, "Granite Rapids"),
)
# {vendor: (first and last of (family, model, stepping), name)}
_DESIGNS = {
    "AuthenticAMD": [((f, first, 0), (f, last, 15), name) for f, first, last, name in _ZEN],
    "GenuineIntel": [((6, m, first), (6, m, last), name) for m, first, last, name in _XEON],
}
DESIGNS = tuple(dict.fromkeys(name for known in _DESIGNS.values() for *_, name in known))


def _cpuinfo(path="/proc/cpuinfo"):
    fields = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def microarchitecture(cpuinfo="/proc/cpuinfo"):
    """The design of a CPU of AMD or of an Intel server, one of DESIGNS; None where it is not known.

    Virtual machines often say no more than "AMD EPYC" or "Intel Xeon Processor", of which some
    have AVX-512, VNNI or AMX and others do not.
    """
    info = _cpuinfo(cpuinfo)
    known = _DESIGNS.get(info.get("vendor_id"))
    if known is None:
        return None
    here = tuple(int(info[name]) for name in ("cpu family", "model", "stepping"))
    return next((name for first, last, name in known if first <= here <= last), None)


def isa_cap():
    """What ONEDNN_MAX_CPU_ISA limits oneDNN to, in capitals; None where that is no limit.

    As in oneDNN, DNNL_MAX_CPU_ISA counts where the other is not set or empty.
    """
    value = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    return value.upper() if value.upper() in _ISA_CAPS else None


def isa_flags(cpuinfo="/proc/cpuinfo"):
    """The ISA_FLAGS that this CPU has and oneDNN may use (`isa_cap` lowers it)."""
    usable = set(_cpuinfo(cpuinfo).get("flags", "").split())
    if isa_cap():
        usable &= set(_ISA_CAPS[isa_cap()].split())
    return [flag for flag in ISA_FLAGS if flag in usable]


def has_bf16(flags=None):
    """Whether oneDNN has BF16 instructions (AVX-512 BF16 or AMX) among `flags` (default: here)."""
    flags = isa_flags() if flags is None else flags
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def has_itex():
    """Whether this Python's TensorFlow loads Intel's extension."""
    return importlib.util.find_spec("intel_extension_for_tensorflow") is not None


def int8_level(flags=None):
    """The best INT8 unit among `flags` (by default this CPU's): 'AMX', 'VNNI' or 'none'."""
    flags = isa_flags() if flags is None else flags
    if "amx_int8" in flags:
        return "AMX"
    return "VNNI" if {"avx512_vnni", "avx_vnni"} & set(flags) else "none"


def expectation(flags=None):
    """One paragraph: what INT8 can be expected to gain on a CPU with these flags, and why.

    The factors are what AlexNet and ResNet50 of this package gained at batch 1 to 64.
    """
    flags = isa_flags() if flags is None else flags
    factors = "On networks of convolutions expect INT8 to be {} as fast as FP32"
    depthwise = "networks of depthwise convolutions gain less."
    if int8_level(flags) == "AMX":
        return (
            "This CPU has AMX: INT8 (and BF16) matrix products run in a matrix unit in each core. "
            f"{factors.format('4 times and more')}; {depthwise}"
        )
    if int8_level(flags) == "VNNI":
        return (
            "This CPU has VNNI but no AMX (or oneDNN may not use it): one instruction multiplies "
            "and adds four times as many INT8 numbers as FP32 ones. "
            f"{factors.format('up to about 4 times')}; {depthwise}"
        )
    if "avx2" not in flags:
        return (
            "This CPU has no AVX2 (or oneDNN may not use it): nobody has measured INT8 on such "
            "CPUs with this package."
        )
    fp32 = 16 if "avx512f" in flags else 8
    return (
        "This CPU has neither VNNI nor AMX (or oneDNN may not use them): an instruction multiplies "
        f"{4 * fp32} INT8 numbers where it multiplies {fp32} in FP32, but it takes three "
        "instructions for what VNNI does in one. "
        f"{factors.format('about 2 times')}; {depthwise}"
    )


def intel_gpus(root="/"):
    """Render nodes (/dev/dri/renderD*) that belong to an Intel GPU; `root` is for tests."""
    nodes = []
    for node in sorted(Path(root).glob("dev/dri/renderD*")):
        vendor = Path(root, "sys/class/drm", node.name, "device/vendor")
        if vendor.exists() and vendor.read_text().strip() == "0x8086":
            nodes.append(node.name)
    return nodes


def describe():
    """The machine as a dict, for `result.json` (memory in GiB)."""
    info = _cpuinfo()
    logical = os.cpu_count() or 1
    sockets = {
        path.read_text().strip()
        for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id")
    }
    return {
        "cpu": info.get("model name", platform.machine()),
        "microarchitecture": microarchitecture(),
        "logical_cores": logical,
        "physical_cores": psutil.cpu_count(logical=False) or logical,
        "usable_cores": usable_cores(),
        "sockets": max(1, len(sockets)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "isa": isa_flags(),
        "gpus": intel_gpus(),
        "isa_cap": isa_cap(),
        "os": f"{platform.system()} {platform.release()}",
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    """The commit of this package, with '+' when tracked files were changed; None outside git.

    A prepared room (helpers/run/prepare.py) has no .git, but says what it was made from.
    """
    here = Path(__file__).parent
    if (room := here.parent / "room.json").exists():
        return json.loads(room.read_text()).get("commit")

    def git(*words):
        return subprocess.run(
            ["git", "-C", here, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if git("rev-parse", "--show-prefix") != f"{here.name}/":
            return None  # a copy without .git within somebody else's repository
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


def onednn_libraries():
    """The oneDNN libraries loaded in this process, as ctypes.CDLL; ITEX brings one."""
    lines = os.fsdecode(Path("/proc/self/maps").read_bytes()).split("\n")
    # after five columns of a line comes a path as it is, which may hold spaces
    paths = (line.split(maxsplit=5)[5] for line in lines if line.count("/"))
    libraries = []
    for path in dict.fromkeys(path.removesuffix(" (deleted)") for path in paths):
        if not Path(path).name.startswith(("libonednn", "libdnnl")):
            continue
        with contextlib.suppress(OSError):  # deleted since it was loaded
            library = ctypes.CDLL(path)
            if hasattr(library, "dnnl_version") and hasattr(library, "dnnl_set_verbose"):
                libraries.append(library)
    return libraries


def onednn_version():
    """The release of the oneDNN library loaded in this process, or None."""
    for library in onednn_libraries():
        library.dnnl_version.restype = ctypes.POINTER(ctypes.c_int * 3)
        return ".".join(str(part) for part in library.dnnl_version().contents)
    return None


def ending(status):
    """How a process ended, in words: its `status` as subprocess gives it, negative for signals."""
    if status >= 0:
        return f"ended with status {status}"
    names = {known: known.name for known in signal.Signals}
    names[signal.SIGKILL] += ", which often means too little memory"
    return f"was ended by signal {names.get(-status, -status)}"


def in_own_process(function, *arguments):
    """What `function(*arguments)` gives in a fresh Python: a crash ends that, not this process.

    The source of `function` is run there, so it imports what it uses; its arguments and what it
    gives pass as JSON. What it prints is lost. Raises UserError when it fails or is ended.
    """
    source = textwrap.dedent(inspect.getsource(function))
    call = f"{function.__name__}(*json.loads({json.dumps(arguments)!r}))"
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        code = f"import json\n{source}\njson.dump({call}, open({answer.name!r}, 'w'))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        if done.returncode == 0:
            return json.load(answer)
    message = f"{function.__name__}, in a process of its own, {ending(done.returncode)}."
    if last := done.stderr.decode(errors="replace").strip().rpartition("\n")[2]:
        message += f" Its last line: {last}"
    if done.returncode < 0:
        message += " This process goes on; leave that step out on this CPU"
        message += f", or unset the cap {isa_cap()} of oneDNN." if isa_cap() else "."
    raise UserError(message)


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def summary(machine):
    """One line naming the machine of a `result.json`."""
    if machine.get("device") == "XPU":
        return f"Intel GPU ({', '.join(machine['gpus'])}) beside {machine['cpu']}"
    notes = [machine.get("microarchitecture"), _unit(machine["isa"])]
    if machine.get("isa_cap"):
        notes.append(f"oneDNN capped at {machine['isa_cap']}")
    notes = ", ".join(filter(None, notes))
    return f"{machine['usable_cores']} cores of {machine['cpu']} ({notes})"


def _unit(flags):
    if int8_level(flags) != "none":
        return int8_level(flags)
    if "avx512f" in flags:
        return "AVX-512 without VNNI"
    return "AVX2 only" if "avx2" in flags else "no AVX2"
