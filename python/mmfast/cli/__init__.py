"""The `mmfast` command: a table of verbs, each loaded only when it is asked for.

`mmfast --help` imports no verb, so it stays instant. A verb is a module of this package with a Typer
`app`; everything it does is a call into the room that does the work. Errors of ours end with one line
on stderr and their own exit code (0 ok, 1 failure, 2 usage, 3 corrupt data, 130 interrupted);
`MMFAST_DEBUG=1` shows the traceback.
"""

import os
import sys
from collections.abc import Sequence

_VERBS = {
    "prepare": "turn raw media into an indexed dataset (also: torchrun -m mmfast.prepare)",
    "tokenizer": "train, inspect and try image and text tokenizers",
    "data": "look into, check and merge indexed datasets",
    "train": "train a model (also: torchrun -m mmfast.train)",
    "generate": "draw images from captions, write captions for images",
    "evaluate": "judge reconstructions, generated images and captions",
    "report": "one self-contained HTML page of a run, with its picture grid",
    "doctor": "versions, devices and the backends in use, and why",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `mmfast` script."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        sys.exit(0)
    if arguments[0] == "--version":
        from mmfast import __version__

        sys.stdout.write(f"mmfast {__version__}\n")
        sys.exit(0)
    run_verb(arguments[0], arguments[1:])


def run_verb(verb: str, arguments: Sequence[str] | None = None) -> None:
    """Runs one verb and exits the process with its code; `python -m mmfast.train` comes here too."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if verb not in _VERBS:
        import difflib

        nearest = difflib.get_close_matches(verb, _VERBS, n=1)
        hint = (
            f" (did you mean `{nearest[0]}`?)" if nearest else "; `mmfast --help` lists the verbs"
        )
        _fail(f"unknown verb `{verb}`{hint}", 2)
    from importlib import import_module

    from mmfast.errors import MmfastError

    try:
        import_module(f"mmfast.cli.{verb}").app(arguments, prog_name=f"mmfast {verb}")
    except MmfastError as error:
        _fail(str(error), error.exit_code, error)
    except OSError as error:
        _fail(str(error), 1, error)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(text: str, code: int, error: BaseException | None = None) -> None:
    if error is not None and os.environ.get("MMFAST_DEBUG"):
        raise error
    sys.stderr.write(f"error: {text}\n")
    sys.exit(code)


def _help() -> str:
    width = max(map(len, _VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in _VERBS.items())
    return (
        "mmfast: train and run discrete-token multimodal models\n\n"
        f"usage: mmfast VERB [OPTIONS]\n\n{verbs}\n\n"
        "`mmfast VERB --help` describes a verb.\n"
    )
