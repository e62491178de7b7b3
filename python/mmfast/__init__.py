"""mmfast: train and run discrete-token multimodal models.

Images, video and text become one stream of token ids; this package takes them from media to an
indexed dataset, through FSDP training, and back to media. `import mmfast` loads nothing heavy:
public names are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    try:
        module = _MODULE_OF_NAME[name]
    except KeyError:
        raise AttributeError(f"module 'mmfast' has no attribute {name!r}") from None
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
