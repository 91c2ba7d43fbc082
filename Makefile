# Each target sets up what it needs, on a machine with Python >= 3.11, make and a compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
# One thread for each test process: they run in parallel, and sums are then the same on every machine.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# Without bytecode files every start of Python compiles torch and Lightning again, which takes 15 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo bench test lint clean

help: ## show the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: $(SETUP) ## make the virtual environment and install everything into it

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gsforge needs Python >= 3.11; found $$($(PYTHON) --version). Say which: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(SETUP) ## from nothing to a trained, resumed, reported model (17 minutes on 2 cores)
	$(BIN)/python -m benchmarks.demo

bench: $(SETUP) ## speed of the renderer on the CPU against gsplat (under 10 minutes)
	$(BIN)/python -m benchmarks.speed.rasterize

lint: $(SETUP) ## style, types and layer contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --config pyproject.toml

test: lint ## lint, then the whole test suite
	$(BIN)/python -m gsforge.render.cpu
	$(TEST_ENV) $(BIN)/python -m pytest -n auto

clean: ## remove the environment, caches, compiled kernels, toy data and runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis data/toy runs
	find gsforge -name '*.nb[ic]' -delete
