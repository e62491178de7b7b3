"""Media and text to ids and back: one protocol for images, one class for text.

tokenizer = load_image_tokenizer("out/image-tokenizer")
codes = tokenizer.encode(tokenizer.preprocess(image, 256)[None])
"""

from mmfast.tokenizers.images import images_from_tensor, open_image
from mmfast.tokenizers.protocol import ImageTokenizer, load_image_tokenizer
from mmfast.tokenizers.text import TextTokenizer, load_text_tokenizer, train_text_tokenizer

__all__ = [
    "ImageTokenizer",
    "TextTokenizer",
    "images_from_tensor",
    "load_image_tokenizer",
    "load_text_tokenizer",
    "open_image",
    "train_text_tokenizer",
]
