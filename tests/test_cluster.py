"""run_all.sh as a job of a real Slurm: munged, slurmctld and slurmd on loopback, all below tmp."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, reuse_resnet50

from helpers import graphs
from helpers.run import kernel

SCRIPT = ROOT / "run_all.sh"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where the daemons are, for others than root, too
KILL_WAIT = 30  # seconds that Slurm leaves a job between SIGTERM and SIGKILL
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(ready, seconds, what):
    end = time.monotonic() + seconds
    while not (value := ready()):
        assert time.monotonic() < end, f"waited {seconds} s for {what()}"
        time.sleep(0.2)
    return value


class Cluster:
    """One node, this machine. Every process it starts has SLURM_CONF in its environment."""

    def __init__(self, folder, task_plugin):
        self.folder, self.conf, self.daemons = folder, folder / "slurm.conf", []
        # a job's variables must not leak in where the tests run in a job themselves
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.env = {
            **outer,
            "PATH": PATH,
            "SLURM_CONF": str(self.conf),
            "RESNET50_URL": "http://127.0.0.1:9",  # nobody answers: random weights everywhere
        }
        for name in ("state", "spool"):
            (folder / name).mkdir()
        controller, node = free_ports(2)
        host, user = socket.gethostname().split(".")[0], os.getuid()
        hardware = dict(re.findall(r"(\w+)=(\S+)", self.run("slurmd", "-C")))
        self.cpus = int(hardware["CPUs"])
        self.conf.write_text(
            f"""ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait={KILL_WAIT}
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={self.cpus} RealMemory={hardware["RealMemory"]}
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
        )

    def start(self):
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        own = {
            "--key-file": "key", "--socket": "socket", "--pid-file": "pid",
            "--log-file": "log", "--seed-file": "seed",
        }  # fmt: skip
        files = [f"{option}={self.folder}/munge.{name}" for option, name in own.items()]
        # --force: the folder of the socket may be closed to other users here
        self.daemon("munged", "--foreground", "--force", *files)
        wait_until((self.folder / "munge.socket").exists, 20, self.logs)
        self.daemon("slurmctld", "-D", "-i")
        self.daemon("slurmd", "-D")
        wait_until(lambda: "State=IDLE" in self.run("scontrol", "show", "node"), 60, self.logs)

    def daemon(self, *command):
        with open(self.folder / f"{command[0]}.log", "w") as log:
            self.daemons.append(
                subprocess.Popen(command, env=self.env, stdout=log, stderr=log, cwd=self.folder)
            )

    def logs(self):
        parts = [f"{log.name}:\n{log.read_text()[-2000:]}" for log in self.folder.glob("*.log")]
        return "the cluster\n" + "\n".join(parts)

    def stop(self):
        self.run("scancel", "--quiet", f"--user={os.getuid()}")
        for _ in range(100):  # "completing" counts as a job, too
            if not self.run("squeue", "--noheader"):
                break
            time.sleep(0.1)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, *marks):
        """Processes with this cluster's SLURM_CONF, and with `marks`, in their environment."""
        marks, pids = {mark.encode() for mark in (f"SLURM_CONF={self.conf}", *marks)}, []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marks <= set(path.read_bytes().split(b"\0")):
                    pids.append(int(path.parent.name))
            except OSError:  # it has ended, or is not ours
                continue
        return pids

    def of_job(self, number):
        return self.processes(f"SLURM_JOB_ID={number}")

    def run(self, *command):
        return subprocess.run(command, env=self.env, capture_output=True, text=True).stdout

    def submit(self, *words, cwd=ROOT):
        """sbatch with a log file of its own; the job's number."""
        log = self.folder / "job-%j.log"
        done = subprocess.run(
            ["sbatch", "--parsable", f"--output={log}", *map(str, words)],
            cwd=cwd,
            env=self.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number):
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", "-o", number)))

    def log(self, number):
        path = self.folder / f"job-{number}.log"
        return path.read_text() if path.exists() else ""

    def finish(self, number, seconds):
        """Wait for a job's end: (what Slurm says about it, what it printed)."""

        def ended():
            job = self.job(number)
            return job if job["JobState"] in ENDED else None

        job = wait_until(ended, seconds, lambda: f"job {number}\n{self.log(number)}")
        return job, self.log(number)


def start_cluster(folder, task_plugin):
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=PATH)]
    if missing:
        reason = f"no Slurm here ({', '.join(missing)} missing); .ci/run installs it"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    cluster = Cluster(folder, task_plugin)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
    wait_until(lambda: not cluster.processes(), 10, lambda: "the cluster to be gone")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    yield from start_cluster(tmp_path_factory.mktemp("slurm"), "task/none")


def test_a_job_says_what_a_run_says(cluster, tmp_path):
    number = cluster.submit(SCRIPT, "--quick", "01", "--output", tmp_path / "out")
    job, log = cluster.finish(number, 180)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert re.search(r"^01_check_machine +done +\d+ s$", log, re.M), log
    assert json.loads((tmp_path / "out/machine.json").read_text())["usable_cores"] == 1
    assert (tmp_path / "out/notebooks/01_check_machine.ipynb").exists()


def test_a_failed_run_is_a_failed_job(cluster, tmp_path):
    number = cluster.submit(SCRIPT, "nonsense", "--output", tmp_path / "out")
    job, log = cluster.finish(number, 60)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0"), log
    assert "No notebook has 'nonsense'" in log


@pytest.fixture(scope="module")
def cancelled(cluster, whole, tmp_path_factory):
    """A job of notebook 05, cancelled while it measures: (output, job, log, processes left)."""
    output = tmp_path_factory.mktemp("cancelled")
    reuse_resnet50(whole, output)
    both = f"--cpus-per-task={min(2, cluster.cpus)}"
    number = cluster.submit(both, SCRIPT, "resnet50", "--output", output)

    def workers():
        commands = [Path(f"/proc/{pid}/cmdline") for pid in cluster.of_job(number)]
        return [
            path
            for path in commands
            if path.exists() and b"helpers.benchmark.worker" in path.read_bytes()
        ]

    def measuring():
        assert cluster.job(number)["JobState"] not in ENDED, cluster.log(number)
        return (output / "resnet50/predictions/INT8.npy").exists() and len(workers()) >= 2

    wait_until(measuring, 400, lambda: f"the workers\n{cluster.log(number)}")
    subprocess.run(["scancel", number], env=cluster.env, check=True)
    end = time.monotonic() + KILL_WAIT - 5  # before Slurm would kill
    while (left := cluster.of_job(number)) and time.monotonic() < end:
        time.sleep(0.2)
    return (output, *cluster.finish(number, 2 * KILL_WAIT), left)


def test_a_cancelled_job_leaves_nothing_behind(cluster, cancelled):
    output, job, log, left = cancelled
    assert not left, "SIGTERM did not end every process"
    assert job["JobState"] == "CANCELLED" and "Interrupted in 05_benchmark_resnet50" in log, log
    assert not list(output.rglob("*.part")) and not (output / "resnet50/result.json").exists()
    again = cluster.submit(SCRIPT, "--quick", "01", "--output", output)
    job, log = cluster.finish(again, 180)
    assert job["JobState"] == "COMPLETED", log


def test_two_jobs_at_once_keep_to_their_cpus_and_folders(cluster, whole, tmp_path):
    if cluster.cpus < 2:
        pytest.skip("two jobs at once need two CPUs")
    if not (whole / "alexnet/result.json").exists():
        pytest.skip("needs the whole run of test_headless.py")
    jobs, outputs = [], [tmp_path / "one", tmp_path / "two"]
    books = ["04_benchmark_alexnet", "01_check_machine"]
    shutil.copytree(whole / "alexnet/models", outputs[0] / "alexnet/models")
    # Slurm tells a job its CPUs in other variables when it did not ask for a number
    for output, name, options in zip(outputs, books, [["--cpus-per-task=1"], []]):
        short = ["-p", "limit", "5"] if name == books[0] else []
        words = ["--quick", *short, "--output", output, name]
        jobs.append(cluster.submit(*options, SCRIPT, *words))
    wait_until(
        lambda: all(cluster.job(number)["JobState"] == "RUNNING" for number in jobs),
        20,
        lambda: f"both jobs to run: {[cluster.job(number) for number in jobs]}",
    )
    for number, name, output, other in zip(jobs, books, outputs, reversed(outputs)):
        job, log = cluster.finish(number, 600)
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), log
        assert re.search(rf"^{name} +done +\d+ s$", log, re.M), log
        assert str(output) in log and str(other) not in log
        assert [path.stem for path in output.glob("notebooks/*.ipynb")] == [name]
    result = json.loads((outputs[0] / "alexnet/result.json").read_text())
    assert result["settings"]["threads"] == result["machine"]["usable_cores"] == 1
    assert (outputs[0] / "alexnet/fp32_int8_times.png").exists()
    assert json.loads((outputs[1] / "machine.json").read_text())["usable_cores"] == 1


# A notebook that measures one convolution in seconds; the first task of an array waits before that.
TINY = """import os, time
from helpers import benchmark
both = benchmark.candidates(folder + "/fp32.pb", folder + "/int8.pb", bf16=False)
open(output + "/started", "w").close()
time.sleep(100 if os.environ["SLURM_ARRAY_TASK_ID"] == "0" else 0)
benchmark.compare(
    [both[0].variants[0], both[1]], output + "/tiny", model="tiny", batch_sizes=[8],
    profile=profile, seconds=0.05, limit=1, progress=False,
)"""
# What a site's own job script looks like: here the second task stands for a node with AVX2 only.
ARRAY = """#!/bin/bash
caps=(ALL AVX2 ALL)
export ONEDNN_MAX_CPU_ISA=${caps[$SLURM_ARRAY_TASK_ID]}
exec "$CHECKOUT/run_all.sh" --quick --output "$OUTPUT"
"""


@pytest.fixture
def tiny_checkout(tmp_path):
    """A checkout whose only notebook is TINY, with the environment of the tests."""
    checkout = tmp_path / "checkout"
    (checkout / "notebooks").mkdir(parents=True)
    shutil.copy(SCRIPT, checkout)
    shutil.copytree(ROOT / "helpers", checkout / "helpers")
    (checkout / "env_intel_tf").symlink_to(ROOT / "env_intel_tf")
    (checkout / "set_env.sh").write_text("#!/bin/sh\n")
    (checkout / "set_env.sh").chmod(0o755)
    for name, form in (("fp32", "float"), ("int8", "qdq")):
        graphs.write_graph(kernel.graph_of(form), tmp_path / f"{name}.pb")
    new = nbformat.v4
    parameters = f"profile, output, folder = 'full', '', {str(tmp_path)!r}"
    cells = [
        new.new_markdown_cell("# Tiny\n\n**Time**: seconds"),
        new.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new.new_code_cell(TINY),
    ]
    book = new.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(book, checkout / "notebooks" / "01_tiny.ipynb")
    return checkout


def test_an_array_gives_a_result_per_task(cluster, tiny_checkout, tmp_path):
    """Three tasks: one cancelled, one capped to AVX2, one as the CPU is."""
    output, script = tmp_path / "results", tmp_path / "array.sh"
    script.write_text(ARRAY)
    names = f"--export=ALL,CHECKOUT={tiny_checkout},OUTPUT={output}"
    number = cluster.submit(
        "--array=0-2", f"--output={cluster.folder}/job-%A_%a.log", names, script
    )
    wait_until((output / "task_0/started").exists, 120, lambda: cluster.log(f"{number}_0"))
    subprocess.run(["scancel", f"{number}_0"], env=cluster.env, check=True)
    ends = [cluster.finish(f"{number}_{task}", 180) for task in range(3)]
    states = [job["JobState"] for job, _ in ends]
    assert states == ["CANCELLED", "COMPLETED", "COMPLETED"], [log for _, log in ends]
    assert "Interrupted in 01_tiny" in ends[0][1] and not list(output.rglob("*.part"))
    found = {path.parts[-3]: json.loads(path.read_text()) for path in output.rglob("result.json")}
    assert sorted(found) == ["task_1", "task_2"]
    assert [found[task]["machine"]["isa_cap"] for task in sorted(found)] == ["AVX2", None]
    for result in found.values():
        assert list(result["candidates"][1]["kernels"]) == ["s8"]
        assert [ratio["candidate"] for ratio in result["ratios"]] == ["INT8"]


def test_the_checkout_is_found_from_any_folder(cluster, tmp_path):
    for words in ([SCRIPT], [f"--chdir={tmp_path}", SCRIPT]):
        job, log = cluster.finish(cluster.submit(*words, "--list", cwd="/"), 60)
        assert job["JobState"] == "COMPLETED" and "05_benchmark_resnet50" in log, log
    # a copy of the script belongs to the folder it is submitted from
    copy = shutil.copy(SCRIPT, tmp_path / "copy.sh")
    job, log = cluster.finish(cluster.submit(copy, "--list", cwd=ROOT), 60)
    assert job["JobState"] == "COMPLETED" and "05_benchmark_resnet50" in log, log
    job, log = cluster.finish(cluster.submit(copy, "--list", cwd=tmp_path), 60)
    assert job["ExitCode"] == "1:0" and "submit this job from the folder" in log, log


def test_a_bound_job_counts_the_cores_it_is_bound_to(tmp_path):
    """With task/affinity, also where nothing but the affinity tells (no SLURM_CPUS_…)."""
    code = "from helpers import machine; print(machine.usable_cores())"
    python = ROOT / "env_intel_tf/bin/python"
    for cluster in start_cluster(tmp_path, "task/affinity"):
        if cluster.cpus < 2:
            pytest.skip("one CPU cannot tell a bound job from others")
        wrap = f"env -u SLURM_CPUS_ON_NODE -u SLURM_CPUS_PER_TASK {python} -c '{code}'"
        job, log = cluster.finish(cluster.submit("--ntasks=1", f"--wrap={wrap}"), 60)
        assert (job["JobState"], log) == ("COMPLETED", "1\n")
