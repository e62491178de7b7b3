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
from mmfast.generate.requests import Partial, Request, Result, SamplingSettings
from mmfast.generate.tasks import (
    AnsweringTask,
    DrawingTask,
    GenerationRecipe,
    Parts,
    PublishedModel,
)

__all__ = [
    "AllowedIds",
    "AnsweringTask",
    "Choice",
    "DrawingTask",
    "Engine",
    "Forced",
    "GenerationRecipe",
    "Grammar",
    "ImageGrammar",
    "Model",
    "Partial",
    "Parts",
    "PublishedModel",
    "Request",
    "Result",
    "SamplingSettings",
    "TextGrammar",
    "load",
]
