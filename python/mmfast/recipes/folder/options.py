"""Options of preparing a folder of images with captions; loads nothing heavy."""

import dataclasses
from pathlib import Path

from mmfast.prepare.options import CaptionedImagesOptions, require_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderPrepareOptions(CaptionedImagesOptions):
    """Prepare a folder of images with captions, or WebDataset shards.

    Documents are `[eos] caption [break] · image ids · [eos]`.

    Input is either `images` (with `captions`, or with a `.txt` or `.json` file beside each image) or
    `tars` (WebDataset shards). With `copies` above one, copy 0 is the image as it is and the others are
    random views of it, keyed by (seed, record, copy).
    """

    text_tokenizer: Path = dataclasses.field(metadata={"help": "A tokenizer.json."})
    image_size: int | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Side in pixels; by default what the tokenizer had. Images are brought to it by the "
            "tokenizer's `resize`: as built, scaled until they cover it and cut at the centre."
        },
    )
    num_sentinels: int = dataclasses.field(
        default=4, metadata={"help": "Mask sentinels in the vocabulary."}
    )
    max_caption_tokens: int = dataclasses.field(
        default=1024, metadata={"help": "Records with a longer caption are skipped."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_sentinels")
