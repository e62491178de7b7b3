"""`python -m mmfast.generate`, also under `torchrun`: the verb `generate`."""

from mmfast.cli import run_verb

run_verb("generate")
