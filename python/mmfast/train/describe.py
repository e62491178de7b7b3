"""A dry run's report: resolved configuration, size, memory, and the first packed row in words."""

from collections.abc import Callable
from pathlib import Path

from mmfast.config import config_yaml
from mmfast.data import Batch
from mmfast.data.segment import modality_name
from mmfast.distributed import world_size
from mmfast.errors import UsageError
from mmfast.models import add_adapters, build_decoder, parameter_count
from mmfast.models.decoder import DecoderConfig
from mmfast.train import datasets
from mmfast.train.config import TrainConfig
from mmfast.train.loss import LOGITS_AT_ONCE
from mmfast.train.trainable import freeze
from mmfast.vocab import Vocabulary

WEIGHT_BYTES = 4  # fp32
ADAMW_BYTES = 12  # gradient and two moments of a weight that is trained
SHOWN_IDS = 6


def describe_run(config: TrainConfig) -> str:
    """What a run would do; reads the data's first batch and writes nothing."""
    dataset = datasets.open_folder(config.data, config.tokenizer)
    decoder = build_decoder(config.model, dataset.vocabulary)
    if config.lora.rank:
        lora = config.lora
        add_adapters(decoder, rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
    freeze(decoder, config)
    num_parameters = parameter_count(decoder)
    num_trained = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    batch = datasets.next_batch(iter(datasets.open_loader(config, dataset.vocabulary)))
    if batch is None:
        raise UsageError("the data ends before the first batch is full")
    return "\n".join(
        [
            config_yaml(config).rstrip(),
            "",
            f"parameters: {num_parameters:,}, trained: {num_trained:,}",
            _memory(config, num_parameters, num_trained, dataset.vocabulary),
            _counts(config, batch),
            "first row:",
            *render_row(batch, 0, dataset.vocabulary, _text_decoder(dataset.text_tokenizer)),
        ]
    )


def render_row(
    batch: Batch, row: int, vocabulary: Vocabulary, text: Callable[[list[int]], str]
) -> list[str]:
    """A packed row as text, one line a document: text decoded, images as a count of ids.

    Args:
        batch: as a loader yields it.
        row: which of its rows.
        vocabulary: names special tokens and code ranges.
        text: decodes runs of text ids.
    """
    roles = {token_id: role for role, token_id in vocabulary.special.items()}
    ids, documents = batch.input_ids[row].tolist(), batch.document_ids[row].tolist()
    modalities = (batch.modality_ids[row] & 0x1F).tolist()
    lines = []
    for document in sorted(set(documents) - {0}):
        places = [i for i, owner in enumerate(documents) if owner == document]
        parts: list[str] = []
        run: list[int] = []
        kind = ""
        for place in [*places, None]:
            token_id = None if place is None else ids[place]
            if token_id is None or token_id in roles:
                next_kind = "special"
            else:
                assert place is not None
                next_kind = modality_name(modalities[place])
            if run and next_kind != kind:
                parts.append(_rendered(kind, run, text))
                run = []
            kind = next_kind
            if token_id is None:
                continue
            if token_id in roles:
                parts.append(f"<{roles[token_id]}>")
            else:
                run.append(token_id)
        weight = float(batch.loss_weights[row][places].sum())
        lines.append(f"  {document} ({len(places)} ids, weight {weight:g}): {' '.join(parts)}")
    lines.append(f"  padding: {documents.count(0)} of {len(documents)}")
    return lines


def _rendered(kind: str, run: list[int], text: Callable[[list[int]], str]) -> str:
    if kind == "text":
        return repr(text(run))
    shown = " ".join(str(token_id) for token_id in run[:SHOWN_IDS])
    return f"[{kind}, {len(run)} ids: {shown}{' …' if len(run) > SHOWN_IDS else ''}]"


def _text_decoder(tokenizer: Path | None) -> Callable[[list[int]], str]:
    if tokenizer is None:
        return lambda ids: " ".join(map(str, ids))
    from mmfast.tokenizers import load_text_tokenizer

    decode: Callable[[list[int]], str] = load_text_tokenizer(tokenizer).decode
    return decode


def _memory(
    config: TrainConfig, num_parameters: int, num_trained: int, vocabulary: Vocabulary
) -> str:
    """Rough memory of one process: AdamW state, and what a forward keeps for its backward."""
    shape: DecoderConfig = config.model
    shards = world_size() / config.parallel.replicate
    state = (num_parameters * WEIGHT_BYTES + num_trained * ADAMW_BYTES) / shards
    rows = -(-config.train.global_batch_bins // world_size())
    tokens = min(rows, config.train.micro_batch_bins or rows) * config.data.bin_tokens
    width = 4 if config.parallel.param_dtype == "float32" else 2
    # About 14 tensors of the block's width and 4 of the MLP's are kept for each block (eager); 6 and 2
    # of them are what selective recomputation keeps.
    checkpointing = config.parallel.activation_checkpointing
    kept = {"none": shape.num_layers, "selective": shape.num_layers * 0.43, "full": 1}[
        checkpointing
    ]
    block = 14 * shape.hidden_size + 4 * shape.intermediate_size
    checkpoints = shape.num_layers * shape.hidden_size
    activations = tokens * width * (kept * block + checkpoints)
    logits = 4 * 3 * min(tokens * vocabulary.size, LOGITS_AT_ONCE)
    total = (state + activations + logits) / 2**30
    return (
        f"memory per process: about {total:.2f} GiB (weights, gradients and AdamW "
        f"{state / 2**30:.2f}, activations of {tokens:,} tokens {activations / 2**30:.2f}, "
        f"logits {logits / 2**30:.2f})"
    )


def _counts(config: TrainConfig, batch: Batch) -> str:
    positions = batch.input_ids.numel()
    return (
        f"first batch of this process: {batch.input_ids.shape[0]} rows of {config.data.bin_tokens}, "
        f"{batch.num_documents} documents, {batch.num_tokens:,} tokens "
        f"({batch.num_tokens / positions:.1%} full), loss weight {batch.weight_sum:g}"
    )
