"""A result of one's own for everybody: whether it is fit for that, its name, what it may hold.

`anonymous` lets through what it knows, and nothing else: numbers, and texts of a few known forms.
So no name of a person, a host, a folder or a file of one's own can be in what it gives.
"""

import json
import re

import pydantic

from helpers import UserError, machine
from helpers.benchmark.result import SCHEMA, Result
from helpers.machines.grouping import VERSIONS
from helpers.machines.reading import Entry, kind_of, reason_of
from helpers.machines.reading import Result as Readable

BATCH_SIZES = {"alexnet": [1, 64, 512], "resnet50": [1, 32]}  # of the full profile
MACHINE = ("cpu", "microarchitecture", "isa", "isa_cap", "usable_cores", "memory_gib")
VERSION = r"\d+(?:\.\d+)*"
GRAPHS = (
    r"(?:models/)?(?:alexnet_(?:fp32|int8)|(?:int8_of_)?resnet50_fp32_(?:random|imagenet|"
    r"pretrained_model)|resnet50_int8_pretrained_model|fp32|int8)\.pb"
)
NAMES = "FP32|BF16|INT8"
# What a text may be, by the name of its field. Of one that begins so, only the beginning is kept
TEXTS = {
    "model": "|".join(BATCH_SIZES),
    "profile": "full",
    "created": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "cpu": r"[\w ()@.,+-]{1,60}",
    "microarchitecture": "|".join(machine.DESIGNS),
    "isa": "|".join(machine.ISA_FLAGS),
    "isa_cap": r"[A-Z][A-Z0-9_]{2,20}",
    "device": "CPU",
    "os": rf"Linux {VERSION}",
    "weights": "published|pretrained|imagenet|random, seed 0|trained by notebook 02",
    "data": "MNIST test set|dummy images",
    "name": NAMES,
    "candidate": NAMES,
    "baseline": NAMES,
    "graph": GRAPHS,
    "sha256": "[0-9a-f]{64}",
    "runtime": "tensorflow",
    "kernels_source": "oneDNN's log|TensorFlow's graph",
    "variant": "ITEX|without ITEX",
    "verdict": "faster|slower|no effect|not resolved|steady|noisy",
    "commit": "[0-9a-f]{7,40}",
    **dict.fromkeys(("python", "tensorflow", "itex", "neural_compressor", "numpy"), VERSION),
    "onednn": VERSION,
}
STEERING = (
    "(?:ITEX|TF)_CPP_MIN_LOG_LEVEL|KMP_BLOCKTIME|OMP_NUM_THREADS|TF_ENABLE_ONEDNN_OPTS|"
    "TF_ONEDNN_THREADPOOL_USE_CALLER_THREAD|TF_NUM_INT(?:ER|RA)OP_THREADS|_ONEDNN_CONSTANT_CACHE|ONEDNN_MAX_CPU_ISA|"
    "ITEX_AUTO_MIXED_PRECISION(?:_DATA_TYPE)?"
)
# The fields whose own fields are not fixed: what these may be called
OPEN = {"environment": STEERING, "knobs": STEERING, "kernels": r"[a-z]+\d+", "agreement": NAMES}
OPEN |= {"best_ms": TEXTS["variant"], "failed": NAMES}
VALUE = r"\d{1,6}|BFLOAT16|(?:AVX|SSE)[A-Z0-9_]{1,20}"  # of a variable that steers
BEGINNING = {"os", *VERSIONS, "python", "numpy"} - {"commit"}
OTHERWISE = {"weights": "others", "data": "others", "graph": "another", "gpus": None}


def lacking(result, here, software):
    """What keeps a result (a dict as in result.json) from being contributed: sentences.

    `here` is `machine.describe()` and `software` `machine.software()` of where that is asked.
    """
    try:
        typed = pydantic.TypeAdapter(Result).validate_python(result)
        entry = Entry("", Readable.model_validate_json(json.dumps(result)))
    except ValueError as error:  # of which pydantic's is one
        return [f"it is no whole result ({reason_of(error)})"]
    return [
        *_settings(typed),
        *_origin(typed, here, software),
        *_completeness(entry, typed),
        *_resolution(entry),
    ]


def _settings(result):
    if result["schema"] != SCHEMA:
        yield f"it has schema {result['schema']}, this package writes {SCHEMA}"
    if result["profile"] != "full":
        yield f"it was measured on {result['profile']} settings, not on full ones"
    if result["model"] not in BATCH_SIZES:
        yield f"its model is {result['model']}; contributed are {', '.join(BATCH_SIZES)}"
    if result["machine"]["device"] != "CPU":
        yield "it did not run on the CPU"


def _origin(result, here, software):
    changed = [name for name in MACHINE if result["machine"].get(name) != here.get(name)]
    if changed:
        yield f"it is not of this machine as it is now ({', '.join(changed)} differ)"
    if result["software"]["commit"] != software["commit"]:
        known, now = result["software"]["commit"], software["commit"]
        yield f"it is of commit {known or 'unknown'} of this package, here is {now or 'none'}"
    names = [name for name in VERSIONS if name not in ("onednn", "commit")]
    other = [name for name in names if result["software"][name] != software[name]]
    if other:
        yield f"it was measured with other versions ({', '.join(other)})"
    if not result["software"]["onednn"]:
        yield "it does not say which oneDNN ran"


def _completeness(entry, result):
    wanted = ["FP32", *(["BF16"] if machine.has_bf16(result["machine"]["isa"]) else []), "INT8"]
    for name in wanted:
        if name not in entry.names:
            yield f"{name} was not measured"
    sizes = BATCH_SIZES.get(result["model"], [])
    for name in entry.names:
        absent = [str(size) for size in sizes if not entry.batch(name, size)]
        if absent:
            yield f"{name} was not measured at batch {', '.join(absent)}"
        gaps = [
            str(size) for size in sizes if name != entry.baseline and not entry.ratio(name, size)
        ]
        if gaps and not absent:
            yield f"the ratio of {name} is missing at batch {', '.join(gaps)}"
    yield from (f"{name} was left out: it failed" for name in result["failed"])


def _resolution(entry):
    wide = [
        f"{ratio.candidate} at batch {ratio.batch_size}"
        for ratio in entry.result.ratios
        if not ratio.resolved
    ]
    if wide:
        yield (
            f"{len(wide)} of {len(entry.result.ratios)} ratios are not resolved to within ±5 % "
            f"({', '.join(wide)}): measure at a quieter hour, or longer, with -p limit 600"
        )


def anonymous(result):
    """A result without anything that could name somebody or something of theirs.

    Raises UserError for a text of an unknown form in a field that a result cannot do without.
    """
    return _clean(pydantic.TypeAdapter(Result).validate_python(result))


def _clean(value, field="", within=""):
    if isinstance(value, dict):
        known = {
            name: part
            for name, part in value.items()
            if field not in OPEN or re.fullmatch(OPEN[field], name)
        }
        found = {name: _clean(part, name, field) for name, part in known.items()}
        return {name: part for name, part in found.items() if part is not None or field not in OPEN}
    if isinstance(value, list):
        found = [_clean(part, field, within) for part in value]
        return [part for part in found if part is not None or field != "gpus"]
    return _text(value, field, within) if isinstance(value, str) else value


def _text(text, field, within):
    if within in OPEN:
        return text if re.fullmatch(VALUE, text) else None
    pattern = TEXTS.get(field, "")
    if re.fullmatch(pattern, text):
        return text
    start = re.match(pattern, text) if field in BEGINNING else None
    if start:
        return start[0]
    if field in OTHERWISE:
        return OTHERWISE[field]
    raise UserError(f"'{field}' of the result holds a text that this package does not write.")


def file_name(result):
    """<cpu>-<kind>-<cores>-cores_<model>.json; the kind is the design, or what INT8 runs on."""
    entry = Entry("", Readable.model_validate_json(json.dumps(result)))
    facts = entry.result.machine
    design = facts.microarchitecture or kind_of(facts.isa).split(" only")[0].split(" without")[0]
    cpu = entry.cpu.removesuffix(facts.microarchitecture or "")
    cap = ["capped", facts.isa_cap] if facts.isa_cap else []
    words = [cpu, design.replace(" ", ""), *cap, str(entry.cores), "cores"]
    slug = "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)
    return f"{slug}_{entry.result.model}.json"
