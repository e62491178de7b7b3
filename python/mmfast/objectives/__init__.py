"""Training objectives: what a model sees of a document, and how much each of its targets counts.

`NextToken` and `Cm3` are configurations; the work is done in Rust, inside the loader or, for one
document, by `transform_document`. `reference` says the same in plain Python.
"""

from mmfast.objectives.config import Cm3, NextToken
from mmfast.objectives.document import (
    TransformedDocument,
    restore_document,
    transform_document,
)

__all__ = [
    "Cm3",
    "NextToken",
    "TransformedDocument",
    "restore_document",
    "transform_document",
]
