"""The data plane alone, in a training script of one's own: write, load, train, stop and go on.

Run it with `python examples/plain_pytorch_loader.py`; it needs no GPU, no download and a few seconds.
The five lines that a script needs are marked. The data are toy "captions" (a colour word) with toy
"images" (16 codes of that colour), so the loss of image ids shows whether the caption is read.
"""

import random
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

from mmfast import Vocabulary
from mmfast.data import Batch, IndexedDatasetBuilder, Loader
from mmfast.objectives import Cm3

STEPS, WIDTH, BIN_TOKENS = 60, 48, 128
ROLES = ["eos", "pad", "break", "eoss", "mask_0", "mask_1", "mask_2", "mask_3"]


def write_toy_data(prefix: Path) -> Vocabulary:
    vocabulary = Vocabulary.build(8, roles=ROLES, codes=[("image", 64)])
    rng = random.Random(0)
    with IndexedDatasetBuilder(prefix, dtype="uint16", multimodal=True) as builder:
        for _ in range(2_000):
            colour = rng.randrange(8)
            builder.add_item([vocabulary["eos"], colour, vocabulary["break"]])
            codes = [8 * colour + rng.randrange(2) for _ in range(16)]
            builder.add_item(vocabulary.ids_from_codes("image", codes), mode=1)
            builder.add_item([vocabulary["eos"]])
            builder.end_document()
    vocabulary.save(prefix.parent)
    return vocabulary


class TinyDecoder(torch.nn.Module):
    """One attention layer, masked so that no document sees another or its own future."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(vocabulary_size, WIDTH)
        self.positions = torch.nn.Embedding(BIN_TOKENS, WIDTH)
        torch.nn.init.normal_(self.tokens.weight, std=0.1)
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B, L, V]."""
        x = self.tokens(batch.input_ids) + self.positions(batch.position_ids)
        same_document = batch.document_ids[:, :, None] == batch.document_ids[:, None, :]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=same_document.tril())
        return (x + self.mlp(x)) @ self.tokens.weight.T


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "train"
        vocabulary = write_toy_data(prefix)
        model = TinyDecoder(vocabulary.size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

        loader = Loader([prefix], Cm3(), bin_tokens=BIN_TOKENS, global_batch_bins=8)  # 1
        for step, batch in zip(range(STEPS), loader, strict=False):  # 2
            logits = model(batch)  # 3
            nll = F.cross_entropy(
                logits.flatten(0, 1), batch.labels.flatten(), reduction="none"
            )  # 4
            loss = (nll * batch.loss_weights.flatten()).sum() / batch.weight_sum  # 5

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 0 or step == STEPS - 1:
                print(
                    f"step {step:3}  loss {loss.item():.3f}  padding {batch.padding_fraction:.1%}"
                )

        # A checkpoint needs a batch's state: a few numbers, the same on every rank and in every worker of
        # `DataLoader(loader, batch_size=None, num_workers=N)`, which gives the same batches.
        state = batch.state
        resumed = Loader([prefix], Cm3(), bin_tokens=BIN_TOKENS, global_batch_bins=8)
        resumed.load_state_dict(state)
        print(f"state {state}")
        same = torch.equal(next(iter(loader)).input_ids, next(iter(resumed)).input_ids)
        print(f"the resumed loader goes on with the same batch: {same}")


if __name__ == "__main__":
    main()
