"""`torchrun -m mmfast.train CONFIG …` and `python -m mmfast.train CONFIG …`."""

from mmfast.cli import run_verb

if __name__ == "__main__":
    run_verb("train")
