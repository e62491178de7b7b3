"""Any folder of images with captions, in the document layout and prompt forms of CM3Leon.

The documents side is in `documents.py`, the prompts in `requests.py`; both load on first use.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmfast.recipes.folder.options import FolderPrepareOptions

if TYPE_CHECKING:
    from mmfast.generate import GenerationRecipe
    from mmfast.recipes.folder.documents import FolderPreparation


@dataclasses.dataclass(frozen=True)
class FolderRecipe:
    """What prepare, train and generate use of this recipe."""

    name: str = "folder"
    prepare_options: type[FolderPrepareOptions] = FolderPrepareOptions

    def open_preparation(self, options: FolderPrepareOptions) -> "FolderPreparation":
        """Opens input and tokenizers for `mmfast.prepare`."""
        from mmfast.recipes.folder.documents import FolderPreparation

        return FolderPreparation(options)

    def open_generation(self, settings: Mapping[str, Any]) -> "GenerationRecipe":
        """Prompt forms and defaults for `mmfast.generate`."""
        del settings
        from mmfast.recipes.folder.requests import FolderGeneration

        return FolderGeneration()


RECIPE = FolderRecipe()
