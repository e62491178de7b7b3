"""`torchrun --nproc-per-node N -m mmfast.prepare RECIPE …`: the verb `prepare` with N processes."""

from mmfast.cli import run_verb

run_verb("prepare")
