"""mmfast: train and run discrete-token multimodal models.

Images, video and text become one stream of token ids; this package takes them from media to an
indexed dataset, through FSDP training, and back to media. `import mmfast` loads nothing heavy:
public names are resolved on first use.
"""

from typing import TYPE_CHECKING

from mmfast.lazy import lazy_names

if TYPE_CHECKING:
    from mmfast.generate import load
    from mmfast.sampling import sample
    from mmfast.vocab import CodeRange, Vocabulary

__all__ = ["CodeRange", "Vocabulary", "__version__", "load", "sample"]

_MODULE_OF_NAME = {
    "CodeRange": "mmfast.vocab",
    "Vocabulary": "mmfast.vocab",
    "__version__": "mmfast._mmfast",
    "load": "mmfast.generate",
    "sample": "mmfast.sampling",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF_NAME)
