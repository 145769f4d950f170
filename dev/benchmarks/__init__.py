"""Measurements: one module per sub-command of dev/benchmark.py, with add_arguments(parser) and run(args)."""
