"""The images that a tokenizer is trained on: decoded once, split by seed, drawn as batches of views.

Images stay in memory as uint8 up to `cache_bytes`; those beyond are decoded again each time they are
drawn, by threads. A file that turns out bad is skipped and counted, whenever that is.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from mmfast.console import progress
from mmfast.errors import BadRecordError, UsageError
from mmfast.tokenizers.images import (
    ResizePolicy,
    open_image,
    pixels_from_image,
    resize_image,
    tensor_from_pixels,
)
from mmfast.tokenizers.views import (
    NUM_AFFINE_DRAWS,
    AffineRange,
    affine_matrices,
    keyed_generator,
    warp,
)

COLOUR_SAMPLE = 200
NUM_DECODERS = 8


class TrainingImages:
    """A folder's images for one training run.

    Attributes:
        channels: 1 or 3.
        held_out: uint8 `[N,C,H,W]`, never trained on unless the folder has a single image.
        skipped: bad files so far, by reason.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        height: int,
        width: int,
        resize: ResizePolicy,
        colour: Literal["auto", "grey", "rgb"],
        keep_originals: bool,
        num_held_out: int,
        max_bad_fraction: float,
        cache_bytes: int,
        seed: int,
    ) -> None:
        """Decodes what fits into `cache_bytes`, in an order shuffled by `seed`.

        Args:
            paths: image files.
            height: of a view, in pixels.
            width: of a view, in pixels.
            resize: how an image is brought to that size.
            colour: `auto` is grey if the first 200 images are.
            keep_originals: keep images at their own size, to cut windows from.
            num_held_out: images set apart.
            max_bad_fraction: share of bad files, among those decoded here, that is borne.
            cache_bytes: memory for decoded images.
            seed: of the split.

        Raises:
            UsageError: no image can be read, or too many cannot.
        """
        self._size = (height, width)
        self._resize: ResizePolicy = resize
        self._keep_originals = keep_originals
        self.skipped: Counter[str] = Counter()
        shuffled = [paths[i] for i in keyed_generator(seed, "fsq split").permutation(len(paths))]
        self.channels = _channels(shuffled) if colour == "auto" else 1 if colour == "grey" else 3
        held_out: list[torch.Tensor] = []
        self._train: list[Path | torch.Tensor] = []
        num_bytes, last_problem, num_tried = 0, "", 0
        with progress("reading", total=len(paths), unit="images") as job:
            for path in shuffled:
                if num_bytes >= cache_bytes:
                    break
                job.advance()
                num_tried += 1
                try:
                    if len(held_out) < num_held_out:
                        held_out.append(self._decoded(path, at_size=True))
                    else:
                        pixels = self._decoded(path, at_size=not keep_originals)
                        self._train.append(pixels)
                        num_bytes += pixels.numel()
                except BadRecordError as error:
                    self.skipped[error.reason] += 1
                    last_problem = str(error)
        num_bad = self.skipped.total()
        if not held_out or num_bad > max_bad_fraction * num_tried:
            raise UsageError(
                f"{num_bad} of {num_tried} images cannot be read ({_reasons(self.skipped)}); "
                f"the last: {last_problem}. Remove them or raise max_bad_fraction"
            )
        self._train += shuffled[num_tried:]
        self.held_out = torch.stack(held_out)
        if not self._train:
            self._train = list(held_out)

    def __len__(self) -> int:
        return len(self._train)

    def mean_image(self) -> torch.Tensor:
        """uint8 `[C,H,W]`: mean of the decoded training images, brought to size."""
        total = torch.zeros(self.channels, *self._size, dtype=torch.float64)
        decoded = [pixels for pixels in self._train if isinstance(pixels, torch.Tensor)]
        for pixels in decoded:
            x = pixels[None].to(torch.float32)
            same = tuple(pixels.shape[1:]) == self._size
            total += (x if same else functional.interpolate(x, self._size, mode="area"))[0]
        return (total / len(decoded)).round().to(torch.uint8)

    def batches(
        self,
        *,
        batch_size: int,
        crop_min_scale: float,
        affine: AffineRange | None,
        seed: int,
        device: str,
    ) -> Iterator[torch.Tensor]:
        """Endless batches `[B,C,H,W]` in [-1, 1]: every epoch a new order, every step new views."""
        tensors = [each for each in self._train if isinstance(each, torch.Tensor)]
        is_ready = len(tensors) == len(self._train) and not self._keep_originals
        whole = torch.stack(tensors).to(device) if is_ready else None
        order: list[int] = []
        epoch = step = 0
        with ThreadPoolExecutor(NUM_DECODERS) as decoders:
            while True:
                while len(order) < batch_size:
                    generator = keyed_generator(seed, "fsq order", epoch)
                    order += generator.permutation(len(self._train)).tolist()
                    epoch += 1
                chosen, order = order[:batch_size], order[batch_size:]
                generator = keyed_generator(seed, "fsq view", step)
                if whole is not None:
                    x = tensor_from_pixels(whole[torch.tensor(chosen)])
                else:
                    windows = [
                        _random_window(pixels, generator, self._size, crop_min_scale)
                        for pixels in decoders.map(self._pixels, chosen)
                    ]
                    x = torch.stack(windows).to(device)
                if affine is not None:
                    draws = generator.random((len(chosen), NUM_AFFINE_DRAWS))
                    x = warp(x, affine_matrices(draws, affine))
                yield x
                step += 1

    def _pixels(self, index: int) -> torch.Tensor:
        """A training image; in place of a bad file, the next one that is good."""
        for step in range(len(self._train)):
            entry = self._train[(index + step) % len(self._train)]
            if isinstance(entry, torch.Tensor):
                return entry
            try:
                return self._decoded(entry, at_size=not self._keep_originals)
            except BadRecordError as error:
                self.skipped[error.reason] += 1
        raise UsageError(f"no training image can be read ({_reasons(self.skipped)})")

    def _decoded(self, path: Path, *, at_size: bool) -> torch.Tensor:
        image = open_image(path)
        height, width = self._size
        # Windows are cut from an original that covers them; a smaller one is scaled up once.
        if at_size or image.width < width or image.height < height:
            image = resize_image(image, height=height, width=width, policy=self._resize)
        return pixels_from_image(image, channels=self.channels)


def _channels(paths: Sequence[Path]) -> int:
    for path in paths[:COLOUR_SAMPLE]:
        try:
            if open_image(path).mode != "L":
                return 3
        except BadRecordError:
            continue
    return 1


def _random_window(
    pixels: torch.Tensor, generator: np.random.Generator, size: tuple[int, int], min_scale: float
) -> torch.Tensor:
    """A random window of uint8 `[C,H,W]` with the target's aspect ratio, `[C,height,width]` in [-1, 1]."""
    have_h, have_w = pixels.shape[1:]
    height, width = size
    if (have_h, have_w) == size:
        return tensor_from_pixels(pixels)
    largest = min(have_h / height, have_w / width)
    scale = max(largest * generator.uniform(min_scale, 1.0), min(largest, 1.0))
    box_h, box_w = min(have_h, round(height * scale)), min(have_w, round(width * scale))
    top = int(generator.integers(0, have_h - box_h + 1))
    left = int(generator.integers(0, have_w - box_w + 1))
    window = tensor_from_pixels(pixels[:, top : top + box_h, left : left + box_w])
    if (box_h, box_w) == size:
        return window
    resized: torch.Tensor = functional.interpolate(
        window[None], size, mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0]


def _reasons(skipped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in skipped.most_common())
