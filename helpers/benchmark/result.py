"""The fields of result.json, one a line: what is written, and what readers can rely on.

Readers accept older schemas; tests/test_result.py holds that what is written has this form.
"""

from typing import NotRequired

from typing_extensions import TypedDict

SCHEMA = 2  # 1: no kernels, environment, sha256; the interval was a bootstrap's


class Machine(TypedDict):
    cpu: str  # the model as the CPU names itself
    microarchitecture: str | None  # where the model does not say it and it is known: Zen 3
    logical_cores: int
    physical_cores: int
    usable_cores: int  # that this process may use: affinity, quota, the batch job's allocation
    sockets: int
    memory_gib: float
    isa: list[str]  # the flags of machine.ISA_FLAGS that oneDNN may use
    isa_cap: str | None  # ONEDNN_MAX_CPU_ISA, where it is set
    gpus: list[str]  # render nodes of Intel GPUs
    device: str  # CPU, or XPU: where the graphs ran
    os: str


class Software(TypedDict):
    python: str
    tensorflow: str | None
    itex: str | None
    neural_compressor: str | None
    numpy: str | None
    onednn: str | None  # the one that ITEX brings
    tensorflow_current: NotRequired[str]  # that of env_current/, where it ran a candidate
    commit: str | None  # of this package, with + where files were changed


class Settings(TypedDict):
    threads: int
    batch_sizes: list[int]
    seconds: float  # of a turn
    min_calls: int  # of a turn
    min_rounds: int
    max_rounds: int
    limit: float  # seconds of measuring after which no further round begins
    weights: NotRequired[str]  # "pretrained", "imagenet", "random, seed 0", …
    data: NotRequired[str]


class Latency(TypedDict):
    p50: float  # ms of one call, the median
    p90: float | None  # None where there were fewer than 20 calls
    p99: float | None  # None where there were fewer than 200 calls
    best: float
    mean: float


class Batch(TypedDict):
    batch_size: int
    calls: int
    rounds: int
    throughput_fps: float  # images per second over all calls of all rounds
    best_fps: float  # that of the quickest call, or of the best window of several instances
    latency_ms: Latency


class Kernels(TypedDict):
    count: int  # layers (convolutions, matrix products) executed for one call
    share: float | None  # of the call's time, None where the runtime does not tell


class Variant(TypedDict):
    batch_size: int
    variant: str  # the one that was measured
    best_ms: dict[str, float]  # the best call of each before the measurement


class Accuracy(TypedDict):
    top1: float  # share of right classes
    images: int


class Layers(TypedDict):
    int8: int  # as the file says; what ran is in kernels
    all: int


class Candidate(TypedDict):
    name: str
    graph: str  # the file, relative to the result
    sha256: str  # of the file
    bytes: int
    runtime: str  # tensorflow, tensorflow-current, openvino, onnxruntime, litert
    knobs: dict[str, str]  # variables in which it differs from the others
    environment: dict  # all variables in force that steer TensorFlow, ITEX, oneDNN, OpenMP
    instances: int  # processes that worked at the same time
    layers: Layers
    kernels: dict[str, Kernels]  # by the type of the weights: s8, bf16, f32
    kernels_source: str  # who told
    variants: list[Variant]  # empty where there was no choice
    batches: list[Batch]
    accuracy: Accuracy | None


class Times(TypedDict):
    median: float  # over rounds, of the ratio within one round
    low: float  # the interval that holds the true median …
    high: float
    coverage: float  # … with this probability
    best: float  # the ratio of the best calls


class Ratio(TypedDict):
    candidate: str
    baseline: str
    batch_size: int
    throughput_times: Times  # above 1: faster
    latency_times: Times  # below 1: faster
    verdict: str  # faster, slower, no effect, not resolved (of the throughput)
    group: int  # of candidates that were measured together
    resolved: bool  # both intervals lie within ±5 % of their medians


class Agreement(TypedDict):
    top1: float  # share of inputs on which it names the class that the baseline names
    sqnr_db: float


class Noise(TypedDict):
    verdict: str  # "steady" where every ratio is resolved, else "noisy"
    resolved: int
    ratios: int
    spread_percent: float  # the widest interval, as ± percent of its median
    slowdown_percent: float  # the median call against the quickest tenth, at worst


class Result(TypedDict):
    schema: int
    model: str
    profile: str  # quick or full
    created: str  # UTC
    machine: Machine
    software: Software
    settings: Settings
    candidates: list[Candidate]
    ratios: list[Ratio]
    agreement: dict[str, Agreement]
    noise: Noise
    failed: dict[str, str]  # candidates that were left out, and why
