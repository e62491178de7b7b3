"""Judges what models make: reconstructions, generated images and captions.

The judge is a classifier trained on real pixels only, so that nothing it says depends on the model
under test. Needs the extra `mmfast[eval]` (scikit-learn).

>>> from pathlib import Path
>>> from mmfast.evaluate import evaluate
>>> result = evaluate(  # doctest: +SKIP
...     train_captions=Path("raw/train/captions.jsonl"),
...     test_captions=Path("raw/heldout/captions.jsonl"),
...     images={"guided": Path("generated/manifest.jsonl")},
... )
>>> result.images["guided"].accuracy  # doctest: +SKIP
0.985
"""

from mmfast.evaluate.captions import CaptionReader
from mmfast.evaluate.evaluation import evaluate
from mmfast.evaluate.judge import Judge, WeakJudgeError
from mmfast.evaluate.scores import Evaluation, Reading, Score

__all__ = [
    "CaptionReader",
    "Evaluation",
    "Judge",
    "Reading",
    "Score",
    "WeakJudgeError",
    "evaluate",
]
