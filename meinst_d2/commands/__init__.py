"""The commands of ``meinst``: one module each, with a ``main(argv)``.

This module imports nothing heavy, so that ``meinst --help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from meinst_d2 import __version__, require_detectron2

COMMANDS = {
    "train": "train or evaluate a model, with Detectron2's flags",
    "fit": "fit the mask components of a dataset",
    "predict": "draw what a model finds in images and videos",
    "convert": "write COCO annotations from masks, YOLO, labelme, VIA or Pascal VOC",
    "check": "what is wrong with a dataset, before training",
    "evaluate": "accuracy and speed of a model, at one test scale or several",
    "analyze": "where a detector's mask AP is lost, and what to improve next",
    "export": "write a model as ONNX or an exported program, checked against the model",
    "reconstruct": "how well encodings reconstruct the masks of a dataset",
    "swap-boxes": "masks of one model in the boxes of other detectors",
    "publish": "write a run's weights as one small file that says everything about itself",
    "import": "convert a config and a checkpoint of the published implementation (AdelaiDet)",
    "shapes": "generate a dataset of shapes",
    "replay": "compute the losses of a batch that stopped training once more",
}
MODULES = {"import": "import_adelaidet", "swap-boxes": "swap_boxes"}
"""Where the module has another name than the command."""
QUIET = ".*torch.jit.script.*|.*pkg_resources.*"
"""Warnings of other packages about their own code."""


def main(argv: Sequence[str] | None = None) -> None:
    """``meinst COMMAND ...``.

    Args:
        argv: the command line, by default this process's.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    table = "\n".join(f"  {name:11}  {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="meinst",
        usage="meinst COMMAND ...",
        description="Instance segmentation by mask encoding (MEInst), for Detectron2.",
        epilog=f"commands:\n{table}\n\nmeinst COMMAND --help says more, with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"meinst_d2 {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=argparse.SUPPRESS)
    name = parser.parse_args(arguments[:1]).command
    if name not in COMMANDS:
        near = [f"did you mean {match}?" for match in difflib.get_close_matches(name, COMMANDS, n=1)]
        parser.exit(2, f"meinst: unknown command {name}: {(near or ['see meinst --help'])[0]}\n")
    try:
        importlib.import_module(f"meinst_d2.commands.{MODULES.get(name, name)}").main(arguments[1:])
    except ImportError:
        with reporting(name, ImportError):
            require_detectron2()  # if that is what is missing, it says so
        raise


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
    """Errors that a user can fix end the command with a sentence, and QUIET warnings are not shown; also a decorator.

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
