"""A packed document's logits are those of the document alone, and the check can fail."""

import pytest
import torch
import torch.nn.functional as F

from mmfast.models import attention, attention_inputs, build_decoder, document_mask, initialise
from mmfast.models.attention import packed_lengths, padded_lengths
from mmfast.models.decoder import DecoderConfig
from mmfast.vocab import Vocabulary

VOCABULARY = Vocabulary.build(90, roles=["eos", "pad"], codes=[("image", 30)])
LENGTHS = (20, 40)
CPU = torch.device("cpu")


def decoder(architecture: str):
    # Wider initial weights than usual, so that a leak between documents is far above rounding.
    config = DecoderConfig(
        architecture=architecture,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        context_length=64,
        init_std=0.2,
    )
    model = build_decoder(config, VOCABULARY)
    model.to_empty(device="cpu")
    initialise(model, config, seed=1)
    return model


def packed_row(*, padding: int = 0):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 90, (1, sum(LENGTHS) + padding), generator=generator)
    documents = [torch.full((length,), k + 1) for k, length in enumerate(LENGTHS)]
    positions = [torch.arange(length) for length in LENGTHS]
    return {
        "input_ids": ids,
        "document_ids": torch.cat([*documents, torch.zeros(padding)]).int()[None],
        "position_ids": torch.cat([*positions, torch.zeros(padding)]).int()[None],
    }


def logits_alone(model, ids):
    document = ids[:, LENGTHS[0] : sum(LENGTHS)]
    return model(
        input_ids=document, position_ids=torch.arange(LENGTHS[1])[None], use_cache=False
    ).logits[0]


def second_document(logits):
    return logits[0, LENGTHS[0] : sum(LENGTHS)]


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("padding", [0, 5])
def test_packed_documents_have_the_logits_of_the_document_alone(architecture, prepared, padding):
    model, row = decoder(architecture), packed_row(padding=padding)
    document_ids = row.pop("document_ids")
    attention = (
        attention_inputs(document_ids, device=CPU, dtype=torch.float32)
        if prepared
        else {"document_ids": document_ids}
    )
    with torch.no_grad():
        packed = model(**row, **attention, use_cache=False).logits
        alone = logits_alone(model, row["input_ids"])
    assert packed.isfinite().all()
    assert (second_document(packed) - alone).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("architecture", "call"),
    [
        ("llama", {}),
        ("llama", {"attention_mask": torch.ones(1, sum(LENGTHS))}),
        ("opt", {"use_cache": False}),
    ],
)
def test_transformers_own_packed_detection_leaks_where_ours_does_not(architecture, call):
    model, row = decoder(architecture), packed_row()
    del row["document_ids"]
    with torch.no_grad():
        alone = logits_alone(model, row["input_ids"])
        model.set_attn_implementation("sdpa")
        leaked = second_document(model(**row, **call).logits)
    assert (leaked - alone).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_a_single_document_equals_transformers_sdpa(architecture):
    model, row = decoder(architecture), packed_row()
    ids = row["input_ids"]
    with torch.no_grad():
        ours = model(input_ids=ids, use_cache=False).logits
        model.set_attn_implementation("sdpa")
        theirs = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_padding_mask_of_the_caller_is_honoured():
    model, row = decoder("llama"), packed_row()
    ids = row["input_ids"][:, :12]
    padding = torch.ones(1, 12, dtype=torch.long)
    padding[:, :4] = 0
    positions = (padding.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        padded = model(
            input_ids=ids, attention_mask=padding, position_ids=positions, use_cache=False
        ).logits
        alone = model(input_ids=ids[:, 4:], use_cache=False).logits
    torch.testing.assert_close(padded[:, 4:], alone, rtol=1e-5, atol=1e-5)


def test_grouped_key_value_heads_are_accepted():
    config = DecoderConfig(
        hidden_size=32, intermediate_size=64, num_layers=1, num_heads=4, num_kv_heads=2
    )
    model = build_decoder(config, VOCABULARY)
    model.to_empty(device="cpu")
    initialise(model, config, seed=1)
    row = packed_row()
    with torch.no_grad():
        packed = model(**row, use_cache=False).logits
        alone = logits_alone(model, row["input_ids"])
    torch.testing.assert_close(second_document(packed), alone, rtol=1e-5, atol=1e-5)


def test_document_mask_lets_a_token_see_its_own_document_only():
    mask = document_mask(torch.tensor([[1, 1, 2, 0]]))[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_packed_lengths_cover_every_token_and_never_join_rows():
    cu_seqlens, longest = packed_lengths(torch.tensor([[1, 1, 2, 0], [0, 0, 0, 0]]))
    assert cu_seqlens.tolist() == [0, 2, 3, 4, 8]
    assert longest == 4


@pytest.mark.parametrize(
    ("ends", "longest", "row_tokens", "padded", "bound"),
    [
        ([0, 8], 8, 8, [0, 8], 8),
        ([0, 2, 3, 8], 5, 8, [0, 2, 3, 8, 8], 8),
        ([0, 1, 2, 3, 5, 8], 3, 8, [0, 1, 2, 3, 5, 8, 8, 8, 8], 4),
        ([0, 6, 12], 6, 6, [0, 6, 12], 6),
    ],
)
def test_lengths_are_rounded_up_with_empty_documents(ends, longest, row_tokens, padded, bound):
    found = padded_lengths(torch.tensor(ends, dtype=torch.int32), longest, row_tokens)
    assert found[0].dtype == torch.int32
    assert (found[0].tolist(), found[1]) == (padded, bound)


@pytest.fixture
def varlen_on_cpu(monkeypatch):
    """The branch of variable-length attention with a plain loop over documents for its kernel."""

    def attend(q_thd, k_tkd, v_tkd, cu_seq_q, cu_seq_k, max_q, max_k, scaling):
        out_thd = torch.full_like(q_thd, torch.nan)
        assert cu_seq_q.equal(cu_seq_k)
        for first, end in torch.stack([cu_seq_q[:-1], cu_seq_q[1:]], dim=1).tolist():
            assert end - first <= max_q == max_k
            if first == end:
                continue
            q, k, v = (x[first:end].transpose(0, 1) for x in (q_thd, k_tkd, v_tkd))
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, enable_gqa=True
            )
            out_thd[first:end] = out.transpose(0, 1)
        return out_thd

    monkeypatch.setattr(attention, "varlen_available", lambda _device, _dtype: True)
    monkeypatch.setattr(attention, "_varlen_function", lambda: attend)


@pytest.mark.usefixtures("varlen_on_cpu")
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_the_variable_length_branch_has_the_logits_of_the_explicit_mask(architecture):
    model, row = decoder(architecture), packed_row(padding=5)
    document_ids = row.pop("document_ids")
    packed = attention_inputs(document_ids, device=CPU, dtype=torch.float32)
    # Three documents, padding included, became four, the last of them empty.
    assert packed["cu_seqlens"].tolist() == [0, 20, 60, 65, 65]
    with torch.no_grad():
        varlen = model(**row, **packed, use_cache=False).logits
        masked = model(**row, attention_mask=document_mask(document_ids), use_cache=False).logits
    torch.testing.assert_close(varlen, masked, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("varlen_on_cpu")
def test_batches_of_like_documents_have_one_shape_of_lengths():
    """Otherwise a compiled block would be compiled anew for nearly every batch."""
    generator = torch.Generator().manual_seed(0)
    shapes, exact = set(), set()
    for _ in range(30):
        documents = torch.randint(5, 9, (4, 64), generator=generator).cumsum(1)
        places = torch.arange(256).expand(4, 256).contiguous()
        document_ids = torch.searchsorted(documents, places, right=True) + 1
        found = attention_inputs(document_ids, device=CPU, dtype=torch.float32)
        shapes.add((len(found["cu_seqlens"]), found["max_seqlen"]))
        exact.add(len(packed_lengths(document_ids)[0]))
    assert len(exact) > 3
    assert shapes == {(257, 8)}
