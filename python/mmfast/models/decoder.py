"""Builds a causal decoder, a stock transformers class, from a shape and a vocabulary.

The classes stay transformers' own, so that an export opens anywhere; what is ours is the shape
(presets), the ids (from the vocabulary), the attention and the initialisation. Every parameter's
values come from its own generator, keyed by (seed, parameter name), so they depend neither on the
number of processes nor on the order of parameters.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mmfast.errors import CorruptDataError, UsageError
from mmfast.models.attention import register_attention
from mmfast.models.lora import DOWN, UP, is_adapter
from mmfast.models.pretrained import assign, pretrained_config
from mmfast.vocab import FILE_NAME as VOCABULARY_FILE
from mmfast.vocab import Vocabulary

PRESET_PACKAGE = "mmfast.models.presets"
RESIDUAL_PROJECTIONS = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")
"""Ends of the names of matrices that write into the residual stream."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder. `preset` names a file of `mmfast/models/presets`; other keys override it.

    Attributes:
        preset: `tiny`, `llama_350m`, `cm3leon_350m`, …; empty for the values given here alone.
        architecture: `llama` (rotary positions, RMSNorm, gated MLP), `opt` (learned positions,
            LayerNorm; here without biases and affine norms, as CM3Leon describes its model), or
            `pretrained`: class and shape of the model in `init_from`; the keys of the shape below then
            say nothing, but for `context_length`. `model.from=FOLDER` on the command line stands for these two keys.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the MLP.
        num_layers: number of blocks.
        num_heads: attention heads; must divide `hidden_size`.
        num_kv_heads: key-value heads (`llama` only); must divide `num_heads`.
        context_length: longest document in tokens.
        rope_theta: base of the rotary frequencies (`llama` only).
        activation: the MLP's activation as transformers names it.
        tie_embeddings: whether the output layer is the embedding table.
        norm_eps: added to the variance in norms (`llama` only; OPT's is 1e-5).
        init_std: standard deviation of the initial weights.
        residual_init: projections that write into the residual stream: `scaled` divides their deviation
            by `sqrt(2 * num_layers)` (GPT-2, Radford et al. 2019, §2.3); `zero` starts every block as
            the identity (CM3Leon, Yu et al. 2023, §2.3).
        position_std: standard deviation of learned positions (`opt` only); `init_std` when None.
        init_from: folder of an exported model to start from instead of random weights.
        embedding_init: rows of ids that a `pretrained` model lacks: the mean of its rows, a draw with
            their mean and covariance, or a normal draw.
        rows_multiple_of: to what the tables of a `pretrained` model are rounded up when they grow.
    """

    preset: str = "tiny"
    architecture: Literal["llama", "opt", "pretrained"] = "llama"
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    context_length: int = 512
    rope_theta: float = 10000.0
    activation: str = "silu"
    tie_embeddings: bool = False
    norm_eps: float = 1e-6
    init_std: float = 0.02
    residual_init: Literal["scaled", "zero"] = "scaled"
    position_std: float | None = None
    init_from: str = ""
    embedding_init: Literal["mean", "mean_covariance", "normal"] = "mean_covariance"
    rows_multiple_of: int = 64

    def __post_init__(self) -> None:
        if self.architecture == "pretrained" and not self.init_from:
            raise ValueError(
                "model.architecture pretrained needs model.init_from, a model's folder"
            )
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "rows_multiple_of",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}, but must be at least 1")
        if self.context_length < 2:
            raise ValueError(
                f"model.context_length is {self.context_length}, but must be at least 2"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.num_heads {self.num_heads} does not divide model.hidden_size {self.hidden_size}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads {self.num_kv_heads} does not divide model.num_heads {self.num_heads}"
            )
        if self.architecture == "opt" and self.num_kv_heads != self.num_heads:
            raise ValueError("model.num_kv_heads must equal model.num_heads for architecture opt")
        for name in ("init_std", "position_std", "norm_eps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"model.{name} is {value}, but must be positive")


def build_decoder(config: DecoderConfig, vocabulary: Vocabulary) -> Any:
    """A transformers causal language model on the meta device, in fp32, with attention `"mmfast"`.

    Parameters have no storage yet: shard it if wanted, call `to_empty`, then `initialise`.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            hf_config(config, vocabulary),
            dtype=torch.float32,
            attn_implementation=register_attention(),
        )
    return model


def hf_config(config: DecoderConfig, vocabulary: Vocabulary) -> Any:
    """The transformers configuration: shape from `config`, ids from `vocabulary`.

    Raises:
        UsageError: the vocabulary has no `eos`.
    """
    from transformers import LlamaConfig, OPTConfig

    if "eos" not in vocabulary:
        raise UsageError(
            "the vocabulary has no special token `eos`, which a causal decoder needs; "
            f"it has {sorted(vocabulary.special)}"
        )
    if config.architecture == "pretrained":
        return pretrained_config(
            Path(config.init_from), vocabulary, rows_multiple_of=config.rows_multiple_of
        )
    eos = vocabulary["eos"]
    shared: dict[str, Any] = {
        "vocab_size": vocabulary.size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tie_embeddings,
        "eos_token_id": eos,
        "bos_token_id": vocabulary.special.get("bos", eos),
        "pad_token_id": vocabulary.special.get("pad"),
    }
    if config.architecture == "llama":
        return LlamaConfig(
            **shared,
            intermediate_size=config.intermediate_size,
            num_key_value_heads=config.num_kv_heads,
            hidden_act=config.activation,
            rms_norm_eps=config.norm_eps,
            initializer_range=config.init_std,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    return OPTConfig(
        **shared,
        ffn_dim=config.intermediate_size,
        word_embed_proj_dim=config.hidden_size,
        activation_function=config.activation,
        init_std=config.init_std,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        do_layer_norm_before=True,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
    )


@torch.no_grad()
def initialise(model: Any, config: DecoderConfig, *, seed: int) -> None:
    """Fills parameters and buffers of a model that has storage, sharded or not.

    Matrices and tables are normal with `init_std`, cut at three deviations, but for those that
    `residual_init` and `position_std` name; vectors are norm scales (1) or biases (0); the padding row
    is 0. Values are drawn on the CPU, one whole tensor at a time.
    """
    if model.config.tie_word_embeddings and not _is_tied(model):
        model.tie_weights()  # `to_empty` gives a table that is used twice two storages
    padding_idx = model.config.pad_token_id
    for name, parameter in model.named_parameters():
        if config.architecture == "pretrained" and not is_adapter(name):
            continue  # `load_pretrained` or a checkpoint fills it
        if parameter.ndim < 2:
            full = torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0)
        else:
            std = _initial_std(name, config)
            full = torch.zeros(parameter.shape)
            if std > 0:
                nn.init.trunc_normal_(
                    full, std=std, a=-3 * std, b=3 * std, generator=_generator(seed, name)
                )
            if name.endswith("embed_tokens.weight") and padding_idx is not None:
                full[padding_idx] = 0.0
        assign(parameter, full)
    for module in model.modules():
        # Rotary tables are buffers that no checkpoint holds; transformers fills them anew.
        if any(True for _ in module.buffers(recurse=False)):
            model._init_weights(module)  # the only public form would draw every weight again


@torch.no_grad()
def load_exported(model: Any, folder: Path, vocabulary: Vocabulary) -> None:
    """Fills a model that has storage with the weights of an exported folder.

    Raises:
        VocabularyMismatchError: the folder's vocabulary differs from `vocabulary`.
        CorruptDataError: the folder lacks a tensor or holds one of another shape.
        UsageError: the folder holds no exported model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} is not an exported model: it has no config.json")
    if (folder / VOCABULARY_FILE).is_file():
        Vocabulary.load(folder).require_same(
            vocabulary, here=f"the model {folder}", there="the data"
        )
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            tensors.update(load_file(file))
        except SafetensorError as error:
            raise CorruptDataError(f"{file} is not a safetensors file: {error}") from error
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        found = tensors.get(name)
        if found is None or found.shape != parameter.shape:
            what = "no tensor" if found is None else f"shape {tuple(found.shape)} for"
            raise CorruptDataError(
                f"{folder} has {what} {name!r}, expected shape {tuple(parameter.shape)}; "
                "check that model.* matches the exported model's config.json"
            )
        assign(parameter, found.float())


def _initial_std(name: str, config: DecoderConfig) -> float:
    """Standard deviation that a matrix or table starts with."""
    if name.endswith(UP):
        return 0.0
    if name.endswith(DOWN):
        return 0.02
    if name.endswith(RESIDUAL_PROJECTIONS):
        return 0.0 if config.residual_init == "zero" else config.init_std / _root_depth(config)
    if name.endswith("embed_positions.weight") and config.position_std is not None:
        return config.position_std
    return config.init_std


def _root_depth(config: DecoderConfig) -> float:
    depth: float = (2 * config.num_layers) ** 0.5
    return depth


def _is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, tied tables counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
