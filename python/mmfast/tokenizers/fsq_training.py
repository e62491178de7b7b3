"""Trains the built-in FSQ tokenizer on a folder of images, and says whether the result can be used.

Plain reconstruction (L1 and L2 on pixels, and L1 on their differences to the right and downwards,
which keeps edges sharp), AdamW, warm-up and cosine decay. Same configuration, seed, images and number
of threads: the same weights, unless the budget is given in seconds. A fixed share of the images is
held out; quality is measured on it alone.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from mmfast.console import log, progress
from mmfast.errors import MmfastError
from mmfast.tokenizers.fsq import FsqConfig, FsqImageTokenizer
from mmfast.tokenizers.images import pixels_from_tensor, tensor_from_pixels
from mmfast.tokenizers.training_images import TrainingImages
from mmfast.tokenizers.views import AffineRange

# A tokenizer is useless when it tells its images apart no better than their mean does.
USELESS_PSNR_GAIN_DB = 0.5
# Below these the codes are called collapsed: perplexity over all codes as a share of the codebook (or
# of the codes seen, if fewer), and perplexity of the codes at one place over the images.
FEW_CODES_SHARE = 0.02
SAME_CODES = 1.2
MAX_PSNR_DB = 99.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FsqTrainingConfig:
    """Everything that `mmfast tokenizer train-image` can be told.

    Attributes:
        tokenizer: shape of the network.
        colour: `auto` makes a grey tokenizer when the first 200 images are grey, and an RGB one otherwise.
        views: `whole` trains on images brought to size; `crops` on random windows of the originals,
            from the whole shorter side down to `crop_min_scale` of it.
        augment: `affine` adds small random rotations, scales and shifts.
        steps: optimiser steps.
        seconds: when set, a budget of wall-clock time that replaces `steps`.
        learning_rate: peak, reached after `warmup_steps`; decays to a hundredth along a cosine.
        l1_weight, l2_weight, edge_weight: weights of the three terms of the loss.
        held_out_fraction: share of images that are only measured on, at most `max_held_out` of them.
        max_bad_fraction: share of unreadable images above which training is refused.
        cache_bytes: memory for decoded images; those beyond are decoded each time they are drawn.
        seed: of initialisation, split, order and augmentation.
    """

    tokenizer: FsqConfig = dataclasses.field(default_factory=FsqConfig)
    colour: Literal["auto", "grey", "rgb"] = "auto"
    views: Literal["whole", "crops"] = "whole"
    crop_min_scale: float = 0.4
    augment: Literal["none", "affine"] = "none"
    affine: AffineRange = dataclasses.field(default_factory=AffineRange)
    steps: int = 20_000
    seconds: float | None = None
    batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 200
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    edge_weight: float = 0.5
    held_out_fraction: float = 0.05
    max_held_out: int = 512
    max_bad_fraction: float = 0.05
    cache_bytes: int = 4 * 1024**3
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "learning_rate", "max_grad_norm", "max_held_out")
        for name in (*positive, *(["seconds"] if self.seconds is not None else [])):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        if not 0 < self.held_out_fraction < 1:
            raise ValueError("held_out_fraction must lie between 0 and 1")
        if not 0 < self.crop_min_scale <= 1:
            raise ValueError("crop_min_scale must be above 0 and at most 1")
        if self.l1_weight + self.l2_weight <= 0:
            raise ValueError("l1_weight and l2_weight are both 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FsqTrainingReport:
    """What a training run was and gave; figures are of the held-out images.

    Attributes:
        psnr_db: mean over images of the peak signal-to-noise ratio, at 8 bits.
        psnr_db_of_mean_image: the same for the training images' mean in place of a reconstruction.
        num_codes_used, code_perplexity: how many codes occur, and e to the entropy of their use.
        warnings: sentences on codes that collapse; empty when all is well.
        usable: False when reconstructions tell images apart no better than the mean image.
    """

    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    num_train: int
    num_held_out: int
    skipped: dict[str, int]
    psnr_db: float
    psnr_db_of_mean_image: float
    num_codes: int
    num_codes_used: int
    code_perplexity: float
    warnings: list[str]
    usable: bool


def load_images(paths: Sequence[Path], config: FsqTrainingConfig) -> TrainingImages:
    """The images that `config` asks for, split and decoded.

    Raises:
        UsageError: no image can be read, or more than `max_bad_fraction` cannot.
    """
    num_held_out = min(config.max_held_out, max(1, round(config.held_out_fraction * len(paths))))
    return TrainingImages(
        paths,
        height=config.tokenizer.image_height,
        width=config.tokenizer.image_width,
        resize=config.tokenizer.resize,
        colour=config.colour,
        keep_originals=config.views == "crops",
        num_held_out=num_held_out,
        max_bad_fraction=config.max_bad_fraction,
        cache_bytes=config.cache_bytes,
        seed=config.seed,
    )


def train_fsq(
    images: TrainingImages, config: FsqTrainingConfig, *, device: str = "cpu"
) -> tuple[FsqImageTokenizer, FsqTrainingReport]:
    """Trains a tokenizer and measures it on the held-out images.

    Raises:
        MmfastError: training diverged: the loss is no longer a finite number.
    """
    shape = dataclasses.replace(config.tokenizer, channels=images.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tokenizer = FsqImageTokenizer(shape)
    tokenizer.to(device).train()
    optimizer = torch.optim.AdamW(
        tokenizer.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    losses: list[float] = []
    started = time.monotonic()
    batches = images.batches(
        batch_size=config.batch_size,
        crop_min_scale=config.crop_min_scale,
        affine=config.affine if config.augment == "affine" else None,
        seed=config.seed,
        device=device,
    )
    total = config.seconds or config.steps
    unit = "s" if config.seconds else "steps"
    with progress("training", total=total, unit=unit) as job:
        before = 0.0
        while True:
            elapsed = time.monotonic() - started
            done = elapsed / config.seconds if config.seconds else len(losses) / config.steps
            if done >= 1 and losses:
                break
            warm = min(1.0, (len(losses) + 1) / max(config.warmup_steps, 1))
            decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * warm * decay
            x = next(batches)
            loss = reconstruction_loss(tokenizer(x), x, config)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), config.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise MmfastError(
                    f"training diverged: the loss is {losses[-1]} at step {len(losses)}; nothing was "
                    f"saved. Lower learning_rate (it is {config.learning_rate:g}) or raise warmup_steps "
                    f"(it is {config.warmup_steps})"
                )
            job.advance((elapsed - before) if config.seconds else 1, loss=losses[-1])
            before = elapsed
    seconds = time.monotonic() - started
    tokenizer.eval().requires_grad_(requires_grad=False)
    quality = measure(tokenizer, images.held_out, batch_size=config.batch_size)
    mean = images.mean_image().expand_as(images.held_out)
    mean_psnr = float(np.mean(psnr_db(mean, images.held_out)))
    usable, warnings = judge(
        quality,
        psnr_db_of_mean_image=mean_psnr,
        held_out=images.held_out,
        num_codes=shape.num_codes,
        downsample=shape.downsample,
    )
    report = FsqTrainingReport(
        steps=len(losses),
        seconds=round(seconds, 3),
        first_loss=sum(losses[:20]) / len(losses[:20]),
        last_loss=sum(losses[-20:]) / len(losses[-20:]),
        num_train=len(images),
        num_held_out=len(images.held_out),
        skipped=dict(images.skipped),
        psnr_db=quality.psnr_db,
        psnr_db_of_mean_image=mean_psnr,
        num_codes=shape.num_codes,
        num_codes_used=quality.num_codes_used,
        code_perplexity=quality.code_perplexity,
        warnings=warnings,
        usable=usable,
    )
    for warning in warnings:
        log(f"warning: {warning}")
    return tokenizer, report


def reconstruction_loss(
    y: torch.Tensor, x: torch.Tensor, config: FsqTrainingConfig
) -> torch.Tensor:
    """Weighted sum of mean L1, mean L2 and mean L1 of neighbour differences, `[B,C,H,W]` against the same."""
    error = y - x
    loss = config.l1_weight * error.abs().mean() + config.l2_weight * error.square().mean()
    if config.edge_weight:
        right = (error[..., 1:] - error[..., :-1]).abs().mean()
        below = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        loss = loss + config.edge_weight * (right + below) / 2
    return loss


@dataclasses.dataclass(frozen=True)
class Quality:
    """Reconstruction quality and use of codes on a set of images.

    Attributes:
        code_perplexity: e to the entropy of all codes together.
        place_perplexity: e to the mean entropy of the codes at one place of the grid, over images: 1
            when every image has the same codes.
    """

    psnr_db: float
    num_codes_used: int
    code_perplexity: float
    place_perplexity: float


def measure(tokenizer: FsqImageTokenizer, pixels: torch.Tensor, *, batch_size: int) -> Quality:
    """Encodes and decodes uint8 `[N,C,H,W]`; PSNR is the mean over images."""
    grids: list[torch.Tensor] = []
    ratios: list[float] = []
    for part in torch.split(pixels, batch_size):
        codes = tokenizer.encode(tensor_from_pixels(part))
        grids.append(codes[0].cpu().flatten(1))
        ratios += psnr_db(pixels_from_tensor(tokenizer.decode(codes)).cpu(), part)
    codes_np = torch.cat(grids).numpy()
    entropy_of_places = [_entropy(place) for place in codes_np.T]
    return Quality(
        psnr_db=float(np.mean(ratios)),
        num_codes_used=len(np.unique(codes_np)),
        code_perplexity=float(np.exp(_entropy(codes_np.ravel()))),
        place_perplexity=float(np.exp(np.mean(entropy_of_places))),
    )


def _entropy(codes: npt.NDArray[np.int64]) -> float:
    """Entropy in nats of the codes' empirical distribution."""
    _, counts = np.unique(codes, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def psnr_db(left: torch.Tensor, right: torch.Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB of each pair of uint8 images `[N,C,H,W]`, at most 99."""
    error = (left.to(torch.float64) - right.to(torch.float64)).square().mean(dim=(1, 2, 3))
    ratios = 10 * torch.log10(255.0**2 / error.clamp(min=1e-12))
    return [float(ratio) for ratio in ratios.clamp(max=MAX_PSNR_DB)]


def judge(
    quality: Quality,
    *,
    psnr_db_of_mean_image: float,
    held_out: torch.Tensor,
    num_codes: int,
    downsample: int,
) -> tuple[bool, list[str]]:
    """Whether codes carry the images, and a sentence for each sign that they do not."""
    warnings = []
    num_images, _, height, width = held_out.shape
    num_seen = num_images * (height // downsample) * (width // downsample)
    few = max(2.0, FEW_CODES_SHARE * min(num_codes, num_seen))
    if quality.code_perplexity < few or (num_images > 1 and quality.place_perplexity < SAME_CODES):
        warnings.append(
            f"codes have collapsed: {quality.num_codes_used} of {num_codes} occur in the held-out "
            f"images, perplexity {quality.code_perplexity:.2f} over all and "
            f"{quality.place_perplexity:.2f} at one place of the grid"
        )
    usable = quality.psnr_db > psnr_db_of_mean_image + USELESS_PSNR_GAIN_DB
    if not usable:
        warnings.append(
            f"reconstructions reach {quality.psnr_db:.1f} dB where the mean of the training images "
            f"alone gives {psnr_db_of_mean_image:.1f} dB: the codes tell nothing about an image. "
            "Check that the images differ; then train longer, or with another seed or learning rate"
        )
    return usable, warnings


def report_dict(report: FsqTrainingReport, config: FsqTrainingConfig) -> dict[str, Any]:
    """The plain JSON form that is written beside the tokenizer as `training.json`."""
    return {**dataclasses.asdict(report), "config": dataclasses.asdict(config)}
