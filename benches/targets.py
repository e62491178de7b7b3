"""What the data plane, the trainer, the sampler and the engine promise in numbers, and which named peer stands for its group.

Each target reads one value from a results file, by wall clock or by CPU time. `table.py` prints both
beside the promise; no test asserts on any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Clock = Literal["wall", "cpu"]


class Results:
    """Cases of a results file by group and contender."""

    def __init__(self, results: dict) -> None:
        self.groups: dict[str, dict[str, dict]] = {}
        for case in results["benchmarks"]:
            group = self.groups.setdefault(case["group"], {})
            group[case["extra_info"]["contender"]] = case

    def seconds(self, group: str, contender: str, clock: Clock) -> float:
        """Median of a round."""
        case = self.groups[group][contender]
        if clock == "wall":
            return case["stats"]["median"]
        return case["extra_info"]["cpu_seconds"]

    def rate(self, group: str, contender: str, clock: Clock) -> float:
        """Amount a second, in the case's unit."""
        amount = self.groups[group][contender]["extra_info"]["amount_per_round"]
        return amount / self.seconds(group, contender, clock)

    def fact(self, group: str, contender: str, name: str) -> float:
        """What a case noted besides its time."""
        return self.groups[group][contender]["extra_info"][name]


@dataclass(frozen=True)
class Target:
    """One number that is promised.

    Attributes:
        promise: what of, in the words of the table of promises.
        unit: format of the value, e.g. `"{:.2f} GB/s"`.
        value: of a results file; its clock makes no difference where no time is involved.
        at_least, at_most: the bound; one of them is given.
    """

    promise: str
    unit: str
    value: Callable[[Results, Clock], float]
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the value keeps the bound."""
        if self.at_least is not None:
            return value >= self.at_least
        return value <= self.at_most

    def bound(self) -> str:
        """The bound in words."""
        sign, bound = (">=", self.at_least) if self.at_most is None else ("<=", self.at_most)
        return f"{sign} {self.unit.format(bound)}"


def gigabytes(group: str, contender: str) -> Callable[[Results, Clock], float]:
    return lambda results, clock: results.rate(group, contender, clock) / 1e9


def milliseconds(group: str, contender: str) -> Callable[[Results, Clock], float]:
    return lambda results, clock: 1e3 * results.seconds(group, contender, clock)


def times(group: str, contender: str, peer: str) -> Callable[[Results, Clock], float]:
    """How many times the peer's rate."""

    def ratio(results: Results, clock: Clock) -> float:
        return results.rate(group, contender, clock) / results.rate(group, peer, clock)

    return ratio


def times_beside(group: str, contender: str) -> Callable[[Results, Clock], float]:
    """How many times as quick as the call that was timed between its rounds, by wall clock."""

    def ratio(results: Results, _: Clock) -> float:
        beside = results.fact(group, contender, "beside_seconds")
        return beside / results.seconds(group, contender, "wall")

    return ratio


def fact(
    group: str, contender: str, name: str, scale: float = 1.0
) -> Callable[[Results, Clock], float]:
    return lambda results, _: scale * results.fact(group, contender, name)


def more(group: str, contender: str, peer: str, name: str) -> Callable[[Results, Clock], float]:
    """By how much a noted number is above the peer's."""
    return lambda results, _: results.fact(group, contender, name) - results.fact(group, peer, name)


def of(group: str, contender: str, peer: str, name: str) -> Callable[[Results, Clock], float]:
    """A noted number as a part of the peer's."""
    return lambda results, _: results.fact(group, contender, name) / results.fact(group, peer, name)


WRITE = "write, batch call"
PER_DOCUMENT = "write, a call a document"
MERGE = "merge, 8 parts of 55 MB"
MERGE_MANY = "merge, 200 shards of 10,000 documents"
OPEN = "open, 5 M documents"
OPEN_MANY = "open, 200 shards of 10,000 documents"
READ = "read, random documents"
READ_UNMAPPED = "read, random documents, no map"
BATCHES = "32 x 4,096 int64 batches"
PACK = "pack 2 M lengths, {}"
PACK_SMALL = "pack 20,000 lengths, lognormal"
PACK_WINDOW = "pack a window of 65,536 lengths, lognormal"
RESUME = "resume, to the first batch of 32 x 4,096"
LOSS = "loss, 4,096 tokens, width 1,536, 65,536 ids"
LOSS_PEER = "torch matmul and cross_entropy"
GUIDED = "sample, 8 rows of 184,622 ids, guided, k 2048, p 0.9"
GUIDED_OURS = "mmfast sample_prepared"
GUIDED_PEERS = ("transformers, guided logits", "transformers, guided log-probabilities")
GUIDED_TORCH = "torch lerp, topk, multinomial"
RANGE = "sample, 8 rows, 32,768 of the ids allowed"
FILTERS = "sample, 8 rows of 184,622 ids, other filters"
THREADS = "sample, {} x 184,622 ids, guided, by threads"
THREADED_ROWS = (8, 1)
ENCODE = "Emu3 encode, 512x512"
DECODE = "Emu3 decode, 64x64 codes"
SEARCH = "nearest of 32,768 codes, 90x90"
VISUAL_IDS = "Emu3 visual ids, 64x64"
CORPORA = ("lognormal", "half a row", "captioned images")

PICTURE = "image of 32 x 32 codes, guidance 3, Emu3-shaped"

# The contender of each group that the others are compared with.
PEER_OF_GROUP = {
    WRITE: "megatron-core add_document, tensors",
    PER_DOCUMENT: "megatron-core add_document, tensors",
    MERGE: "megatron-core add_index",
    MERGE_MANY: "megatron-core add_index, finalized (no fsync)",
    OPEN: "megatron-core",
    OPEN_MANY: "megatron-core, one by one",
    READ: "megatron-core ds[i], in place",
    READ_UNMAPPED: "megatron-core mmap=False, ds[i]",
    BATCHES: "megatron-core GPTDataset + collate",
    RESUME: "megatron-core GPTDataset, indices cached, new",
    ENCODE: "transformers",
    DECODE: "transformers",
    SEARCH: "transformers quantizer",
    VISUAL_IDS: "spelled out and tokenised",
    LOSS: LOSS_PEER,
    PICTURE: "transformers generate, unbatched guidance",
    GUIDED: GUIDED_PEERS[0],
    RANGE: "mmfast, all ids allowed",
    FILTERS: "torch lerp, softmax, multinomial",
    **{THREADS.format(rows): "mmfast, threads: 1" for rows in THREADED_ROWS},
    PACK_SMALL: "trl algorithm, all at once",
    **{PACK.format(corpus): "trl algorithm, all at once" for corpus in CORPORA},
}

TARGETS = (
    Target(
        "batch write incl. CRC, to page cache",
        "{:.2f} GB/s",
        gigabytes(WRITE, "mmfast add_documents"),
        at_least=4,
    ),
    Target(
        "batch write, of numpy tofile",
        "{:.2f} times",
        times(WRITE, "mmfast add_documents", "numpy tofile"),
        at_least=0.6,
    ),
    Target(
        "batch write, of megatron-core add_document (tensors, as its signature says)",
        "{:.2f} times",
        times(WRITE, "mmfast add_documents", "megatron-core add_document, tensors"),
        at_least=6,
    ),
    Target(
        "batch write, of megatron-core add_document (arrays, which it takes too)",
        "{:.2f} times",
        times(WRITE, "mmfast add_documents", "megatron-core add_document, arrays"),
        at_least=6,
    ),
    Target(
        "per-document API, of megatron-core add_document, both tensors",
        "{:.2f} times",
        times(PER_DOCUMENT, "mmfast add_document, tensors", "megatron-core add_document, tensors"),
        at_least=4,
    ),
    Target(
        "per-document API, of megatron-core add_document, both arrays",
        "{:.2f} times",
        times(PER_DOCUMENT, "mmfast add_document, arrays", "megatron-core add_document, arrays"),
        at_least=4,
    ),
    Target(
        "per-document API, of megatron-core add_document, both lists",
        "{:.2f} times",
        times(PER_DOCUMENT, "mmfast add_document, lists", "megatron-core add_document, lists"),
        at_least=4,
    ),
    Target("merge", "{:.2f} GB/s", gigabytes(MERGE, "mmfast add_index"), at_least=2),
    Target(
        "merge, memory a shard",
        "{:.3f} MB",
        fact(MERGE_MANY, "mmfast merge_datasets, published (fsync)", "kib_per_shard", 1_024 / 1e6),
        at_most=1,
    ),
    Target(
        "open 5 M documents, sizes checked",
        "{:.2f} ms",
        milliseconds(OPEN, 'mmfast verify="none"'),
        at_most=5,
    ),
    Target(
        "open 5 M documents, index checked",
        "{:.1f} ms",
        milliseconds(OPEN, 'mmfast verify="index"'),
        at_most=50,
    ),
    Target(
        "shuffled documents, batched call, of megatron-core ds[i]",
        "{:.2f} times",
        times(READ, "mmfast read, batched by 32", "megatron-core ds[i], in place"),
        at_least=3,
    ),
    Target(
        "batches, of megatron-core GPTDataset + collate",
        "{:.2f} times",
        times(BATCHES, "mmfast Loader, packed", "megatron-core GPTDataset + collate"),
        at_least=8,
    ),
    Target(
        "batches, of datasets' fixed rows, torch format",
        "{:.2f} times",
        times(BATCHES, "mmfast Loader, packed", "datasets ds[indices], torch"),
        at_least=1.4,
    ),
    Target(
        "batches, of datasets' fixed rows, numpy format",
        "{:.2f} times",
        times(BATCHES, "mmfast Loader, packed", "datasets ds[indices], numpy"),
        at_least=1.4,
    ),
    *(
        Target(
            f"pack 2 M lengths, {corpus}",
            "{:.1f} ms",
            milliseconds(PACK.format(corpus), "mmfast pack"),
            at_most=60,
        )
        for corpus in CORPORA
    ),
    *(
        Target(
            f"rows for 2 M lengths, {corpus}, more than trl's algorithm all at once",
            "{:.0f} rows",
            more(PACK.format(corpus), "mmfast pack", "trl algorithm, all at once", "rows"),
            at_most=0,
        )
        for corpus in CORPORA
    ),
    Target(
        "pack a window of 65,536 lengths",
        "{:.2f} ms",
        milliseconds(PACK_WINDOW, "mmfast pack, a window"),
        at_most=1,
    ),
    Target(
        "fill lost by packing in windows",
        "{:.4f} %",
        fact(PACK_WINDOW, "mmfast pack, a window", "fill_lost_percent"),
        at_most=0.01,
    ),
    Target(
        "resume at any step, unpacked, with its first batch",
        "{:.2f} ms",
        milliseconds(RESUME, "mmfast Loader, unpacked, warm"),
        at_most=1,
    ),
    Target(
        "resume at any step, packed, with its first batch",
        "{:.1f} ms",
        milliseconds(RESUME, "mmfast Loader, packed, warm"),
        at_most=20,
    ),
    Target(
        "loss, peak memory without the weights' gradient, of the plain path's",
        "{:.3f}",
        of(LOSS, "mmfast weighted_nll", LOSS_PEER, "peak_mib"),
        at_most=1 / 6,
    ),
    Target(
        "loss, speed of the plain path's",
        "{:.2f} times",
        times(LOSS, "mmfast weighted_nll", LOSS_PEER),
        at_least=1 / 1.15,
    ),
    *(
        Target(
            f"guided sampling on one thread, of {peer}",
            "{:.1f} times",
            times(GUIDED, GUIDED_OURS, peer),
            at_least=35,
        )
        for peer in GUIDED_PEERS
    ),
    Target(
        "guided sampling on one thread, of the best recipe in eager torch",
        "{:.2f} times",
        times(GUIDED, GUIDED_OURS, GUIDED_TORCH),
        at_least=3.5,
    ),
    Target(
        "guided sampling from 32,768 allowed ids, of all 184,622",
        "{:.2f} times",
        times_beside(RANGE, "mmfast, range allowed"),
        at_least=2,
    ),
    Target(
        "guided sampling, two threads of one, by wall clock",
        "{:.2f} times",
        times_beside(THREADS.format(8), "mmfast, threads: 2"),
        at_least=1.7,
    ),
    Target(
        "guided sampling, two processes that share nothing of two threads, by wall clock",
        "{:.2f} times",
        times_beside(THREADS.format(8), "mmfast, processes: 2"),
        at_most=1.1,
    ),
    Target(
        "a picture with guidance, of transformers' generate, unbatched guidance",
        "{:.1f} times",
        times(PICTURE, "mmfast", "transformers generate, unbatched guidance"),
        at_least=6,
    ),
    Target(
        "a picture with guidance, of transformers' generate, batched guidance",
        "{:.1f} times",
        times(PICTURE, "mmfast", "transformers generate, batched guidance"),
        at_least=2.5,
    ),
    Target(
        "Emu3 image to codes, of transformers' Emu3VQVAE",
        "{:.1f} times",
        times(ENCODE, "mmfast", "transformers"),
        at_least=3,
    ),
    Target(
        "nearest of 32,768 codes at 90x90, memory",
        "{:.1f} MB",
        fact(SEARCH, "mmfast nearest_code", "peak_megabytes"),
        at_most=10,
    ),
    Target(
        "visual ids of an Emu3 image, 64x64",
        "{:.3f} ms",
        milliseconds(VISUAL_IDS, "mmfast"),
        at_most=0.1,
    ),
)
