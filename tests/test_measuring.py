"""How times are taken: the order of turns, when rounds end, what is warm, what a window counts."""

import io
import json
import os
import signal
import threading

import numpy as np
import pytest
from conftest import images

from helpers import UserError, benchmark, graphs, machine
from helpers.benchmark import Candidate, candidate, measurement, peers, processes, worker
from helpers.benchmark.measurement import Field, choose_variants, groups, run_rounds, warm
from helpers.benchmark.processes import Team, teams_for, window
from helpers.stats import Round

EFFORT = {"seconds": 0.1, "min_calls": 1, "min_rounds": 7, "max_rounds": 40, "limit": 1e9}


class FakeTeam:
    """A team whose turns take what `durations(round number)` says; all turns are noted down."""

    def __init__(self, name, seen, durations=lambda number: [1.0], required=True):
        self.name, self.seen, self.durations, self.turns = name, seen, durations, 0
        self.candidate = Candidate(name, None, required=required)

    def turn(self, batch_size, seconds, min_calls):
        self.seen.append((self.name, batch_size))
        self.turns += 1
        return Round.of_calls(batch_size, self.durations(self.turns))

    def stop(self):
        self.seen.append((self.name, "stopped"))


def measured(seen, teams, sizes=(1,), **effort):
    field = Field({team.name: team for team in teams})
    return run_rounds(field, list(sizes), {**EFFORT, **effort}, progress=False), field


def test_the_order_of_teams_is_turned_round_in_every_second_round():
    seen = []
    measured(seen, [FakeTeam(name, seen) for name in "ABC"], (1, 8), max_rounds=3, min_rounds=3)
    one = [("A", 1), ("B", 1), ("C", 1), ("A", 8), ("B", 8), ("C", 8)]
    other = [("C", 1), ("B", 1), ("A", 1), ("C", 8), ("B", 8), ("A", 8)]
    assert seen == one + other + one


def test_rounds_end_when_every_ratio_is_resolved_and_each_size_by_itself():
    def noisy(turns):  # 20 % apart until 30 turns; each round has one at either size while open
        return [1.0 if turns % 2 else 1.2] if turns < 30 else [1.1]

    seen = []
    even, rough = FakeTeam("A", seen), FakeTeam("B", seen, lambda turns: [2.0])
    rounds, _ = measured(seen, [even, rough])
    assert len(rounds["A", 1]) == 7, "resolved, and yet it went on"
    rounds, _ = measured(seen, [FakeTeam("A", seen), FakeTeam("B", seen, noisy)])
    assert 30 < len(rounds["B", 1]) <= 40
    rounds, _ = measured(seen, [FakeTeam("A", seen), FakeTeam("B", seen, noisy)], max_rounds=9)
    assert len(rounds["B", 1]) == 9


def test_rounds_end_at_the_time_limit_but_not_before_there_are_enough(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measurement, "CLOCK", lambda: now[0])

    def slow(turns):
        now[0] += 10
        return [float(turns)]

    for limit, expected in ((95, 9), (5, 7)):
        seen = []
        teams = [FakeTeam("A", seen, lambda turns: [1.0]), FakeTeam("B", seen, slow)]
        rounds, _ = measured(seen, teams, limit=limit)
        assert len(rounds["B", 1]) == expected


def test_a_team_that_may_fail_costs_its_bar_and_not_the_measurement():
    def dies(turns):
        if turns == 3:
            raise UserError("B was ended by SIGSEGV")
        return [1.0]

    seen = []
    teams = [FakeTeam("A", seen), FakeTeam("B", seen, dies, required=False), FakeTeam("C", seen)]
    rounds, field = measured(seen, teams)
    assert list(field.teams) == ["A", "C"] and len(rounds["A", 1]) == len(rounds["C", 1]) == 7
    assert field.failed == {"B": "B was ended by SIGSEGV"} and ("B", "stopped") in seen
    with pytest.raises(UserError, match="SIGSEGV"):
        measured(seen, [FakeTeam("A", seen), FakeTeam("B", seen, dies)])


class FakeWorker:
    """A worker that notes requests and answers from a list of durations per request."""

    def __init__(self, durations=(1.0,)):
        self.asked, self.durations = [], list(durations)

    def ask(self, do, **request):
        self.asked.append((do, request))
        return [self.durations[0]] if len(self.durations) == 1 else [self.durations.pop(0)]


def team_of(workers, variants=()):
    team = Team.__new__(Team)
    candidates = [Candidate("FP32", None, variant=name) for name in variants]
    team.candidate = Candidate("FP32", None, variant="ITEX", variants=candidates)
    team.workers, team.fastest, team.name = workers, {}, "FP32"
    return team


def test_every_process_is_warmed_up_at_every_size():
    workers = [FakeWorker(), FakeWorker()]
    warm(team_of(workers), [1, 32], 1.0)
    for one in workers:
        sizes = [(do, request["batch_size"]) for do, request in one.asked]
        assert sizes == [("warm", 1), ("warm", 32)]
        assert all(request["seconds"] == 0.3 for _, request in one.asked)


@pytest.mark.parametrize(("itex", "stock", "taken"), [(1.0, 0.8, 1), (1.0, 0.97, 0), (0.8, 1.0, 0)])
def test_the_clearly_faster_variant_is_measured(itex, stock, taken):
    workers = [FakeWorker([itex]), FakeWorker([stock])]
    team = team_of(workers, ["without ITEX"])
    (entry,) = choose_variants(team, [32])
    assert team.worker(32) is workers[taken]
    assert entry["variant"] == ("ITEX", "without ITEX")[taken]
    assert entry["best_ms"] == {"ITEX": 1e3 * itex, "without ITEX": 1e3 * stock}
    team.turn(32, 0.5, 3)
    assert workers[taken].asked[-1] == (
        "time", {"batch_size": 32, "seconds": 0.5, "min_calls": 3}
    )  # fmt: skip


def test_candidates_that_do_not_fit_into_memory_are_measured_in_groups(monkeypatch, tmp_path):
    (tmp_path / "graph.pb").write_bytes(b"x")
    chosen = [Candidate(name, tmp_path / "graph.pb") for name in ("one", "two", "three", "four")]

    def names():
        return [[candidate.name for candidate in group] for group in groups(chosen)]

    monkeypatch.setattr(machine, "available_memory", lambda: 1.7)
    assert names() == [["one", "two"], ["one", "three"], ["one", "four"]]
    monkeypatch.setattr(machine, "available_memory", lambda: 2.5)
    assert names() == [["one", "two", "three"], ["one", "four"]]
    monkeypatch.setattr(machine, "available_memory", lambda: 0.1)  # two at least, or no ratio
    assert names() == [["one", "two"], ["one", "three"], ["one", "four"]]
    monkeypatch.setattr(machine, "available_memory", lambda: 100)
    assert names() == [["one", "two", "three", "four"]]
    assert groups(chosen[:1]) == [chosen[:1]]
    monkeypatch.setattr(machine, "available_memory", lambda: 2.5)  # a control in every group
    both = [[candidate.name for candidate in group] for group in groups(chosen, beside=2)]
    assert both == [["one", "two", "three"], ["one", "two", "four"]]
    others = [
        Candidate(f"{name} INT8", tmp_path / "graph.pb", runtime=name) for name in peers.NAMES
    ]
    monkeypatch.setattr(machine, "available_memory", lambda: 2.5)
    mixed = [[candidate.name for candidate in group] for group in groups([*chosen[:3], *others])]
    assert mixed == [["one", "two", "three"]] + [["one", "three", other.name] for other in others]


def test_a_group_repeats_no_ratio_but_those_of_controls():
    def ratio(name, baseline):
        return {"candidate": name, "baseline": baseline}

    known = {"FP32", "INT8", "OpenVINO INT8"}
    new = [ratio("LiteRT INT8", "FP32"), ratio("INT8", "LiteRT INT8")]
    ratios = [ratio("INT8", "FP32"), *new]
    assert measurement.without_repeated(ratios, {"INT8", "OpenVINO INT8"}, known) == new
    assert measurement.without_repeated(ratios, {"OpenVINO INT8"}, known) == ratios


def test_seats_take_turns_where_their_memory_does_not_hold_all(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(processes, "TURN", tmp_path / "turn")
    monkeypatch.setattr(machine, "available_memory", lambda: 2.0)
    monkeypatch.setenv("SEAT_MEMORY", f"{os.getpid()} 4.5")
    order = []

    def other(gib):
        with processes.turn(gib):
            order.append(gib)

    with processes.turn(3.0):  # this seat has the turn
        waiting = threading.Thread(target=other, args=[5.0])
        waiting.start()
        other(1.0)  # what fits into its own memory waits for nobody
        waiting.join(0.5)
        assert order == [1.0] and waiting.is_alive()
    waiting.join(10)
    assert order == [1.0, 5.0]
    assert capsys.readouterr().out.count("it waits until another seat has measured") == 1
    monkeypatch.delenv("SEAT_MEMORY")
    with processes.turn(9.0):  # without seats nobody waits
        other(8.0)
    assert order[-1] == 8.0


def test_a_window_counts_what_lies_within_it():
    """Calls of 1 s and of 4 s: 6 s hold 6 and 1.5 of them, though none starts at the window."""
    calls = [(first, first + 1.0) for first in np.arange(-1.5, 7.5, 1.0)]
    calls += [(first, first + 4.0) for first in np.arange(-3.0, 7.0, 4.0)]
    found = window(8, calls, 0.0, 6.0)
    assert found.images == pytest.approx(8 * (6 + 1.5))
    assert found.fps == found.best_fps == pytest.approx(8 * 7.5 / 6)
    assert sorted(found.calls) == [1.0] * 7 + [4.0] * 3


class Clock:
    """A clock that only calls move."""

    def __init__(self, durations, then):
        self.now, self.durations, self.then, self.calls = 0.0, iter(durations), then, 0

    def __call__(self):
        return self.now

    def call(self):
        self.calls += 1
        self.now += next(self.durations, self.then)


@pytest.fixture
def clock(monkeypatch):
    def of(durations, then):
        made = Clock(durations, then)
        monkeypatch.setattr(worker, "CLOCK", made)
        return made

    return of


def test_timing_meets_both_minimums(clock):
    ticks = clock([], 0.25)
    assert worker.time_calls(ticks.call, 0, 7) == [0.25] * 7
    assert worker.time_calls(ticks.call, 1.0, 1) == [0.25] * 4


def test_warm_up_goes_on_until_times_settle(clock):
    ticks = clock([9, 1.6, 0.8, 0.4], 0.4)
    best = pytest.approx(0.4)
    assert worker.warm_up(ticks.call, 0.01) == {"calls": 5, "settled": True, "best": best}


def test_the_first_call_of_a_warm_up_counts_for_nothing(clock):
    """It may also be quicker than any other, as one that fails to do the work."""
    ticks = clock([0.01], 1.0)
    assert worker.warm_up(ticks.call, 0.5)["calls"] == 1 + 2


def test_warm_up_gives_up_at_its_limit(clock):
    ticks = clock([2.0**-n for n in range(40)], 1e-9)
    found = worker.warm_up(ticks.call, 0, limit_seconds=0.9)
    assert not found["settled"]


class Graph:
    facts, signature = {"device": "CPU"}, graphs.Signature("input", "output", (5,), "float32")

    def __init__(self, call=lambda batch: None):
        self.call = call

    def __call__(self, batch):
        return self.call(batch)


def serve(graph, tmp_path, *requests, count=3):
    np.save(tmp_path / "inputs.npy", np.arange(5.0 * count).reshape(count, 5))  # float64
    first = {"do": "inputs", "path": str(tmp_path / "inputs.npy"), "batch_sizes": []}
    answers = []
    worker.serve(graph, map(json.dumps, [first, *requests]), answers.append)
    return [answer["value"] for answer in answers]


def test_a_turn_starts_with_a_call_that_does_not_count(clock, tmp_path):
    ticks = clock([7.0], 1.0)
    request = {"do": "time", "batch_size": 2, "seconds": 0, "min_calls": 2}
    *_, times = serve(Graph(lambda batch: ticks.call()), tmp_path, request)
    assert times == [1.0, 1.0] and ticks.calls == 3


def test_the_call_before_long_ones_is_of_the_smallest_batch(clock, tmp_path):
    """Batch 1 takes 0.1 s, batch 9 takes 0.9 s: two turns of one call each, after a warm-up."""
    ticks, sizes = clock([], 0.1), []

    def call(batch):
        sizes.append(len(batch))
        ticks.now += 0.1 * len(batch)

    warm = [{"do": "warm", "batch_size": size, "seconds": 0.01} for size in (1, 9)]
    turn = [{"do": "time", "batch_size": size, "seconds": 0, "min_calls": 1} for size in (9, 1)]
    *_, nine, one = serve(Graph(call), tmp_path, *warm, *turn)
    assert sizes[-4:] == [1, 9, 1, 1]
    assert nine == [pytest.approx(0.9)] and one == [pytest.approx(0.1)]


def test_a_worker_calls_its_graph_with_aligned_batches_of_the_first_images(tmp_path):
    batches = []
    requests = [
        {"do": "time", "batch_size": size, "seconds": 0, "min_calls": 1} for size in (1, 2, 7)
    ]
    serve(Graph(batches.append), tmp_path, *requests)
    assert {batch.ctypes.data % 64 for batch in batches} == {0}
    assert {batch.dtype for batch in batches} == {np.dtype(np.float32)}
    assert batches[-1][:, 0].tolist() == [0, 5, 10, 0, 5, 10, 0]


@pytest.mark.parametrize("offset", [0, 4, 16, 60])
def test_batches_start_where_tensorflow_takes_them_as_they_are(offset):
    room = np.arange(4 * 3 * 5 * 7 + 64, dtype=np.uint8)
    array = room[offset : offset + 4 * 3 * 5 * 7].view(np.float32).reshape(3, 5, 7)
    copy = worker.aligned(array)
    assert copy.ctypes.data % 64 == 0 and copy.flags.c_contiguous and copy.dtype == np.float32
    assert copy.tobytes() == array.tobytes() and copy.shape == array.shape


def test_a_process_inherits_nothing_that_steers_it_but_the_cap(monkeypatch):
    for name in ("ITEX_AUTO_MIXED_PRECISION", "TF_DISABLE_MKL", "OMP_PROC_BIND", "ONEDNN_VERBOSE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    variables = candidate.environment(3, {"ITEX_LAYOUT_OPT": "1"})
    assert candidate.steering(variables) == {
        "ITEX_LAYOUT_OPT": "1",
        "KMP_BLOCKTIME": "1",
        "OMP_NUM_THREADS": "3",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "3",
        "_ONEDNN_CONSTANT_CACHE": "1",
    }
    assert variables["PATH"] == os.environ["PATH"] and "MPLBACKEND" not in variables


def test_knobs_reach_the_process(small, tmp_path):
    knobbed = Candidate("INT8", small["int8"], {"ITEX_LAYOUT_OPT": "1", "OMP_NUM_THREADS": "1"})
    with teams_for([knobbed], 2, tmp_path) as teams:
        teams["INT8"].start()
        found = teams["INT8"].facts["environment"]
    assert found["ITEX_LAYOUT_OPT"] == "1" and found["OMP_NUM_THREADS"] == "1"
    assert found["TF_NUM_INTRAOP_THREADS"] == "2"


def test_instances_run_at_the_same_time_on_their_own_cpus(small, tmp_path):
    cpu = min(os.sched_getaffinity(0))
    alone = Candidate("alone", small["int8"], instances=((cpu,),))
    both = Candidate("both", small["int8"], instances=((cpu,), (cpu,)))
    np.save(tmp_path / "inputs.npy", images(8))
    with teams_for([alone, both], 1, tmp_path) as teams:
        for team in teams.values():
            team.start()
            team.each("inputs", path=str(tmp_path / "inputs.npy"), batch_sizes=[4])
            for one in team.workers:
                assert os.sched_getaffinity(one.process.pid) == {cpu}
        for team in teams.values():
            turn = team.turn(4, 0.5, 1)
            assert turn.seconds == pytest.approx(0.5) and turn.images > 0
            assert len(turn.calls) >= len(team.workers)


def test_workers_end_with_the_block(small, tmp_path):
    with (
        pytest.raises(RuntimeError, match="stop"),
        teams_for([Candidate("INT8", small["int8"])], 1, tmp_path) as teams,
    ):
        process = teams["INT8"].workers[0].process
        raise RuntimeError("stop")
    assert process.poll() is not None


def test_a_worker_that_dies_is_told_with_its_signal_and_the_others_end(small, tmp_path):
    """Also while a request is still on its way to it, which must not hide what happened."""
    chosen = [Candidate("FP32", small["fp32"]), Candidate("INT8", small["int8"])]
    with (
        pytest.raises(
            UserError, match=r"INT8 process was ended by signal SIGSEGV.*worker_int8\.log"
        ),
        teams_for(chosen, 1, tmp_path) as teams,
    ):
        started = [team.workers[0].process for team in teams.values()]
        for team in teams.values():
            team.start()
        os.kill(started[1].pid, signal.SIGSEGV)
        started[1].wait()
        for _ in range(3):
            teams["INT8"].workers[0].tell({"do": "inputs", "path": "x" * 9000, "batch_sizes": []})
        teams["INT8"].workers[0].hear()
    assert all(process.poll() is not None for process in started)


def test_an_error_without_words_is_told(monkeypatch, capfd):
    def load(job):
        raise NotImplementedError

    monkeypatch.setattr(worker.runtimes, "load", load)
    monkeypatch.setattr(worker.gc, "disable", lambda: None)
    monkeypatch.setattr("sys.stdin", io.StringIO("{}\n"))
    saved = os.dup(1)
    with pytest.raises(NotImplementedError):
        worker.main()
    os.dup2(saved, 1)
    os.close(saved)
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert answer == {"error": "NotImplementedError: no further word"}


def test_bf16_is_not_started_where_the_cpu_has_none(monkeypatch, small):
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    bf16 = Candidate("BF16", small["fp32"], candidate.BF16_KNOBS)
    with pytest.raises(UserError, match=r"no BF16 instructions \(oneDNN is capped at AVX2\)"):
        measurement.ready_to_start([bf16])
    bf16.required = False
    fp32 = Candidate("FP32", small["fp32"])
    ready, failed = measurement.ready_to_start([fp32, bf16])
    assert ready == [fp32] and "was not started" in failed["BF16"]
    assert [c.name for c in candidate.candidates("a.pb", "b.pb")] == ["FP32", "INT8"]


@pytest.mark.parametrize(("room", "most"), [(1e-9, 1), (1e9, 2)])
def test_graphs_are_optimised_at_once_only_where_memory_holds_it(
    small, tmp_path, monkeypatch, room, most
):
    """Optimising takes more than what a process keeps: of VGG16 four at once ended a machine."""
    at_once, open_requests = [], set()
    tell, hear = processes.Worker.tell, processes.Worker.hear

    def told(self, request):
        if request.get("do") == "inputs":
            open_requests.add(self)
            at_once.append(len(open_requests))
        tell(self, request)

    def heard(self):
        open_requests.discard(self)
        return hear(self)

    monkeypatch.setattr(processes.Worker, "tell", told)
    monkeypatch.setattr(processes.Worker, "hear", heard)
    monkeypatch.setattr(measurement, "OPTIMISING", 1 / room)
    chosen = [Candidate("FP32", small["fp32"]), Candidate("INT8", small["int8"])]
    effort = {"seconds": 0.02, "min_calls": 1, "min_rounds": 2, "max_rounds": 2}
    benchmark.measure(chosen, tmp_path, images(8), batch_sizes=[4], progress=False, **effort)
    assert max(at_once) == most and len(at_once) == 2
