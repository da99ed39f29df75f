"""Which cores and how much memory this process may use, and ways to share the cores.

`root` is where the functions look for /proc and /sys: a test's own folder in place of "/".
"""

import contextlib
import itertools
import math
import os
from pathlib import Path
from typing import NamedTuple

import psutil

SEAT_MEMORY = "SEAT_MEMORY"  # "PID GIB": what a process and all that it starts may take together


class Core(NamedTuple):
    """A physical core: the logical CPU of it to use, and the socket and NUMA node it lies on."""

    cpu: int
    socket: int
    node: int


def _read(path):
    """The text of a file below /proc or /sys, '' where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _groups(controller, root):
    """Folders of the control groups that limit this process: its own, then each one above.

    Version 2 of cgroups and version 1 may both be mounted. In a container the path may be the
    host's, of which only the end, or nothing, exists inside.
    """
    base = Path(root, "sys/fs/cgroup")
    for line in _read(Path(root, "proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            mount = base / controller
        elif controllers == "":
            mount = base / "unified" if (base / "unified").is_dir() else base
        else:
            continue
        parts = [part for part in path.split("/") if part]
        ends = (mount.joinpath(*parts[skip:]) for skip in range(len(parts) + 1))
        own = next((folder for folder in ends if folder.is_dir()), mount)
        yield from itertools.takewhile(lambda folder: folder != base.parent, (own, *own.parents))


def _quotas(root):
    """How many CPUs' time each control group allows, where it sets a limit."""
    for folder in _groups("cpu", root):
        quota, period = (_read(folder / "cpu.max") or "max 0").split()
        if not quota.isdigit():
            quota = _read(folder / "cpu.cfs_quota_us")  # -1 without a limit
            period = _read(folder / "cpu.cfs_period_us")
        if quota.isdigit():
            yield int(quota) / int(period)


def _memory_left(root):
    """Bytes that each control group leaves: its limit less what is used and not reclaimable."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for folder in _groups("memory", root):
        for limit, used, cache in names:
            limit = _read(folder / limit)
            if limit.isdigit():
                stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
                yield int(limit) - int(_read(folder / used) or 0) + int(stat.get(cache, 0))


def _seat_left():
    """Bytes that this process's seat leaves it: its share less what its processes hold."""
    if SEAT_MEMORY not in os.environ:
        return
    pid, share = os.environ[SEAT_MEMORY].split()
    used = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(int(pid))
        for process in (first, *first.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it has ended since, or is another's
                used += process.memory_info().rss
    yield float(share) * 2**30 - used


def _job_number(job, name):
    """A number that the batch system has set, None outside of its jobs; 0 means no limit."""
    value = os.environ.get(name, "")
    return int(value) if job in os.environ and value.isdigit() else None


def _allowed(root):
    """The Cores of this process's CPU affinity, each once, those of a socket and node together."""
    cores = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        folder = Path(root, f"sys/devices/system/cpu/cpu{cpu}")
        siblings = _read(folder / "topology/thread_siblings_list") or cpu
        socket = _read(folder / "topology/physical_package_id")
        nodes = [int(path.name[4:]) for path in folder.glob("node[0-9]*")]
        place = int(socket) if socket.isdigit() else 0, min(nodes, default=0)
        cores.setdefault(siblings, Core(cpu, *place))
    return sorted(cores.values(), key=lambda core: (core.socket, core.node, core.cpu))


def usable_cores(root="/"):
    """Physical cores this process may use: affinity, cgroup quotas and the batch job's allocation.

    Never less than 1. Slurm's and PBS' variables count only inside such a job; Slurm sets
    SLURM_CPUS_PER_TASK only where it was asked for, SLURM_CPUS_ON_NODE always.
    """
    limits = [len(_allowed(root)), *map(math.ceil, _quotas(root))]
    for job, name in (
        ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK"),
        ("SLURM_JOB_ID", "SLURM_CPUS_ON_NODE"),
        ("PBS_JOBID", "NCPUS"),
    ):
        limits.append(_job_number(job, name) or math.inf)
    return max(1, min(limits))


def cores(root="/"):
    """A Core for each physical core that this process may use, `usable_cores` of them."""
    return _allowed(root)[: usable_cores(root)]


def available_memory(root="/"):
    """GiB that new processes may take: the least of what is free, limits of cgroups, job and seat.

    A cgroup's limit counts less what its processes hold, without the file cache that the kernel
    can take back; Slurm's counts whole, which is more than is left where Slurm does not set up
    cgroups. Source of Slurm's variables (MiB): sbatch(1).
    """
    limits = [psutil.virtual_memory().available, *_memory_left(root), *_seat_left()]
    per_cpu = _job_number("SLURM_JOB_ID", "SLURM_MEM_PER_CPU")
    cpus = _job_number("SLURM_JOB_ID", "SLURM_CPUS_ON_NODE")
    if per_cpu and cpus:
        limits.append(per_cpu * cpus * 2**20)
    per_node = _job_number("SLURM_JOB_ID", "SLURM_MEM_PER_NODE")
    if per_node:
        limits.append(per_node * 2**20)
    return max(0, min(limits)) / 2**30


def splits(cores, memory=None, each=2):
    """Ways to share `cores` between processes: {processes: [the CPUs of each]}, fewest first.

    All processes of a split have equally many cores, of one socket; only a single one takes all
    and may span sockets. There are at most six splits: 1, one process per core, and between them
    those nearest to powers of two. What cannot be shared evenly stays unused: see `idle`.
    `memory` (GiB, by default what is available) over `each` (GiB that a process takes) bounds the
    number of processes, but not below 1.
    """
    memory = available_memory() if memory is None else memory
    sockets = {}
    for core in cores:
        sockets.setdefault(core.socket, []).append(core.cpu)
    sizes = {}  # processes: the cores that each can have
    for size in range(len(cores), 0, -1):
        count = sum(len(cpus) // size for cpus in sockets.values())
        if 1 < count <= memory / each:
            sizes.setdefault(count, size)
    shares = {1: [tuple(core.cpu for core in cores)]}
    for count in _near_powers_of_two(sizes):
        size = sizes[count]
        starts = ((cpus, start) for cpus in sockets.values() for start in range(0, len(cpus), size))
        parts = (tuple(cpus[start : start + size]) for cpus, start in starts)
        shares[count] = [part for part in parts if len(part) == size]
    return shares


def _near_powers_of_two(counts, most=5):
    """At most `most` of `counts` in order: the largest, and those nearest to powers of two."""
    if not counts:
        return []
    largest = max(counts)
    powers = [2**power for power in range(1, largest.bit_length())]
    near = {min(counts, key=lambda count: abs(math.log2(count / power))) for power in powers}
    near = sorted(near - {largest})
    if len(near) > most - 1:  # evenly spaced, with both ends
        step = (len(near) - 1) / (most - 2)
        near = [near[round(place * step)] for place in range(most - 1)]
    return [*near, largest]


def idle(cores, parts):
    """The CPUs of `cores` that a split, a list of CPUs of each process, leaves unused."""
    used = set(itertools.chain(*parts))
    return tuple(core.cpu for core in cores if core.cpu not in used)
