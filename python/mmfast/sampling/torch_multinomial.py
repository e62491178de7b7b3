"""`torch.multinomial` for loops that should give a row the same draws in any batch and on any device.

Shapes: B rows, V categories, D draws a row.
"""

import torch

from mmfast.sampling.inputs import row_integers
from mmfast.sampling.sampler import sample


class RowGenerator:
    """Where `torch.Generator` stands in a loop: a seed for each row, and the step that all are at.

        >>> generator = RowGenerator(torch.tensor([7, 8]))
        >>> generator.steps, generator.next_steps(), generator.steps
        (0, 0, 1)

    Args:
        seeds: 64-bit seed of each row, int64 [B], or one for all.
        steps: the step that comes next, int64 [B] or one number; to go on where a saved loop was.

    Attributes:
        seeds: as given.
        steps: the step that comes next.
    """

    def __init__(self, seeds: int | torch.Tensor, *, steps: int | torch.Tensor = 0) -> None:
        self.seeds = seeds
        self.steps = steps

    def next_steps(self) -> int | torch.Tensor:
        """The step to draw with now; the one after it comes next."""
        now = self.steps
        self.steps = now + 1
        return now


def multinomial(
    probabilities: torch.Tensor,
    num_samples: int = 1,
    replacement: bool = False,  # noqa: FBT001 - as torch has it
    *,
    generator: RowGenerator | None = None,
    seeds: int | torch.Tensor | None = None,
    steps: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """What `torch.multinomial` does, exactly, and the same for a row in any batch.

    Without replacement ids come in the order in which successive draws from what is left give them, as
    torch's do: the first appearances in a sequence of independent draws.

        >>> multinomial(torch.tensor([[0.0, 1.0, 0.0]]), seeds=1, steps=0)
        tensor([[1]])
        >>> generator = RowGenerator(torch.tensor([3]))
        >>> multinomial(torch.ones(1, 4), 4, generator=generator).sort().values
        tensor([[0, 1, 2, 3]])

    Args:
        probabilities: [B, V] or [V], not negative, finite; they need not sum to 1.
        num_samples: D.
        replacement: whether a category may come twice.
        generator: seeds of the rows and the step they are at, which each call moves on by one; or
        seeds: 64-bit seed of each row, int64 [B], or one for all, and
        steps: which draw of the row's request this is, int64 [B] or one number.

    Returns:
        int64 [B, D], or [D].

    Raises:
        ValueError: a row has an entry that is negative or not finite, or too few above 0.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    rows = _checked(probabilities, needed=1 if replacement else num_samples)
    seeds, steps = _place(generator, seeds, steps)
    # float64 keeps what is tiny; a gap between logarithms is what counts, and float32 holds that
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    logits = rows.to(wide).log().to(torch.float32)
    seeds = row_integers(seeds, len(rows), "seeds", rows.device)
    steps = row_integers(steps, len(rows), "steps", rows.device)
    if replacement or num_samples == 1:
        drawn = sample(logits, seeds=seeds, steps=steps, num_draws=num_samples).tokens
    else:
        drawn = _without_replacement(logits, num_samples, seeds, steps)
    return drawn.reshape(*probabilities.shape[:-1], num_samples)


def _place(
    generator: RowGenerator | None,
    seeds: int | torch.Tensor | None,
    steps: int | torch.Tensor | None,
) -> tuple[int | torch.Tensor, int | torch.Tensor]:
    """Seeds and steps to draw with, from whichever was given; a generator moves on."""
    if generator is not None and seeds is None and steps is None:
        return generator.seeds, generator.next_steps()
    if generator is not None or seeds is None or steps is None:
        raise ValueError("give a generator, or seeds and steps, and not both")
    return seeds, steps


def _without_replacement(
    logits: torch.Tensor, num_samples: int, seeds: torch.Tensor, steps: torch.Tensor
) -> torch.Tensor:
    """[B, D] distinct ids. Independent draws, round after round, from what earlier rounds have left.

    In a round an id counts where it comes first. Rounds and positions of a row are the same in any batch.
    """
    num_rows = len(logits)
    num_draws = 2 * num_samples
    left = torch.ones_like(logits, dtype=torch.bool)
    found = torch.zeros(num_rows, num_samples, dtype=torch.int64, device=logits.device)
    counts = torch.zeros(num_rows, 1, dtype=torch.int64, device=logits.device)
    position = 0
    while bool((counts < num_samples).any()):
        tokens = sample(
            logits, seeds=seeds, steps=steps, positions=position, num_draws=num_draws, allowed=left
        ).tokens
        position += num_draws
        # Of equal tokens a stable sort leaves the first in front.
        ordered, order = tokens.sort(dim=1, stable=True)
        repeated = torch.zeros_like(tokens, dtype=torch.bool)
        repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        is_new = ~torch.zeros_like(repeated).scatter(1, order, repeated)
        places = counts + is_new.cumsum(1) - 1
        is_new &= places < num_samples
        row, draw = is_new.nonzero(as_tuple=True)
        found[row, places[row, draw]] = tokens[row, draw]
        left[row, tokens[row, draw]] = False
        counts += is_new.sum(1, keepdim=True)
    return found


def _checked(probabilities: torch.Tensor, *, needed: int) -> torch.Tensor:
    """[B, V], if each row has as many categories as are needed."""
    if probabilities.dim() not in (1, 2) or not probabilities.is_floating_point():
        raise ValueError(
            f"probabilities are {tuple(probabilities.shape)} {probabilities.dtype}; they must be "
            "floating-point, [categories] or [rows, categories]"
        )
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    if not (torch.isfinite(rows) & (rows >= 0)).all():
        raise ValueError("probabilities must be finite and not negative")
    fewest = int((rows > 0).sum(-1).amin()) if len(rows) else needed
    if fewest < needed:
        entries = "an entry" if needed == 1 else f"{needed} entries"
        raise ValueError(f"each row of probabilities needs {entries} above 0, found {fewest}")
    return rows
