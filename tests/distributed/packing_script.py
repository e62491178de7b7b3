"""Two ranks, packed rows against the same documents alone: losses, and gradients of every parameter.

Each rank has a row of two documents and padding; alone, every document has a row of its own on one rank.
"""

import torch

from mmfast.data import Batch
from mmfast.distributed import process_group, rank
from mmfast.models import build_decoder, initialise
from mmfast.train.config import load_train_config
from mmfast.train.labels import LabelRules
from mmfast.train.loss import DecoderWithLoss
from mmfast.train.parallel import shard_model
from mmfast.train.step import backward_batch
from mmfast.vocab import Vocabulary

VOCABULARY = Vocabulary.build(40, roles=["eos"], multiple_of=1)
LENGTHS = ((7, 11), (12, 4))  # by rank
L = 20
CPU = torch.device("cpu")


def documents():
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randint(0, 40, (length,), generator=generator) for length in lengths]
        for lengths in LENGTHS
    ]


def batch_of(rows):
    """Rows, each a list of documents, as the loader packs them."""
    B = len(rows)
    batch = {
        "input_ids": torch.zeros(B, L, dtype=torch.int64),
        "labels": torch.full((B, L), -100, dtype=torch.int64),
        "position_ids": torch.zeros(B, L, dtype=torch.int32),
        "document_ids": torch.zeros(B, L, dtype=torch.int32),
        "modality_ids": torch.zeros(B, L, dtype=torch.uint8),
        "loss_weights": torch.zeros(B, L),
    }
    ends = [0]
    for row, packed in enumerate(rows):
        start = 0
        for number, ids in enumerate(packed, start=1):
            here = slice(start, start + len(ids))
            batch["input_ids"][row, here] = ids
            batch["labels"][row, start : start + len(ids) - 1] = ids[1:]
            batch["position_ids"][row, here] = torch.arange(len(ids), dtype=torch.int32)
            batch["document_ids"][row, here] = number
            batch["loss_weights"][row, start : start + len(ids) - 1] = 1.0
            start += len(ids)
            ends.append(row * L + start)
        ends.append((row + 1) * L)
    return Batch(
        **batch,
        cu_seqlens=torch.tensor(sorted(set(ends)), dtype=torch.int32),
        max_seqlen=L,
        weight_sum=float(batch["loss_weights"].sum()),
        num_tokens=sum(len(ids) for row in rows for ids in row),
        num_documents=sum(map(len, rows)),
    )


def gradients(config, batch, weight_sum):
    model = DecoderWithLoss(build_decoder(config.model, VOCABULARY))
    shard_model(model, config.parallel, device=CPU)
    model.to_empty(device="cpu")
    initialise(model.decoder, config.model, seed=3)
    rules = LabelRules(config.loss, VOCABULARY)
    sums = backward_batch(
        model, batch, weight_sum=weight_sum, rules=rules, config=config, device=CPU
    )
    torch.distributed.all_reduce(sums)
    grads = {name: p.grad.full_tensor() for name, p in model.decoder.named_parameters()}
    return float(sums[0].sum() / sums[1].sum()), grads


def check(architecture):
    # Wider initial weights than usual, so that a leak between documents is far above rounding.
    config = load_train_config(
        "tiny", [f"model.architecture={architecture}", "model.num_layers=2", "model.init_std=0.1"]
    )
    per_rank = documents()
    weight_sum = float(sum(len(ids) - 1 for row in per_rank for ids in row))
    packed = gradients(config, batch_of([per_rank[rank()]]), weight_sum)
    # Alone: rank 0 has all documents in rows of their own, rank 1 one row without weight.
    every = [[ids] for row in per_rank for ids in row]
    alone = batch_of(every if rank() == 0 else [[per_rank[0][0][:1]]])
    loss, expected = gradients(config, alone, weight_sum)
    assert abs(packed[0] - loss) <= 1e-5, (packed[0], loss)
    for name, gradient in expected.items():
        difference = (packed[1][name] - gradient).abs().max().item()
        assert difference <= 1e-6, (name, difference)
        assert gradient.abs().max() > 1e-5, f"{name} has no gradient, so it says nothing"


if __name__ == "__main__":
    with process_group():
        for architecture in ("llama", "opt"):
            check(architecture)
