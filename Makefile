# One environment, few commands. `make demo` and `make test` each work as the first command after a clone.
PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
FROM_SCRATCH ?= 0

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast lint type format bench clean install help

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(READY)  ## create the environment in .venv

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else \
		f"Python 3.10 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo 'no virtual environment could be made: install the venv module of your Python (Debian: python3-venv)' >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -e '.[dev]'
	@touch $@

demo: $(READY)  ## OV-Shapes end to end: draw, cache, train, compare, answer a query (FROM_SCRATCH=1 trains the CLIP too)
	$(BIN)/python tools/quickstart.py --seed $(SEED) $(if $(filter 1,$(FROM_SCRATCH)),--from-scratch)

test: $(READY)  ## the whole suite, a process per core
	$(BIN)/python -m pytest -n auto

test-fast: $(READY)  ## the suite without the tests that train
	$(BIN)/python -m pytest -n auto -m 'not slow'

lint: $(READY)  ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)  ## mypy
	$(BIN)/mypy

format: $(READY)  ## rewrite the layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## speed ratios against a peer in the same run
	$(BIN)/python benchmarks/speed.py

clean:  ## remove everything that was made here, the environment and data/ excepted
	rm -rf work_dirs outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
