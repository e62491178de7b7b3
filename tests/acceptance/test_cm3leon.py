"""CM3Leon's objective, data and model against the numbered checks that a correct build must pass.

Row 8, what the model learns, is `test_cm3leon_digits.py` and the training runs of `tests/distributed`.
"""

import collections
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from mmfast.config import load_config
from mmfast.data import IndexedDatasetBuilder, Loader
from mmfast.models import (
    DecoderConfig,
    attention_inputs,
    build_decoder,
    initialise,
    parameter_count,
    register_attention,
)
from mmfast.models.decoder import PRESET_PACKAGE
from mmfast.objectives import Cm3, restore_document
from mmfast.objectives.document import NO_LIMIT
from mmfast.train.loss import weighted_nll
from mmfast.vocab import CodeRange, Vocabulary

EOS, BREAK, EOSS, FIRST_MASK = 1, 2, 99, 100
VOCABULARY = Vocabulary(
    size=3_072,
    text_size=99,
    special={
        "eos": EOS,
        "break": BREAK,
        "eoss": EOSS,
        **{f"mask_{i}": FIRST_MASK + i for i in range(16)},
    },
    ranges=(CodeRange(name="image", base=2_000, size=64),),
)
# Upper 1 % points of chi-squared with 9 degrees of freedom.
CHI_SQUARED_9 = 21.67


def transformer(objective):
    """A function from ids, lengths and modes to what the objective makes of document number `n`."""
    native = objective.native(VOCABULARY)

    def transform(ids, lengths, modes, n):
        where = {"seed": 11, "source": 0, "epoch": 0, "document": n, "max_tokens": NO_LIMIT}
        return native.transform(np.asarray(ids, np.int64), lengths, modes, **where)

    return transform


def single_span(ids, num_ids):
    """Start and length of the one span of a transformed document."""
    hole, moved = np.flatnonzero(ids == FIRST_MASK).tolist()
    return hole, len(ids) - 2 - moved


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(2, 5)], [10, 11, 100, 15, 16, 17, 18, 19, 100, 12, 13, 14, 99]),
        (
            [(1, 3), (6, 8)],
            [10, 100, 13, 14, 15, 101, 18, 19, 100, 11, 12, 99, 101, 16, 17, 99],
        ),
    ],
)
def test_row_1_golden_vectors(spans, expected):
    """Some document number draws exactly these spans; what becomes of 10 … 19 is published."""
    objective = Cm3(spans="fixed", span_rate=len(spans), whole_segment_prob=0.0)
    transform = transformer(objective)
    holes = [start for start, _ in spans]
    for n in range(60_000):
        ids = transform(range(10, 20), [10], [0], n)[0]
        if ids[holes[0]] == FIRST_MASK and len(ids) == len(expected) and ids.tolist() == expected:
            return
    pytest.fail("no document drew the spans")


def test_row_1_a_hundred_thousand_documents_can_be_restored():
    rng = random.Random(1)
    transform = transformer(Cm3(whole_segment_prob=0.2, min_spans=0, span_rate=2.0))
    for n in range(100_000):
        text = [EOS, *(rng.randrange(10, 90) for _ in range(rng.randrange(8))), BREAK]
        image = [2_000 + rng.randrange(64) for _ in range(rng.randrange(12))]
        document = [*text, *image, EOS]
        ids, _, _, _, num_spans = transform(document, [len(text), len(image), 1], [0, 1, 0], n)
        assert len(ids) == len(document) + 3 * num_spans
        counts = collections.Counter(i for i in ids.tolist() if FIRST_MASK <= i < FIRST_MASK + 16)
        assert set(counts.values()) <= {2}
        assert len(counts) == num_spans
        if num_spans:
            assert restore_document(ids, VOCABULARY).tolist() == document
            ends = np.flatnonzero(ids == EOSS)
            starts = [np.flatnonzero(ids == FIRST_MASK + i)[1] for i in range(num_spans)]
            assert all(end - start > 1 for start, end in zip(starts, ends, strict=True))
        else:
            assert ids.tolist() == document


@pytest.mark.parametrize(
    ("min_spans", "shares"),
    [(0, [0.3679, 0.3679, 0.1839, 0.0613]), (1, [0.0, 0.7358, 0.1839, 0.0613])],
)
def test_row_2_numbers_of_spans_follow_the_clamped_poisson(min_spans, shares):
    transform = transformer(Cm3(whole_segment_prob=0.0, min_spans=min_spans))
    ids = list(range(200, 1_200))
    num_documents = 20_000
    counts = collections.Counter(transform(ids, [1_000], [0], n)[4] for n in range(num_documents))
    for number, share in enumerate(shares):
        assert counts[number] / num_documents == pytest.approx(share, abs=0.01)


def test_row_2_spans_lie_like_two_uniform_numbers():
    transform = transformer(Cm3(spans="fixed", span_rate=1, whole_segment_prob=0.0))
    S, num_documents = 1_000, 40_000
    ids = list(range(200, 200 + S))
    spans = [single_span(transform(ids, [S], [0], n)[0], S) for n in range(num_documents)]
    starts, lengths = np.array(spans).T
    assert lengths.mean() == pytest.approx(S / 3, rel=0.01)
    edges = np.linspace(0, 1, 11)
    for found, cdf in [(starts, 1 - (1 - edges) ** 2), (starts + lengths, edges**2)]:
        observed = np.histogram(found / S, bins=edges)[0]
        expected = np.diff(cdf) * num_documents
        assert ((observed - expected) ** 2 / expected).sum() < CHI_SQUARED_9


def test_row_3_no_span_holds_a_separator_and_whole_segments_have_their_share():
    text, image = [EOS, *range(10, 20), BREAK], list(range(2_000, 2_064))
    document, lengths = [*text, *image, EOS], [12, 64, 1]
    for whole in (0.0, 0.3):
        transform = transformer(Cm3(whole_segment_prob=whole, span_rate=1.5))
        for n in range(5_000):
            ids, *_, num_spans = transform(document, lengths, [0, 1, 0], n)
            if num_spans:
                tail = ids[np.flatnonzero(ids == FIRST_MASK)[1] :]
                assert not np.isin(tail, [EOS, BREAK]).any()
    only_whole = Cm3(spans="fixed", span_rate=0, whole_segment_prob=0.3)
    transform = transformer(only_whole)
    num_documents = 60_000
    moved = sum(transform(document, lengths, [0, 1, 0], n)[4] for n in range(num_documents))
    assert moved / num_documents == pytest.approx(0.3, abs=0.005)


def test_row_4_weights_of_sentinels_and_of_retrieved_documents():
    generator = torch.Generator().manual_seed(0)
    document = [EOS, *range(10, 30), BREAK]
    ids, _, _, weights, num_spans = transformer(
        Cm3(spans="fixed", span_rate=2, whole_segment_prob=0.0, sentinel_loss_weight=0.0)
    )(document, [len(document)], [0], 3)
    assert num_spans == 2
    is_sentinel = torch.from_numpy(np.isin(ids, range(FIRST_MASK, FIRST_MASK + 16)))
    labels, weights = torch.from_numpy(ids), torch.from_numpy(weights)
    hidden = torch.randn(len(ids), 8, generator=generator).requires_grad_()
    head = torch.randn(128, 8, generator=generator).requires_grad_()
    total, _ = weighted_nll(hidden, head, labels, weights)
    (gradient,) = torch.autograd.grad(total, hidden)
    assert not gradient[is_sentinel].any()
    assert gradient[~is_sentinel].any(dim=1).all()
    retrieved = torch.arange(len(ids)) < 10
    nll = F.cross_entropy(hidden.detach() @ head.detach().T, labels, reduction="none")
    for alpha in (0.0, 0.1, 1.0):
        scaled = weights * torch.where(retrieved, alpha, 1.0)
        total, _ = weighted_nll(hidden, head, labels, scaled)
        by_hand = sum(w * n for w, n in zip(scaled.tolist(), nll.tolist(), strict=True))
        mean = (total / scaled.sum()).item()
        assert mean == pytest.approx(by_hand / sum(scaled.tolist()), abs=1e-6)


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    """A dataset of a million tokens: captions and images of 64 ids."""
    rng = np.random.default_rng(0)
    prefix = tmp_path_factory.mktemp("million") / "train"
    with IndexedDatasetBuilder(str(prefix), multimodal=True) as builder:
        for _ in range(13_000):
            text = [EOS, *rng.integers(10, 90, 10).tolist(), BREAK]
            image = rng.integers(2_000, 2_064, 64).tolist()
            builder.add_document([*text, *image, EOS], [12, 64, 1], modes=[0, 1, 0])
    VOCABULARY.save(prefix.parent)
    return prefix


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"  # Python 3.12 and later
)
def test_row_5_a_million_tokens_come_in_the_same_batches(million):
    def loader():
        settings = {"bin_tokens": 512, "global_batch_bins": 64, "seed": 5}
        return Loader([str(million)], Cm3(), window_documents=2_048, **settings)

    num_batches = 34  # 64 rows of 512, some of it padding
    first = [batch for batch, _ in zip(loader(), range(num_batches), strict=False)]
    assert sum(batch.num_tokens for batch in first) > 1_000_000

    def same(batches, expected):
        for batch, other in zip(batches, expected, strict=True):
            for name, tensor in batch.rows.items():
                assert torch.equal(tensor, getattr(other, name)), name

    same((batch for batch, _ in zip(loader(), range(num_batches), strict=False)), first)
    for num_workers in (1, 2):
        through = DataLoader(loader(), batch_size=None, num_workers=num_workers)
        same((batch for batch, _ in zip(through, range(8), strict=False)), first[:8])
    resumed = loader()
    resumed.load_state_dict(first[16].state)
    same((batch for batch, _ in zip(resumed, range(num_batches - 17), strict=False)), first[17:])


def small(**settings):
    config = DecoderConfig(
        architecture="opt", activation="relu", tie_embeddings=True, context_length=64, **settings
    )
    model = build_decoder(config, VOCABULARY)
    model.to_empty(device="cpu")
    initialise(model, config, seed=1)
    return model


def test_row_6_a_packed_document_has_the_logits_of_the_document_alone():
    model = small(hidden_size=32, intermediate_size=64, num_layers=2, init_std=0.2)
    ids = torch.randint(0, 2_000, (1, 60), generator=torch.Generator().manual_seed(0))
    document_ids = torch.tensor([[1] * 20 + [2] * 40], dtype=torch.int32)
    positions = torch.cat([torch.arange(20), torch.arange(40)])[None]
    attention = attention_inputs(document_ids, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False, **attention).logits
        alone = model(
            input_ids=ids[:, 20:], position_ids=torch.arange(40)[None], use_cache=False
        ).logits
    assert (packed[0, 20:] - alone[0]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("cm3leon_350m", 373.3), ("cm3leon_760m", 786.4), ("cm3leon_7b", 6_727.7)],
)
def test_row_7_no_biases_no_norm_weights_and_the_published_sizes(preset, millions):
    config = load_config(DecoderConfig, preset=preset, preset_package=PRESET_PACKAGE)
    model = build_decoder(config, Vocabulary.build(65_000, roles=["eos"], multiple_of=65_536))
    names = list(model.state_dict())
    assert not [name for name in names if "bias" in name or "norm" in name]
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.05)


def test_row_7_at_the_start_no_layer_changes_the_logits():
    config = load_config(DecoderConfig, preset="cm3leon_tiny", preset_package=PRESET_PACKAGE)
    model = build_decoder(config, VOCABULARY)
    model.to_empty(device="cpu")
    initialise(model, config, seed=1)
    ids = torch.arange(200, 230)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        decoder = model.base_model.decoder
        embedded = decoder.embed_tokens(ids) + decoder.embed_positions.weight[2:32]
        expected = F.layer_norm(embedded, (config.hidden_size,)) @ decoder.embed_tokens.weight.T
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_row_7_heads_of_96_equal_the_eager_reference():
    model = small(
        hidden_size=192,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        init_std=0.1,
    )
    assert model.config.hidden_size // model.config.num_attention_heads == 96
    ids = torch.arange(200, 232)[None]
    results = []
    for name in (register_attention(), "eager"):
        model.set_attn_implementation(name)
        logits = model(input_ids=ids, use_cache=False).logits
        model.zero_grad()
        logits.square().mean().backward()
        layer = model.base_model.decoder.layers[0].self_attn
        results.append((logits.detach(), layer.q_proj.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
