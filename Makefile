# make demo, make test and the rest do everything they need on a fresh machine; make help lists them.
VENV ?= .venv
EXTRAS_VENV ?= .venv-extras
PYTHON ?= python3
FUZZ_SECONDS ?= 600

# The tests of the two ideas, of the model, of data and of fitting, without those that train or start processes.
QUICK := tests/encoding tests/fcos tests/masks tests/modeling tests/data tests/fitting \
	--ignore tests/modeling/test_parity.py --ignore tests/fitting/test_distributed.py

# The tests that need neither Detectron2 nor a compiler.
CORE := tests/encoding tests/fcos tests/fitting tests/reconstruction \
	$(filter-out %/test_equals_detectron2.py,$(wildcard tests/masks/test_*.py)) \
	$(foreach name,head criterion,tests/modeling/test_$(name).py) \
	$(foreach name,annotations parallel shapes,tests/data/test_$(name).py) \
	$(foreach name,meinst fit reconstruct,tests/commands/test_$(name).py) tests/test_floors.py

FUZZERS := json rle npz checkpoint

# Installing happens while make expands the recipe, so that $(error) can print the reason as the very last line.
dry_run := $(findstring n,$(firstword -$(MAKEFLAGS)))
ensure = $(if $(dry_run),,$(if $(shell PYTHON="$(PYTHON)" dev/install.sh "$(VENV)" $(1) >&2 && echo ok),,$(error $(shell cat .install-error))))
run := $(VENV)/bin/python
parallel := -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install install-core install-fuzz install-extras demo test test-quick test-core test-extras fuzz soak matrix lint types check docs clean $(FUZZERS:%=fuzz-%)

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14
	@echo "VENV=/path/to/venv uses an existing environment; what works in it is kept (default .venv)"

install:  ## make the environment: torch, torchvision, Detectron2, this package
	@:$(call ensure,full)

install-core:
	@:$(call ensure,core)

install-fuzz:
	@:$(call ensure,fuzz)

install-extras:
	@:$(call ensure,extras)

demo: install  ## generate shapes, fit components, train a small model on the CPU, evaluate, draw (4 minutes)
	$(run) dev/demo_shapes.py

test: install  ## every test
	$(run) -m pytest $(parallel)

test-quick: install  ## the unit tests of the two ideas, model and data, in two minutes
	$(run) -m pytest $(parallel) $(QUICK)

test-core: install-core  ## the tests that need neither Detectron2 nor a compiler
	$(run) -m pytest $(parallel) $(CORE)

test-extras:  ## the tests of what needs optional libraries, in an environment of its own, .venv-extras
	+$(MAKE) install-extras VENV=$(EXTRAS_VENV)
	$(EXTRAS_VENV)/bin/python -m pytest tests/extras

fuzz: $(FUZZERS:%=fuzz-%)  ## every reader of files with inputs made to break it, FUZZ_SECONDS each (default 600)

$(FUZZERS:%=fuzz-%): fuzz-%: install-fuzz
	$(run) dev/fuzz/fuzz_$*.py -max_total_time=$(FUZZ_SECONDS)

lint: install-core  ## ruff, format included
	$(run) -m ruff check .
	$(run) -m ruff format --check .

types: install-core  ## mypy, strict below Detectron2
	$(run) -m mypy

check: install lint types test  ## lint, types, tests

soak: install  ## kills and resumes, long runs: what docs/reliability.md promises (30 minutes)
	$(run) dev/soak.py all

matrix: install-core  ## the tests with the oldest and the newest torch, each in an environment of its own (an hour, 15 GB)
	$(run) dev/matrix.py

docs: install  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(run) -m mkdocs build --strict

clean:  ## remove the environment, caches and build leftovers; never output/ or datasets/
	rm -rf .venv .venv-extras .matrix .install-error build dist site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
