"""Generation: requests to ids to media, with guidance, grammars and a cache of our own.

`load(folder)` gives a `Model` that draws and captions; `Engine` runs `Request`s on any transformers
causal language model.
"""

from mmfast.generate.engine import Engine
from mmfast.generate.grammar import (
    AllowedIds,
    Choice,
    Forced,
    Grammar,
    ImageGrammar,
    TextGrammar,
)
from mmfast.generate.model import Model, load
from mmfast.generate.requests import Request, Result, SamplingSettings

__all__ = [
    "AllowedIds",
    "Choice",
    "Engine",
    "Forced",
    "Grammar",
    "ImageGrammar",
    "Model",
    "Request",
    "Result",
    "SamplingSettings",
    "TextGrammar",
    "load",
]
