"""Training steps on one device: tokens a second, utilisation, document masks, a plain step as the peer.

    make gpu-train                       # one CUDA GPU: CM3Leon 350M, 760M and 7B, under nine minutes
    python benches/train/gpu_train.py    # without a GPU the same code on tiny shapes, which measure nothing

For each model, on random weights and ids, medians of steps after a warm-up:

    masked     our step on packed rows, attention within documents
    plain      our step on the same number of tokens, one document a row, plain causal attention
    peer       transformers as it is: SDPA, all logits in fp32, the same compilation of blocks, AdamW
    trainer    the whole trainer on an indexed dataset of random documents: its own figures, data wait included

Then the loss alone at 16k tokens: memory and time of ours and of the plain path. A result is a line of
JSON, printed and kept in `benches/results/train-<device>.json` as soon as it is known.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from mmfast.data import Batch, IndexedDatasetBuilder
from mmfast.distributed import process_group
from mmfast.models import build_decoder, initialise
from mmfast.train import load_train_config, train
from mmfast.train import step as step_module
from mmfast.train.config import TrainConfig
from mmfast.train.flops import peak_tflops, step_cost
from mmfast.train.labels import LabelRules
from mmfast.train.loss import DecoderWithLoss, weighted_nll
from mmfast.train.optimizer import build_optimizer, clipped_step, gradient_norm
from mmfast.train.parallel import decoder_blocks, shard_model
from mmfast.train.step import backward_batch
from mmfast.vocab import Vocabulary

RESULTS = Path(__file__).parents[1] / "results"
ROLES = ["eos", "pad", "break", "eoss", *(f"mask_{i}" for i in range(16))]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and the shape of its steps."""

    preset: str
    document: int
    documents_per_row: int
    rows: int
    warmup: int
    timed: int
    overrides: tuple[str, ...] = ()


ON_CUDA = (
    Case("cm3leon_350m", 4096, 8, 1, 10, 25),
    Case("cm3leon_760m", 4096, 8, 1, 10, 20),
    Case("cm3leon_7b", 4096, 2, 1, 4, 10),
)
ON_CPU = (Case("cm3leon_tiny", 64, 4, 2, 1, 3, ("parallel.param_dtype=float32",)),)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="the file of results")
    parser.add_argument("--only", default="", help="a part of the presets' names")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    output = arguments.output or RESULTS / f"train-{device.type}.json"
    lines = Lines(output, device)
    with process_group():
        for case in ON_CUDA if device.type == "cuda" else ON_CPU:
            if arguments.only in case.preset:
                bench_case(case, device, lines)
        bench_loss(device, lines)


class Lines:
    """Prints each result and writes the file anew with it, so that a run that is cut leaves what it found."""

    def __init__(self, output: Path, device: torch.device) -> None:
        self.output = output
        self.machine = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "peak_tflops": peak_tflops(0.0, device),
        }
        self.results: list[dict[str, Any]] = []

    def add(self, **result: Any) -> None:
        """Takes in one result."""
        rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in result.items()}
        self.results.append(rounded)
        print(json.dumps(rounded), flush=True)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": self.machine, "results": self.results}, indent=1)
        self.output.write_text(text + "\n", encoding="utf-8")


def bench_case(case: Case, device: torch.device, lines: Lines) -> None:
    vocabulary = Vocabulary.build(56_320, roles=ROLES, codes=[("image", 8_192)], multiple_of=65_536)
    if device.type == "cpu":
        vocabulary = Vocabulary.build(400, roles=ROLES, codes=[("image", 64)])
    row = case.document * case.documents_per_row
    config = load_train_config(
        case.preset,
        [f"data.bin_tokens={row}", "train.micro_batch_bins=0", *compiled(device), *case.overrides],
    )
    masked = packed_batch(case, vocabulary.size, packed=True)
    plain = packed_batch(case, vocabulary.size, packed=False)
    model, optimizer = our_model(config, vocabulary, device)
    cost = step_cost(model.decoder)
    tokens = masked.num_tokens
    pairs = float(tokens * case.document)

    def figures(what: str, secs: float) -> None:
        tflops = cost.full(tokens, pairs) / secs / 1e12
        peak = lines.machine["peak_tflops"]
        lines.add(
            model=case.preset,
            what=what,
            tokens_per_step=tokens,
            ms_per_step=1e3 * secs,
            tokens_per_sec=tokens / secs,
            tflops=tflops,
            mfu=tflops / peak if peak else None,
            mfu_causal=cost.causal(tokens, pairs) / secs / 1e12 / peak if peak else None,
            memory_gib=peak_gib(device),
        )

    step = our_step(model, optimizer, masked, config, vocabulary, device)
    figures("masked", timed(step, case, device))
    # Told nothing of documents, attention is plain causal.
    with mock.patch.object(step_module, "attention_inputs", return_value={}):
        step = our_step(model, optimizer, plain, config, vocabulary, device)
        figures("plain", timed(step, case, device))
    del model, optimizer, step
    free(device)
    if (
        case.preset != "cm3leon_7b"
    ):  # fp32 weights, moments and all logits do not fit beside each other
        figures("peer", timed(peer_step(config, vocabulary, plain, device), case, device))
        free(device)
    if (
        case.preset != "cm3leon_7b"
    ):  # weights drawn on the CPU and exported: minutes beside the steps
        bench_trainer(case, vocabulary, lines)
        free(device)


def compiled(device: torch.device) -> tuple[str, ...]:
    return () if device.type == "cuda" else ("parallel.compile=false",)


def packed_batch(case: Case, num_ids: int, *, packed: bool) -> Batch:
    """Rows of several documents, or as many rows of one document each."""
    count = case.rows * case.documents_per_row
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, num_ids - 64, (count, case.document + 1), generator=generator)
    shape = (case.rows, -1) if packed else (count, -1)
    numbers = torch.arange(1, count + 1)[:, None].expand(count, case.document)
    if packed:
        numbers = (numbers - 1) % case.documents_per_row + 1
    positions = torch.arange(case.document).expand(count, -1)
    tokens = count * case.document
    return Batch(
        input_ids=ids[:, :-1].reshape(shape),
        labels=ids[:, 1:].reshape(shape),
        position_ids=positions.reshape(shape).int(),
        document_ids=numbers.reshape(shape).int(),
        modality_ids=torch.zeros(tokens, dtype=torch.uint8).reshape(shape),
        loss_weights=torch.ones(tokens).reshape(shape),
        cu_seqlens=torch.arange(0, tokens + 1, case.document, dtype=torch.int32),
        max_seqlen=case.document,
        weight_sum=float(tokens),
        num_tokens=tokens,
        num_documents=count,
    )


def our_model(config: TrainConfig, vocabulary: Vocabulary, device: torch.device) -> Any:
    decoder = build_decoder(config.model, vocabulary)
    model = DecoderWithLoss(decoder)
    shard_model(model, config.parallel, device=device)
    model.to_empty(device=device)
    fill(decoder, config)
    return model.train(), build_optimizer(model, config.optimizer)


@torch.no_grad()
def fill(decoder: Any, config: TrainConfig) -> None:
    """Random weights, drawn on the device: `initialise` draws on the CPU, minutes at 7B."""
    if next(decoder.parameters()).device.type == "cpu":
        initialise(decoder, config.model, seed=0)
        return
    decoder.tie_weights()
    for parameter in decoder.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        local.normal_(std=0.006)


def our_step(
    model: Any,
    optimizer: Any,
    batch: Batch,
    config: TrainConfig,
    vocabulary: Vocabulary,
    device: torch.device,
) -> Callable[[], None]:
    rules = LabelRules(config.loss, vocabulary)
    parameters = list(model.parameters())

    def step() -> None:
        backward_batch(
            model, batch, weight_sum=batch.weight_sum, rules=rules, config=config, device=device
        )
        clipped_step(optimizer, gradient_norm(parameters), max_norm=1.0)
        optimizer.zero_grad()

    return step


def peer_step(
    config: TrainConfig, vocabulary: Vocabulary, batch: Batch, device: torch.device
) -> Callable[[], None]:
    """What one writes with transformers alone: bf16 autocast over fp32 weights, its own loss."""
    model = build_decoder(config.model, vocabulary)
    model.to_empty(device=device)
    fill(model, config)
    model.set_attn_implementation("sdpa")
    model.train()
    if device.type == "cuda":
        for block in decoder_blocks(model):
            block.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids, labels = batch.input_ids.to(device), batch.labels.to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=ids, use_cache=False).logits
        F.cross_entropy(logits.float().flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bench_trainer(case: Case, vocabulary: Vocabulary, lines: Lines) -> None:
    """The command's own figures on a dataset of random documents."""
    steps = case.warmup + case.timed
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "data" / "train"
        prefix.parent.mkdir()
        ids = torch.randint(0, 200, (case.document - 6,)).tolist()
        with IndexedDatasetBuilder(str(prefix), multimodal=True) as builder:
            for _ in range(case.documents_per_row * case.rows * 4):
                builder.add_document(ids, [len(ids)], modes=[0])
        vocabulary.save(prefix.parent)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        overrides = [
            f"data.prefix={prefix}",
            f"output={folder}/run",
            f"data.bin_tokens={case.document * case.documents_per_row}",
            f"train.global_batch_bins={case.rows}",
            f"train.steps={steps}",
            f"train.log_every={case.timed}",
            "train.checkpoint_every=0",
            "data.window_documents=64",
            *compiled(device),
            *case.overrides,
        ]
        train(load_train_config(case.preset, overrides))
        text = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    last = json.loads(text.splitlines()[-1])
    keys = ("tokens_per_sec", "tflops_per_process", "mfu", "mfu_causal", "memory_gib")
    lines.add(
        model=case.preset,
        what="trainer",
        ms_per_step=1e3 * last["step_secs"],
        data_wait_fraction=last["data_wait_fraction"],
        **{key: last.get(key) for key in keys},
    )


def bench_loss(device: torch.device, lines: Lines) -> None:
    """Time and memory of the loss, without the gradient of the output layer."""
    on_cuda = device.type == "cuda"
    tokens, width, num_ids = (16_384, 1_536, 65_536) if on_cuda else (256, 64, 2_048)
    dtype = torch.bfloat16 if on_cuda else torch.float32
    hidden = torch.randn(tokens, width, device=device, dtype=dtype).requires_grad_()
    head = (torch.randn(num_ids, width, device=device) * 0.02).to(dtype).requires_grad_()
    labels = torch.randint(0, num_ids, (tokens,), device=device)
    weights = torch.ones(tokens, device=device)

    def plain() -> torch.Tensor:
        nll = F.cross_entropy((hidden @ head.T).float(), labels, reduction="none")
        return (nll * weights).sum()

    def ours() -> torch.Tensor:
        return weighted_nll(hidden, head, labels, weights)[0]

    case = Case("loss", 0, 0, 0, 2, 7)
    for what, loss in (("mmfast", ours), ("plain", plain)):

        def step(loss: Callable[[], torch.Tensor] = loss) -> None:
            hidden.grad = head.grad = None
            loss().backward()

        held = torch.cuda.memory_allocated() if on_cuda else 0
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        secs = timed(step, case, device)
        peak = torch.cuda.max_memory_allocated() - held if on_cuda else 0
        gradient = head.numel() * head.element_size()
        lines.add(
            model=f"loss, {tokens:,} tokens, width {width:,}, {num_ids:,} ids",
            what=what,
            ms_per_step=1e3 * secs,
            peak_mib=(peak - gradient) / 2**20 if on_cuda else None,
        )
        hidden.grad = head.grad = None


def timed(step: Callable[[], None], case: Case, device: torch.device) -> float:
    """Median seconds of a step."""

    def synchronised() -> Iterator[float]:
        for _ in range(case.timed):
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            yield time.perf_counter() - started

    for _ in range(case.warmup):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return statistics.median(synchronised())


def peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
