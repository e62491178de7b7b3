"""Options of preparing data for Emu3's forms; loads nothing heavy.

`coyo` and `pokemon` take the flags of the scripts in NVIDIA NeMo that they replace; `emu3` prepares one's own
captioned images for both directions.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from mmfast.errors import UsageError
from mmfast.prepare.options import CaptionedImagesOptions, CodingOptions, require_positive

_LOSS_HELP = "Learn all ids, as NeMo does, or only what follows the prompt."


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoyoPrepareOptions(CodingOptions):
    """Prepare images with captions for vision understanding, as NeMo's COYO script does.

    Documents are `[bos]You are a helpful assistant. USER: IMAGE Please describe the image. ASSISTANT: caption[eos]`.
    """

    input_image_dir: Path = dataclasses.field(
        metadata={"help": "Folder of images, searched with its subfolders."}
    )
    input_captions_dir: Path = dataclasses.field(
        metadata={
            "help": "Folder with a .pkl, .txt or .json for each image under the same name, or one .jsonl, .json "
            "or .parquet file. Of pickles only plain data is read; nothing in them can run."
        }
    )
    vision_tokenizer: Path = dataclasses.field(
        metadata={"help": "Folder of BAAI/Emu3-VisionTokenizer, or of another image tokenizer."}
    )
    text_tokenizer: Path = dataclasses.field(
        metadata={"help": "Folder with emu3.tiktoken (BAAI/Emu3-Gen) or with a tokenizer.json."}
    )
    caption_field: str = dataclasses.field(
        default="captions.llava", metadata={"help": "Field with the caption in .pkl and .json."}
    )
    image_field: str = dataclasses.field(
        default="image", metadata={"help": "Field with the image's path in one caption file."}
    )
    question: str = dataclasses.field(
        default="Please describe the image", metadata={"help": "What stands after the image."}
    )
    resize_image: Literal["true", "false"] = dataclasses.field(
        default="true",
        metadata={
            "help": "false: images must come in multiples of the factor and keep their size."
        },
    )
    spatial_factor: int = dataclasses.field(
        default=8, metadata={"help": "Pixels per code; must be the tokenizer's."}
    )
    min_pixels: int = dataclasses.field(
        default=512 * 512, metadata={"help": "Smaller images are enlarged to this area."}
    )
    max_pixels: int = dataclasses.field(
        default=1024 * 1024, metadata={"help": "Larger images are reduced to this area."}
    )
    gray: Literal["keep", "skip"] = dataclasses.field(
        default="keep", metadata={"help": "Grey images as RGB, or skipped as NeMo's script does."}
    )
    loss: Literal["all", "answer"] = dataclasses.field(default="all", metadata={"help": _LOSS_HELP})
    dataset_impl: Literal["mmap", "lazy", "cached", "retmmap"] = dataclasses.field(
        default="mmap",
        metadata={"help": "NeMo's flag; mmap is what is written, others are refused."},
    )
    chunk_size: int = dataclasses.field(
        default=64, metadata={"help": "NeMo's flag; without meaning for mmap."}
    )
    chunk_stride_size: int = dataclasses.field(
        default=64, metadata={"help": "NeMo's flag; without meaning for mmap."}
    )

    def __post_init__(self) -> None:
        if self.dataset_impl != "mmap":
            raise UsageError(
                f"--dataset-impl {self.dataset_impl} is not written; leave it at mmap, which NeMo and "
                "megatron-core read"
            )
        super().__post_init__()
        require_positive(self, "spatial_factor", "min_pixels", "max_pixels")
        if self.min_pixels > self.max_pixels:
            raise UsageError("--min-pixels must not be above --max-pixels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PokemonPrepareOptions(CodingOptions):
    """Prepare images with captions for image generation with Cosmos, as NeMo's Pokemon script does.

    Documents are `[bos]You are a helpful assistant. Draw a picture for the caption given by the user. USER:
    caption. ASSISTANT: IMAGE[eos]`.
    """

    dataset: Path = dataclasses.field(
        metadata={
            "help": "The data set on disk: a parquet file or a folder of them with columns image and text, or a "
            "folder of images with captions."
        }
    )
    image_encoder: Path = dataclasses.field(
        metadata={
            "help": "Folder of a Cosmos tokenizer (encoder.jit), e.g. of nvidia/Cosmos-0.1-Tokenizer-DV8x16x16. "
            "TorchScript runs what it says: name only folders you trust. Any other image tokenizer works too."
        }
    )
    multimodal_tokenizer_path: Path = dataclasses.field(
        metadata={"help": "Folder with emu3.tiktoken, or with a tokenizer.json."}
    )
    image_field: str = dataclasses.field(
        default="image", metadata={"help": "Column with the image."}
    )
    caption_field: str = dataclasses.field(
        default="text", metadata={"help": "Column with the caption."}
    )
    image_size: int = dataclasses.field(
        default=512, metadata={"help": "Side in pixels; images are stretched to a square."}
    )
    loss: Literal["all", "answer"] = dataclasses.field(default="all", metadata={"help": _LOSS_HELP})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "image_size")
        if not self.image_encoder.is_dir():
            raise UsageError(
                f"there is no folder {self.image_encoder}; download encoder.jit and decoder.jit of, say, "
                "nvidia/Cosmos-0.1-Tokenizer-DV8x16x16 into a folder of that name and give the folder"
            )
        if not self.dataset.exists():
            raise UsageError(
                f"there is no data set {self.dataset} on this machine; download it first, e.g. `hf download "
                "--repo-type dataset reach-vb/pokemon-blip-captions --local-dir pokemon`, and give the folder"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emu3PrepareOptions(CaptionedImagesOptions):
    """Prepare your own captioned images in Emu3's forms, to draw, to describe, or both.

    Of each caption there is a document `[bos]caption IMAGE[eos]`, which teaches to draw, and one
    `[bos]You are a helpful assistant. USER: IMAGE Please describe the image. ASSISTANT: caption[eos]`.
    """

    text_tokenizer: Path = dataclasses.field(
        metadata={"help": "Folder with emu3.tiktoken, or a tokenizer.json."}
    )
    task: Literal["both", "generation", "understanding"] = dataclasses.field(
        default="both", metadata={"help": "Which documents are written."}
    )
    question: str = dataclasses.field(
        default="Please describe the image", metadata={"help": "What stands after the image."}
    )
    null_prompt_prob: float = dataclasses.field(
        default=0.05,
        metadata={
            "help": "Share of documents to draw from whose caption is empty, as in Emu3's fine-tuning; guidance "
            "needs them."
        },
    )
    loss: Literal["all", "answer"] = dataclasses.field(default="all", metadata={"help": _LOSS_HELP})
    seed: int = dataclasses.field(
        default=0, metadata={"help": "Of random views, choices and empty captions."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.null_prompt_prob < 1:
            raise UsageError("--null-prompt-prob must lie in [0, 1)")
