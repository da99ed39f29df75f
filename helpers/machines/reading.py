"""Reading results: every schema so far, from files and folders, each checked before it is used.

The fields are those of helpers.benchmark.result that a comparison needs. What a file lacks because
it is older is filled in by today's rules or stays None; what is wrong with a file is told in words.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import pydantic

from helpers import machine, stats
from helpers.benchmark.result import SCHEMA

MOST_BYTES = 2_000_000  # a result has some thousands
LONGEST = 80  # characters of a text: names come from anywhere and are shown to others
KNOWN_SINCE = ("candidates", "ratios", "schema")  # what tells a result from other JSON


def _plain(text):
    """A text that harms neither a terminal nor a table: printable, on one line, not long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


Text = Annotated[str, pydantic.AfterValidator(_plain)]
Count = Annotated[int, pydantic.Field(ge=1, le=10**6)]
Positive = Annotated[float, pydantic.Field(gt=0, le=1e12)]


class _Fields(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class Machine(_Fields):
    cpu: Text
    microarchitecture: Text | None = None  # not in schema 1
    physical_cores: Count | None = None
    usable_cores: Count | None = None
    memory_gib: Positive | None = None
    isa: list[Text]
    isa_cap: Text | None = None
    device: Text = "CPU"


class Settings(_Fields):
    threads: Count
    weights: Text | None = None
    data: Text | None = None


class Latency(_Fields):
    p50: Positive
    p90: Positive | None = None
    p99: Positive | None = None
    best: Positive


class Batch(_Fields):
    batch_size: Count
    throughput_fps: Positive
    best_fps: Positive | None = None  # not in schema 1
    latency_ms: Latency

    @property
    def best(self):
        """Images per second of the quickest call, at least what all calls gave."""
        return max(
            self.best_fps or 1e3 * self.batch_size / self.latency_ms.best, self.throughput_fps
        )


class Layers(_Fields):
    all: int


class Accuracy(_Fields):
    top1: float


class Candidate(_Fields):
    name: Text
    runtime: Text = "tensorflow"
    instances: Count = 1
    layers: Layers | None = None
    batches: list[Batch]
    accuracy: Accuracy | None = None


class Times(_Fields):
    median: Positive
    low: Positive
    high: Positive
    best: Positive | None = None
    coverage: float | None = None  # not in schema 1, whose interval is a bootstrap's

    @pydantic.model_validator(mode="after")
    def in_order(self):
        if not self.low <= self.median <= self.high:
            raise ValueError("its interval does not hold its median")
        return self

    @property
    def resolved(self):
        return stats.is_resolved(vars(self))


class Ratio(_Fields):
    candidate: Text
    baseline: Text
    batch_size: Count
    throughput_times: Times
    latency_times: Times

    @property
    def resolved(self):
        return self.throughput_times.resolved and self.latency_times.resolved

    @property
    def verdict(self):
        return stats.verdict(vars(self.throughput_times))


class Noise(_Fields):
    slowdown_percent: float | None = None


class Result(_Fields):
    number: Annotated[int, pydantic.Field(alias="schema", ge=1)]
    model: Text
    profile: Text
    created: Text = ""
    machine: Machine
    software: dict[str, Text | None]
    settings: Settings
    candidates: Annotated[list[Candidate], pydantic.Field(min_length=1)]
    ratios: list[Ratio]
    noise: Noise | None = None

    @pydantic.model_validator(mode="after")
    def of_a_known_schema(self):
        if self.number > SCHEMA:
            raise ValueError(f"schema {self.number} is newer than this package, which has {SCHEMA}")
        names = {candidate.name for candidate in self.candidates}
        for ratio in self.ratios:
            if not {ratio.candidate, ratio.baseline} <= names:
                raise ValueError(f"it has a ratio of {ratio.candidate}, which it has not measured")
        return self


@dataclass(frozen=True)
class Entry:
    """One result with the name of its file, and what a comparison asks of it."""

    file: str
    result: Result

    @cached_property
    def kind(self):
        """What oneDNN could use: one of KINDS, with " by cap" where a cap made it so."""
        flags, cap = self.result.machine.isa, self.result.machine.isa_cap
        if self.result.machine.device != "CPU":
            return self.result.machine.device
        return kind_of(flags) + (" by cap" if cap else "")

    @property
    def threads(self):
        return self.result.settings.threads

    @property
    def cores(self):
        """The physical cores that worked: two threads of a core count once."""
        return min(self.threads, self.result.machine.physical_cores or self.threads)

    @cached_property
    def cpu(self):
        """The CPU's name without what says nothing, with its design where the file knows it."""
        name = self.result.machine.cpu.split("@")[0]
        for noise in ("(R)", "(TM)", "(r)", "(tm)", " CPU", " Processor"):
            name = name.replace(noise, "")
        return " ".join([*name.split(), *(self.result.machine.microarchitecture or "").split()])

    @property
    def baseline(self):
        return self.result.candidates[0].name

    @cached_property
    def names(self):
        return [candidate.name for candidate in self.result.candidates]

    @cached_property
    def sizes(self):
        """The batch sizes that every candidate was measured at."""
        sets = [{batch.batch_size for batch in c.batches} for c in self.result.candidates]
        return sorted(set.intersection(*sets))

    @cached_property
    def _batches(self):
        return {
            (candidate.name, batch.batch_size): batch
            for candidate in self.result.candidates
            for batch in candidate.batches
        }

    @cached_property
    def _ratios(self):
        known = [ratio for ratio in self.result.ratios if ratio.baseline == self.baseline]
        return {(ratio.candidate, ratio.batch_size): ratio for ratio in known}

    def batch(self, name, size):
        """The speeds of a candidate at a batch size, or None."""
        return self._batches.get((name, size))

    def ratio(self, name, size):
        """The ratio of a candidate to the baseline at a batch size, or None."""
        return self._ratios.get((name, size))

    def instances(self, name):
        return next(c.instances for c in self.result.candidates if c.name == name)

    def resolved(self, size, names=()):
        """Whether the ratios at a batch size are (those of `names`, or all); None without any."""
        ratios = [
            ratio
            for (name, at), ratio in self._ratios.items()
            if at == size and (not names or name in names)
        ]
        return all(ratio.resolved for ratio in ratios) if ratios else None


# From the most to the least: what a CPU multiplies INT8 with
KINDS = ("AMX", "VNNI", "VNNI, 256 bits", "AVX-512 without VNNI", "AVX2 only", "no AVX2")


def kind_of(flags):
    """The one of KINDS that a list of machine.ISA_FLAGS is."""
    level = machine.int8_level(flags)
    if level == "VNNI" and "avx512_vnni" not in flags:
        return "VNNI, 256 bits"
    if level != "none":
        return level
    if "avx512f" in flags:
        return "AVX-512 without VNNI"
    return "AVX2 only" if "avx2" in flags else "no AVX2"


@dataclass(frozen=True)
class Files:
    """What was read of some paths: the results, a sentence for each file left out, other JSON."""

    entries: list
    left_out: list
    others: int  # JSON in the folders that does not claim to be a result


def read(paths):
    """The results in files, and in folders searched for *.json: a Files.

    A broken file costs itself only, and so does one that repeats a measurement. Hidden folders and
    virtual environments are not searched, links to folders not followed. Raises nothing for what
    is in the files.
    """
    entries, left_out, others, seen = [], [], 0, {}
    for name, path, given in found(paths):
        try:
            result = read_file(path, given or path.name == "result.json")
        except (ValueError, OSError) as error:
            left_out.append(f"{name}: {reason_of(error)}")
            continue
        if result is None:
            others += 1
            continue
        same = seen.setdefault(_measured(result), name)
        if same != name:
            left_out.append(f"{name}: the same measurement as {same}, counted once")
            continue
        entries.append(Entry(name, result))
    return Files(entries, left_out, others)


def found(paths):
    """(name to show, path, whether it was named itself) of every file, each once.

    The name is the path from the folder where only one was given; of a long one the end.
    """
    seen, paths = set(), [Path(path) for path in paths]
    for given in paths:
        inside = [given] if not given.is_dir() else _json_below(given)
        for path in inside:
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                alone = len(paths) == 1 and path != given
                name = str(path.relative_to(given) if alone else path)
                name = name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
                yield _plain(name), path, path == given


def _json_below(folder):
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not Path(where, name, "pyvenv.cfg").exists()
        )
        wrong = [name for name in folders if name == "result.json"]
        for name in sorted([*files, *wrong]):
            if name.endswith(".json") and not name.startswith("."):
                yield Path(where, name)


def read_file(path, claimed=True):
    """The Result in a file; None where it is other JSON that nobody claimed to be a result.

    Raises ValueError (of which pydantic's is one) with what is wrong with it, and OSError.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError("it is a folder")
    if not path.is_file():
        raise ValueError("there is no such file" if not path.exists() else "it is no plain file")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"it has {size / 1e6:.0f} MB; a result has some kilobytes")
    text = path.read_bytes()
    if not claimed and not any(f'"{word}"'.encode() in text for word in KNOWN_SINCE):
        return None
    return Result.model_validate_json(text)


def reason_of(error):
    """What is wrong with a file, in a few words: of pydantic's errors the first, with its place."""
    if not isinstance(error, pydantic.ValidationError):
        return error.strerror if isinstance(error, OSError) else str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        return f"it is no whole JSON ({first['ctx']['error']})"
    if first["type"] == "missing":
        return f"it lacks {place}"
    if first["type"] == "value_error":
        return f"{place}: {first['ctx']['error']}".removeprefix(": ")
    if not place:
        return "it is JSON, but no result"
    text = first["msg"]
    return _plain(f"{place}: {text[0].lower()}{text[1:]}")


def _measured(result):
    """What two copies of one measurement have in common, whatever was left out of one of them."""
    what = {"created", "model", "ratios"}
    speeds = [c.model_dump(include={"name", "batches"}) for c in result.candidates]
    return json.dumps([result.model_dump(include=what), speeds], sort_keys=True)
