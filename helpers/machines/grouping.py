"""Which results may stand side by side: those that differ in the machine, and in nothing else."""

from collections import Counter
from dataclasses import dataclass

from helpers import UserError
from helpers.machines.reading import KINDS

VERSIONS = ("tensorflow", "itex", "onednn", "neural_compressor", "commit")
MIXABLE = ("commit", "threads", "profile", "tensorflow", "itex", "onednn", "neural_compressor")
NAMES = {"tensorflow": "TensorFlow", "itex": "ITEX", "onednn": "oneDNN", "commit": "package"}
NAMES |= {"neural_compressor": "INC"}
ORDER = {name: place for place, name in enumerate(("FP32", "BF16", "INT8"))}


def key_of(entry):
    """What has to be equal of two results: {field: value}, in the order in which it is told."""
    result = entry.result
    layers = result.candidates[0].layers
    instances = sorted({candidate.instances for candidate in result.candidates})
    return {
        "model": result.model,
        "layers": layers.all if layers else None,
        "baseline": entry.baseline,
        "device": result.machine.device,
        "instances": ", ".join(map(str, instances)),
        "profile": result.profile,
        "threads": entry.threads,
        **{name: result.software.get(name) for name in VERSIONS},
    }


@dataclass(frozen=True)
class Group:
    """Results that may be compared, and what they have in common.

    `key` is that of `key_of` without the fields that are mixed on request.
    """

    key: dict
    entries: list
    mixed: dict  # {field: Counter of its values}, where there are several

    @property
    def title(self):
        """What is the same for all, in one line."""
        key = self.key
        parts = [key["model"]]
        parts += [f"{key['profile']} profile"] if "profile" in key else []
        parts += [f"{key['threads']} threads"] if "threads" in key else []
        parts += [f"{key['instances']} instances"] if key["instances"] != "1" else []
        parts += [f"{NAMES[name]} {key[name] or 'unknown'}" for name in VERSIONS if name in key]
        return ", ".join(parts)

    @property
    def mixture(self):
        """A sentence on what is not the same for all, because it was asked for; or None."""
        if not self.mixed:
            return None
        told = [
            f"{NAMES.get(field, field)} ("
            + ", ".join(f"{value or 'unknown'}: {count}" for value, count in values.most_common(5))
            + (", …)" if len(values) > 5 else ")")
            for field, values in self.mixed.items()
        ]
        return f"Mixed, as asked for: {'; '.join(told)}. Part of a difference may come from that."

    @property
    def names(self):
        """Candidates that any of the results has: FP32, BF16, INT8, then others."""
        known = dict.fromkeys(name for entry in self.entries for name in entry.names)
        return sorted(known, key=lambda name: (ORDER.get(name, len(ORDER)), name))

    @property
    def sizes(self):
        return sorted({size for entry in self.entries for size in entry.sizes})

    @property
    def baseline(self):
        return self.key["baseline"]

    @property
    def candidate(self):
        """The candidate that sentences and sorting are about: INT8, or the last there is."""
        return "INT8" if "INT8" in self.names else self.names[-1]

    def at(self, size):
        """The results that were measured at a batch size."""
        return [entry for entry in self.entries if size in entry.sizes]


def groups(entries, mix=()):
    """Results in groups that may be compared, the largest first.

    `mix` names fields of MIXABLE that may differ within a group. Raises UserError for others.
    """
    for field in mix:
        if field not in MIXABLE:
            raise UserError(
                f"Results that differ in '{field}' are not mixed. These may be: {_listed(MIXABLE)}."
            )
    parts = {}
    for entry in entries:
        key = {field: value for field, value in key_of(entry).items() if field not in mix}
        parts.setdefault(tuple(key.items()), []).append(entry)
    made = []
    for key, members in parts.items():
        counts = {field: Counter(key_of(entry)[field] for entry in members) for field in mix}
        mixed = {field: values for field, values in counts.items() if len(values) > 1}
        made.append(Group(dict(key), members, mixed))
    return sorted(made, key=lambda group: (-len(group.entries), group.title))


def chosen(entries, models=(), sizes=(), kinds=()):
    """The entries of some models, batch sizes and kinds of CPU (all where none is named).

    Raises UserError that says what there is, where nothing is left.
    """
    if not entries:
        raise UserError(
            "There is no result to compare. Give a result.json, or a folder that holds some, such "
            "as results/ or outputs/."
        )
    left = [
        entry
        for entry in entries
        if (not models or entry.result.model in models)
        and (not sizes or set(sizes) & set(entry.sizes))
        and (not kinds or any(entry.kind.lower().startswith(kind.lower()) for kind in kinds))
    ]
    if not left:
        raise UserError(
            "No result is left of this choice. There are the models "
            f"{_listed(sorted({entry.result.model for entry in entries}))}; batch sizes "
            f"{_listed(sorted({size for entry in entries for size in entry.sizes}))}; CPUs with "
            f"{_listed(sorted({entry.kind for entry in entries}))}."
        )
    return left


def ordered(entries, name, size, by="throughput"):
    """Entries sorted by a candidate's "throughput" or "ratio", highest first, or by "machine"."""

    def place(entry):
        batch, ratio = entry.batch(name, size), entry.ratio(name, size)
        value = {
            "throughput": batch and -batch.throughput_fps,
            "ratio": ratio and -ratio.throughput_times.median,
            "machine": 0,
        }[by]
        return (value is None, value or 0, entry.cpu, entry.kind, entry.cores, entry.file)

    return sorted(entries, key=place)


def labels(entries):
    """{id(entry): label}: CPU and cores, with a number where several would be the same."""
    plain = [f"{e.cpu}, {e.cores} core{'s' * (e.cores > 1)}" for e in entries]
    counts = Counter((label, e.kind) for label, e in zip(plain, entries))
    seen, told = Counter(), {}
    for label, entry in zip(plain, entries):
        same = label, entry.kind
        seen[same] += 1
        told[id(entry)] = f"{label} #{seen[same]}" if counts[same] > 1 else label
    return told


def by_kind(entries):
    """{kind: entries}, from AMX downwards, those by a cap behind the real ones."""
    parts = {}
    for entry in entries:
        parts.setdefault(entry.kind, []).append(entry)

    def place(kind):
        real = kind.removesuffix(" by cap")
        return (KINDS.index(real) if real in KINDS else len(KINDS), kind != real, kind)

    return {kind: parts[kind] for kind in sorted(parts, key=place)}


def _listed(values):
    return ", ".join(map(str, values)) or "none"
