"""The processes that measure candidates: one per candidate, or several at the same time."""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import subprocess
from pathlib import Path

from helpers import UserError, machine, topology
from helpers.benchmark.candidate import CLOCK, environment, python_of
from helpers.stats import Round

OPENING = 0.05  # seconds in which all instances get busy before their common window opens
TURN = Path("/dev/shm/int8_tutorial_turn")  # locked by the seat of this machine whose turn it is


class ProcessEnded(UserError):
    """Native code ended a process that runs a candidate."""


class Worker:
    """A process that holds one candidate; `ask` sends a request and waits for the answer."""

    def __init__(self, candidate, threads, log, cpus=None):
        self.name, self.log = candidate.name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                [python_of(candidate.runtime), "-P", "-m", "helpers.benchmark.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment(threads, candidate.knobs),
            )
        job = dataclasses.asdict(dataclasses.replace(candidate, variants=[]))
        self.tell({**job, "graph": str(candidate.graph), "threads": threads, "cpus": cpus})

    def tell(self, request):
        with contextlib.suppress(BrokenPipeError):  # `hear` says that the process has ended
            print(json.dumps(request), file=self.process.stdin, flush=True)

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            ended = machine.ending(self.process.wait())
            raise ProcessEnded(f"The {self.name} process {ended}. Its log: {self.log}")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"{self.name}: {answer['error']} Its log: {self.log}")
        return answer["value"]

    def ask(self, do, **request):
        self.tell({"do": do, **request})
        return self.hear()

    def stop(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):  # what it was told last is still unsent
                pipe.close()


class Team:
    """All processes of a candidate: its instances, or one per variant.

    `facts` is what the first process says of its graph, after `start`.
    """

    def __init__(self, candidate, threads, logs):
        self.candidate, self.name = candidate, candidate.name
        self.workers, self.fastest = [], {}
        stem = self.name.lower().replace(" ", "_").replace(",", "")
        jobs = [(candidate, cpus) for cpus in candidate.instances]
        jobs = jobs or [(one, None) for one in (candidate, *candidate.variants)]
        try:
            for number, (one, cpus) in enumerate(jobs):
                log = Path(logs) / f"worker_{stem}{f'_{number}' if number else ''}.log"
                own = len(cpus) if cpus else threads
                self.workers.append(Worker(one, own, log, cpus))
        except BaseException:
            self.stop()
            raise

    def start(self):
        """Wait until all have loaded their graph."""
        facts = [worker.hear() for worker in self.workers]
        self.facts = facts[0]

    def worker(self, batch_size):
        """The process whose variant is measured at this batch size."""
        return self.workers[self.fastest.get(batch_size, 0)]

    def each(self, do, **request):
        """Ask all processes at once; the answers in their order."""
        for worker in self.workers:
            worker.tell({"do": do, **request})
        return [worker.hear() for worker in self.workers]

    def turn(self, batch_size, seconds, min_calls):
        """One turn at a batch size: a Round.

        One process makes a call that does not count, because another process has had the caches
        (see `worker.Server.time`), then calls for `seconds`, at least `min_calls` times. Several
        work at the same time, and the share of each call counts that lies within a common window.
        """
        if not self.candidate.instances:
            request = {"batch_size": batch_size, "seconds": seconds, "min_calls": min_calls}
            return Round.of_calls(batch_size, self.worker(batch_size).ask("time", **request))
        start = CLOCK() + OPENING
        marks = self.each("window", batch_size=batch_size, end=start + seconds)
        calls = list(itertools.chain.from_iterable(marks))
        return window(batch_size, calls, start, start + seconds)

    def stop(self):
        for worker in self.workers:
            worker.stop()


def window(batch_size, calls, start, end):
    """The Round of calls (start, end) of several processes, as far as they lie within a window."""
    inside = [(max(first, start), min(last, end), last - first) for first, last in calls]
    shares = [(last - first) / whole for first, last, whole in inside if last > first]
    durations = [whole for first, last, whole in inside if last > first]
    images = batch_size * sum(shares)
    return Round(durations, images, end - start, images / (end - start))


@contextlib.contextmanager
def turn(gib):
    """Where a seat's memory does not hold `gib`, wait until no other such seat is in this block."""
    if topology.SEAT_MEMORY not in os.environ or gib <= machine.available_memory():
        yield
        return
    with contextlib.suppress(FileExistsError):
        created = os.open(TURN, os.O_CREAT | os.O_EXCL)
        os.fchmod(created, 0o644)
        os.close(created)
    with open(TURN) as file:  # another user's may only be read, which is enough for a lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("This seat's memory is short: it waits until another seat has measured.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def teams_for(chosen, threads, logs):
    """Start a Team per candidate, give them by name; end them all however the block ends."""
    teams = {}
    with turn(sum(candidate.gib for candidate in chosen)):
        try:
            for candidate in chosen:
                teams[candidate.name] = Team(candidate, threads, logs)
            yield teams
        finally:
            for team in teams.values():
                team.stop()
