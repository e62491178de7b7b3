"""Ranks with very different weights: loss and gradients against one plain forward by hand.

One or two ranks try every way to spread the model and the rows, four try two copies of two parts each.
"""

import torch
import torch.nn.functional as F

from mmfast.data import Batch
from mmfast.distributed import process_group, rank, world_size
from mmfast.models import build_decoder, initialise
from mmfast.train.config import load_train_config
from mmfast.train.labels import LabelRules
from mmfast.train.loss import DecoderWithLoss
from mmfast.train.optimizer import gradient_norm
from mmfast.train.parallel import shard_model
from mmfast.train.step import backward_batch
from mmfast.vocab import Vocabulary

VOCABULARY = Vocabulary.build(40, roles=["eos"], multiple_of=1)
ROWS, L = 6, 10  # three rows a rank, or one or two
CPU = torch.device("cpu")


def all_rows():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (ROWS, L + 1), generator=generator)
    weights = torch.rand(ROWS, L, generator=generator)
    weights[:3] *= 5.0  # rank 0 counts much more than rank 1
    weights[3, 2:] = 0.0
    weights[4] = 0.0  # a whole row without weight
    return ids[:, :-1], ids[:, 1:], weights


def batch_of(rows):
    ids, labels, weights = (tensor[rows] for tensor in all_rows())
    ones = torch.ones_like(ids, dtype=torch.int32)
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(L, dtype=torch.int32).expand_as(ids).contiguous(),
        document_ids=ones,
        modality_ids=torch.zeros_like(ids, dtype=torch.uint8),
        loss_weights=weights,
        cu_seqlens=torch.arange(0, ids.numel() + 1, L, dtype=torch.int32),
        max_seqlen=L,
        weight_sum=float(weights.sum()),
        num_tokens=ids.numel(),
        num_documents=ids.shape[0],
    )


def by_hand(config):
    decoder = build_decoder(config.model, VOCABULARY)
    decoder.to_empty(device="cpu")
    initialise(decoder, config.model, seed=3)
    ids, labels, weights = all_rows()
    logits = decoder(input_ids=ids, use_cache=False).logits
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    loss = (nll * weights.flatten()).sum() / weights.sum()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in decoder.named_parameters()}


def check(*overrides):
    config = load_train_config("tiny", list(overrides))
    expected_loss, expected = by_hand(config)
    model = DecoderWithLoss(build_decoder(config.model, VOCABULARY))
    shard_model(model, config.parallel, device=CPU)
    model.to_empty(device="cpu")
    initialise(model.decoder, config.model, seed=3)
    weight_sum = float(all_rows()[2].double().sum())
    rows = slice(rank() * ROWS // world_size(), (rank() + 1) * ROWS // world_size())
    rules = LabelRules(config.loss, VOCABULARY)
    sums = backward_batch(
        model, batch_of(rows), weight_sum=weight_sum, rules=rules, config=config, device=CPU
    )
    torch.distributed.all_reduce(sums)
    loss = float(sums[0].sum() / sums[1].sum())
    assert abs(loss - expected_loss) < 1e-6, (loss, expected_loss)
    for name, parameter in model.decoder.named_parameters():
        found = parameter.grad.full_tensor()
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    torch.testing.assert_close(gradient_norm(list(model.parameters())), norm, rtol=1e-5, atol=0)


def check_every_way():
    for wrap in ("block", "root"):
        for micro_rows in (0, 1, 2):
            check(f"parallel.wrap={wrap}", f"train.micro_batch_bins={micro_rows}")
    for kind in ("selective", "full"):
        check(f"parallel.activation_checkpointing={kind}", "train.micro_batch_bins=2")
    check("parallel.prefetch=0")
    check("parallel.reshard_after_forward=false", "train.micro_batch_bins=1")
    check(f"parallel.replicate={world_size()}", "train.micro_batch_bins=1")


if __name__ == "__main__":
    with process_group():
        if world_size() == 4:
            check("parallel.replicate=2")
        else:
            check_every_way()
