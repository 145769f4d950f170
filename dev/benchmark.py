#!/usr/bin/env python
"""Measure this project against the alternatives it replaces, in turns, in one run, with the same threads."""

from __future__ import annotations

import argparse
import importlib
import sys

from benchmarks.common import ROOT, add_common_arguments, machine, print_table, set_threads, write_json

SHARED = {"__init__", "annotations", "common", "detections", "fit_memory", "models", "plots", "source"}
COMMANDS = sorted({path.stem for path in (ROOT / "dev/benchmarks").glob("*.py")} - SHARED)
EXAMPLES = """examples:
  dev/benchmark.py paste
  dev/benchmark.py eval --images 20 --threads 1 --json output/benchmark/eval.json
  dev/benchmark.py all
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    every = commands.add_parser("all", help="every command below with its own defaults")
    add_common_arguments(every)
    for name in COMMANDS:
        module = importlib.import_module(f"benchmarks.{name}")
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        add_common_arguments(command)
        module.add_arguments(command)
    args = parser.parse_args()
    for name in ("threads", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def defaults(name: str, shared: argparse.Namespace) -> argparse.Namespace:
    """The shared options as given, and those of one command as they are by default."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"benchmarks.{name}").add_arguments(parser)
    return parser.parse_args([], namespace=argparse.Namespace(**vars(shared)))


def main() -> None:
    args = parse_args()
    set_threads(args.threads)
    described = machine(args.device, args.threads)
    print("\n".join(f"{key}: {value}" for key, value in described.items()))
    tables = {}
    try:
        for name in COMMANDS if args.command == "all" else [args.command]:
            settings = defaults(name, args) if args.command == "all" else args
            tables[name] = importlib.import_module(f"benchmarks.{name}").run(settings)
            print_table(name, tables[name])
        if args.json:
            write_json(args.json, described, tables)
            print(f"\nwrote {args.json}")
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark.py: {error}")


if __name__ == "__main__":
    main()
