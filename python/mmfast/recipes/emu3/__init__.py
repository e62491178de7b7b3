"""Emu3 (Wang et al. 2024, arXiv:2409.18869), and NeMo's two examples with its and Cosmos' tokenizers.

Ids are in `vocabulary.py`, prompts in `prompts.py`, documents in `documents.py`, drawing and answering in
`requests.py`, the authors' own folders in `published.py`; all load on first use.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfast.recipes.emu3.options import (
    CoyoPrepareOptions,
    Emu3PrepareOptions,
    PokemonPrepareOptions,
)

if TYPE_CHECKING:
    from mmfast.generate import GenerationRecipe
    from mmfast.generate.tasks import PublishedModel
    from mmfast.prepare.protocol import Preparation


@dataclasses.dataclass(frozen=True)
class Emu3Preparing:
    """One way to prepare data: a subcommand of `mmfast prepare`."""

    name: str
    prepare_options: type[Any]
    class_name: str

    def open_preparation(self, options: Any) -> "Preparation":
        """Opens input and tokenizers for `mmfast.prepare`."""
        from mmfast.recipes.emu3 import documents

        open_class: Callable[[Any], Preparation] = getattr(documents, self.class_name)
        return open_class(options)


@dataclasses.dataclass(frozen=True)
class Emu3Recipe:
    """What prepare, train and generate use of this recipe."""

    name: str = "emu3"
    preparations: tuple[Emu3Preparing, ...] = (
        Emu3Preparing("emu3", Emu3PrepareOptions, "OwnPreparation"),
        Emu3Preparing("coyo", CoyoPrepareOptions, "CoyoPreparation"),
        Emu3Preparing("pokemon", PokemonPrepareOptions, "PokemonPreparation"),
    )

    def open_generation(self, settings: Mapping[str, Any]) -> "GenerationRecipe":
        """Prompt forms and defaults for `mmfast.generate`."""
        from mmfast.recipes.emu3.requests import Emu3Generation

        return Emu3Generation(settings)

    def open_published(self, folder: Path, config: Mapping[str, Any]) -> "PublishedModel | None":
        """A folder of BAAI/Emu3-*, None for any other."""
        from mmfast.recipes.emu3.published import open_published

        return open_published(folder, config)


RECIPE = Emu3Recipe()
