"""The generic recipe: any folder of images with captions, in CM3Leon's document layout."""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mmfast.generate.requests import Request
from mmfast.recipes.folder import requests


@dataclasses.dataclass(frozen=True)
class FolderRecipe:
    """What other rooms ask of a recipe.

    Attributes:
        text_to_image: caption ids to the request that draws them.
        image_to_text: codes to the request that captions them.
        codes_from_result: codes of a drawn image.
        text_ids_from_result: text ids of a caption.
    """

    text_to_image: Callable[..., Request] = requests.text_to_image
    image_to_text: Callable[..., Request] = requests.image_to_text
    codes_from_result: Callable[..., npt.NDArray[np.int64]] = requests.codes_from_result
    text_ids_from_result: Callable[..., list[int]] = requests.text_ids_from_result


RECIPE = FolderRecipe()
