"""Any folder of images with captions, in the document layout and prompt forms of CM3Leon.

The documents side is in `documents.py`, the prompts in `requests.py`; both load on first use.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmfast.recipes.folder.options import FolderPrepareOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mmfast.generate.requests import Request
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

    @property
    def text_to_image(self) -> "Callable[..., Request]":
        """Caption ids to the request that draws them."""
        from mmfast.recipes.folder.requests import text_to_image

        return text_to_image

    @property
    def image_to_text(self) -> "Callable[..., Request]":
        """Codes [h, w] to the request that captions them."""
        from mmfast.recipes.folder.requests import image_to_text

        return image_to_text

    @property
    def codes_from_result(self) -> "Callable[..., npt.NDArray[np.int64]]":
        """Codes [h, w] of a drawn image."""
        from mmfast.recipes.folder.requests import codes_from_result

        return codes_from_result

    @property
    def text_ids_from_result(self) -> "Callable[..., list[int]]":
        """Text ids of a caption."""
        from mmfast.recipes.folder.requests import text_ids_from_result

        return text_ids_from_result


RECIPE = FolderRecipe()
