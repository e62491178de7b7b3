"""Starts from any causal language model in the Hugging Face layout, with its tables grown for new ids.

The class and shape are the folder's own; attention is `"mmfast"`. The ids of the folder's tokenizer keep
their rows, ids beyond them get new ones. Weights are read on rank 0 alone, from safetensors, and sent to
the others one tensor at a time, so a rank holds no more than its part and one tensor.

Legend: V rows of a table before, D its width.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmfast.errors import UsageError
from mmfast.models.lora import is_adapter
from mmfast.models.windows import sliding_window
from mmfast.vocab import Vocabulary

EmbeddingInit = Literal["mean", "mean_covariance", "normal"]


def pretrained_config(folder: Path, vocabulary: Vocabulary, *, rows_multiple_of: int) -> Any:
    """The folder's transformers configuration with rows for every id of `vocabulary`.

    Raises:
        UsageError: the folder holds no model, or one whose attention or loss is not what ours computes.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is not an exported model: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise UsageError(f"transformers cannot read {folder}/config.json: {error}") from error
    if not hasattr(config, "vocab_size"):
        raise UsageError(
            f"{folder} holds more than a language model ({config.model_type}); write that one by itself, e.g. "
            'with `mmfast.load(folder).save_network("language")`, and start from it'
        )
    _require_plain(config, folder)
    config.vocab_size = _num_rows(config.vocab_size, vocabulary, rows_multiple_of)
    for role in ("bos", "eos", "pad"):
        if role in vocabulary:
            setattr(config, f"{role}_token_id", vocabulary[role])
    return config


def num_pretrained_rows(folder: Path) -> int:
    """Rows of the tables of the model in `folder`."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    num_rows: int = config.vocab_size
    return num_rows


def _num_rows(old: int, vocabulary: Vocabulary, multiple_of: int) -> int:
    if vocabulary.size <= old:
        return old
    return -(-vocabulary.size // multiple_of) * multiple_of


def _require_plain(config: Any, folder: Path) -> None:
    """Refuses what our attention or loss would silently leave out."""
    sliding_window(config)
    found = {
        "soft-capped attention": getattr(config, "attn_logit_softcapping", None) is not None,
        "soft-capped logits": getattr(config, "final_logit_softcapping", None) is not None,
        "scaled logits": getattr(config, "logit_scale", None) not in (None, 1.0)
        or getattr(config, "logits_scaling", None) not in (None, 1.0),
    }
    for what, is_found in found.items():
        if is_found:
            raise UsageError(
                f"the model in {folder} ({config.model_type}) has {what}, which training here does not "
                "compute; start from a model without it"
            )


@torch.no_grad()
def load_pretrained(
    decoder: Any, folder: Path, *, embedding_init: EmbeddingInit, seed: int
) -> None:
    """Fills a decoder built from `pretrained_config` with the folder's weights; every rank calls it.

    Args:
        decoder: with storage, sharded or not.
        folder: the model.
        embedding_init: rows of new ids: the mean of the old ones; a draw from the normal distribution with
            their mean and covariance (Hewitt 2021); or a normal draw with the model's own deviation.
        seed: of those draws.

    Raises:
        UsageError: the weights cannot be read.
    """
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    weights: dict[str, Tensor] = {}
    failure = ""
    if is_first:
        try:
            weights = _read(folder)
        except (OSError, ValueError, RuntimeError) as error:
            failure = f"the weights in {folder} cannot be read: {error}"
    failure = _told(failure)
    if failure:
        raise UsageError(failure)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if is_adapter(name):
            continue
        if is_first:
            full = weights[name].float()
            if full.shape != parameter.shape:
                std = getattr(decoder.config, "initializer_range", 0.02)
                rows = parameter.shape[0]
                full = grown_table(full, rows, how=embedding_init, std=std, generator=generator)
        else:
            full = torch.empty(parameter.shape)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast(full, src=0)
        assign(parameter, full)


def _read(folder: Path) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return dict(model.named_parameters())


def _told(failure: str) -> str:
    """Rank 0's text, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return failure
    told: list[Any] = [failure]
    dist.broadcast_object_list(told, src=0)
    text: str = told[0]
    return text


def grown_table(
    old_vd: Tensor, rows: int, *, how: EmbeddingInit, std: float, generator: torch.Generator
) -> Tensor:
    """`[rows, D]`: the old rows, then new ones as `load_pretrained` says.

    Raises:
        UsageError: fewer rows than before.
    """
    V, D = old_vd.shape
    if rows < V:
        raise UsageError(f"a table of {V} rows cannot shrink to {rows}")
    mean = old_vd.mean(0)
    noise = torch.zeros(rows - V, D)
    if how != "mean":
        noise.normal_(generator=generator)
    if how == "normal":
        return torch.cat([old_vd, std * noise])
    if how == "mean_covariance":
        covariance = torch.cov(old_vd.T, correction=0).double()
        # A ridge far below the spread keeps the factor real where rows do not span the space.
        ridge = 1e-6 * covariance.diagonal().mean().clamp(min=1e-12)
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(D, dtype=torch.float64))
        noise = noise @ factor.T.float()
    return torch.cat([old_vd, mean + noise])


def assign(parameter: nn.Parameter, full: Tensor) -> None:
    """Copies a whole tensor into a parameter, or this rank's part of it into a sharded one."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    full = full.to(device=parameter.device, dtype=parameter.dtype)
    if isinstance(parameter, DTensor):
        # Every rank holds the same values already, so each cuts its own part: nothing is sent.
        part = distribute_tensor(
            full, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(full)
