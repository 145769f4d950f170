"""Measurements: one module per sub-command of tools/benchmark.py, with add_arguments(parser) and run(args)."""
