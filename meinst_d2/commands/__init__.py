"""The commands of ``meinst``: one module each, with a ``main(argv)``.

This module imports nothing heavy, so that ``meinst --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

COMMANDS = {
    "train": "train or evaluate a model, with the flags of Detectron2's meinst train",
    "fit": "fit the mask components of a dataset",
    "predict": "draw what a model finds in images and videos",
    "check": "what is wrong with a dataset, before training",
    "evaluate": "accuracy and speed of a model, at one test scale or several",
    "analyze": "where a detector's mask AP is lost, and what to improve next",
    "export": "write a model as ONNX or an exported program, checked against the model",
    "reconstruct": "how well encodings reconstruct the masks of a dataset",
    "swap-boxes": "masks of one model in the boxes of other detectors",
    "publish": "write a run's weights as one small file that says everything about itself",
    "import": "convert a config and a checkpoint of the published implementation (AdelaiDet)",
    "shapes": "generate a dataset of shapes",
    "replay": "compute again the losses of a batch that stopped training",
}
MODULES = {"import": "import_adelaidet", "swap-boxes": "swap_boxes"}
"""Where the module has another name than the command."""
QUIET = ".*torch.jit.script.*|.*pkg_resources.*"
"""Warnings of other packages' own code."""


def main(argv: Sequence[str] | None = None) -> None:
    """``meinst COMMAND ...``."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="meinst",
        usage="meinst COMMAND ...",
        description="Instance segmentation by mask encoding (MEInst), for Detectron2.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
        + "\n\nmeinst COMMAND --help says more, with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    name = parser.parse_args(arguments[:1]).command
    importlib.import_module(f"meinst_d2.commands.{MODULES.get(name, name)}").main(arguments[1:])


def make_parser(name: str, description: str | None, epilog: str) -> argparse.ArgumentParser:
    """The parser of a command.

    Args:
        name: one of :data:`COMMANDS`.
        description: what it does.
        epilog: examples, printed as they are.
    """
    return argparse.ArgumentParser(
        prog=f"meinst {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def require_positive(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """End with a usage error where an option that was given, or one of its values, is below 1."""
    for name in names:
        value = getattr(args, name)
        least = min(value) if isinstance(value, Sequence) else value
        if least is not None and least < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {least}")


@contextmanager
def reporting(name: str, *errors: type[Exception], status: int = 1) -> Iterator[None]:
    """Errors that a user can mend end the command with a sentence, and warnings of others are quiet; also a decorator.

    Args:
        name: of the command.
        errors: besides ValueError and OSError.
        status: what the command exits with.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=QUIET)
        try:
            yield
        except (ValueError, OSError, *errors) as error:
            sentence = f"meinst {name}: {error}"
            if status == 1:
                sys.exit(sentence)
            print(sentence, file=sys.stderr, flush=True)
            sys.exit(status)
