"""Row 8 of CM3Leon's checks: on scans of digits the model learns what captions say about images.

Real data: the 8x8 scans of scikit-learn in six grey levels, 64 ids an image, caption `photo of <digit>`,
1,500 to train and 297 held out. The full length is 700 steps; `make test` takes a short part of it.
"""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tests.reliability.figures import is_long, report, scaled
from transformers import AutoModelForCausalLM

from mmfast.data import IndexedDatasetBuilder
from mmfast.train import load_train_config, train
from mmfast.vocab import Vocabulary

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(3_000)]
PHOTO, OF, FIRST_DIGIT = 0, 1, 2
VOCABULARY = Vocabulary.build(
    12, roles=["eos", "pad", "break", "eoss", "mask_0", "mask_1", "mask_2"], codes=[("image", 6)]
)
NUM_TRAIN = 1_500
GREY_LEVELS = 6


def scans():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    levels = np.minimum(digits.images.reshape(-1, 64) * GREY_LEVELS // 17, GREY_LEVELS - 1)
    return levels[order].astype(np.int64), digits.target[order]


def caption(label):
    return [VOCABULARY["eos"], PHOTO, OF, FIRST_DIGIT + label, VOCABULARY["break"]]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "train"
    with IndexedDatasetBuilder(str(path), multimodal=True) as builder:
        for levels, label in list(zip(*scans(), strict=True))[:NUM_TRAIN]:
            text = caption(int(label))
            image = VOCABULARY.ids_from_codes("image", levels).tolist()
            document = [*text, *image, VOCABULARY["eos"]]
            builder.add_document(document, [len(text), 64, 1], modes=[0, 1, 0])
    VOCABULARY.save(path.parent)
    return path


def image_nll(model, prompts):
    """Mean over held-out images of an image id's negative log-likelihood after the prompts."""
    levels, _ = scans()
    base = VOCABULARY.range("image").base
    ids = torch.cat([torch.tensor(prompts), torch.from_numpy(levels[NUM_TRAIN:] + base)], dim=1)
    with torch.no_grad():
        logp = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    start = len(prompts[0])
    targets = ids[:, start:, None]
    return -logp[:, start - 1 : -1].gather(2, targets).mean().item()


def test_row_8_captions_say_what_images_hold(prefix, tmp_path):
    steps = scaled(90, 700)
    arguments = [
        f"data.prefix={prefix}",
        f"output={tmp_path / 'run'}",
        f"train.steps={steps}",
        "train.checkpoint_every=0",
        "data.bin_tokens=148",
        "train.global_batch_bins=24",
    ]
    train(load_train_config("cm3leon_tiny", arguments))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    labels = scans()[1][NUM_TRAIN:].tolist()
    masked = [VOCABULARY["eos"], VOCABULARY["mask_0"], VOCABULARY["break"]]
    right = image_nll(model, [caption(label) for label in labels])
    wrong = image_nll(model, [caption((label + 3) % 10) for label in labels])
    unconditional = image_nll(model, [masked] * len(labels))
    if is_long():
        assert right < 0.80
        assert wrong > right + 0.3
        assert right < unconditional
    else:
        # Uniform over the six levels is 1.79.
        assert right < 1.2
    report(
        count=steps,
        unit="steps",
        seed=0,
        result=f"nats an image id: {right:.3f} after its caption, {unconditional:.3f} after a mask, "
        f"{wrong:.3f} after another's caption",
    )
