# One target per act, the same for people and for CI. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
# Files of tests run side by side, each file in one process; on two cores a third fills the waits.
JOBS ?= 3
# In the order that tests/conftest.py gives them, the slowest first.
SIDE_BY_SIDE := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
QUICK = $(SIDE_BY_SIDE) -m 'not slow' $(PYTEST_ARGS)
SOURCES := cnn testbed offload_env agents tests examples benchmarks

# The folder of measured data, if there is one; tests that need it skip without it.
ifdef SLIPROAD_DATA
export SLIPROAD_DATA
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test quick test-oldest test-newest check lint types format docs build constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=$(PYTHON)  interpreter for the virtual environment (3.11 or newer)"
	@echo "  VENV=$(VENV)      where it lies"
	@echo "  SLIPROAD_DATA=DIR folder with gtsrb/ and traces/, for tests on measured data"

venv: $(STAMP) ## make the virtual environment with everything in it

# setup.py-less editable install: source edits need no reinstall, new dependencies do.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	    f"{sys.executable} is Python {v[0]}.{v[1]}; expected 3.11 or newer; give another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## train, compare, deploy and measure on this machine (about 6 minutes)
	$(BIN)/sliproad demo

# Beside busy processes two threads of one sum wait for each other, and tests take ten times as long.
test quick check: export OMP_NUM_THREADS ?= 1
test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --durations=15 $(PYTEST_ARGS)

quick: $(STAMP) ## run the tests that are not marked slow
	$(BIN)/python -m pytest $(QUICK)

test-oldest: ## run the quick tests with the oldest versions the ranges allow (torch: as tested)
	@python3.11 -c '' 2>/dev/null || { echo 'no python3.11 here: skipped'; exit 0; }; set -e; \
	python3.11 -m venv --clear build/oldest; \
	build/oldest/bin/python -m pip install --quiet uv; \
	grep '^torch==' constraints.txt > build/torch.txt; \
	build/oldest/bin/uv pip compile --quiet pyproject.toml --extra train --extra server \
	    --extra signing --resolution lowest-direct --override build/torch.txt \
	    --python-version 3.11 --output-file build/oldest.txt > /dev/null; \
	build/oldest/bin/python -m pip install --quiet --constraint build/oldest.txt \
	    --editable '.[dev]'; \
	build/oldest/bin/python -m pytest -W default $(QUICK)  # old ones warn of what new ones drop

test-newest: ## run the quick tests with the newest Python here that has wheels of everything
	@for minor in 15 14 13 12; do \
	    python3.$$minor -c '' 2>/dev/null || continue; \
	    python3.$$minor -m venv --clear build/newest-python; \
	    build/newest-python/bin/python -m pip install --quiet --only-binary :all: \
	        --constraint constraints.txt --editable '.[dev]' || continue; \
	    exec build/newest-python/bin/python -m pytest $(QUICK); \
	done; echo 'no Python newer than 3.11 here that has wheels of everything: skipped'

check: lint types test ## everything CI runs: format, lint, types, tests

lint: $(STAMP) ## formatting and lint, changing nothing
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: $(STAMP) ## mypy --strict over the four packages
	$(BIN)/mypy

format: $(STAMP) ## format, and fix what can be fixed by itself
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(STAMP) ## build the documentation into site/
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/mkdocs build --strict

build: $(STAMP) ## build the wheel and the sdist into dist/
	$(BIN)/python -m build

constraints: ## renew constraints.txt from the newest versions the ranges allow
	$(PYTHON) -m venv --clear build/newest
	build/newest/bin/python -m pip install --quiet --editable '.[camera,dev,docs,ray]'
	{ sed '/^[^#]/,$$d' constraints.txt; build/newest/bin/python -m pip freeze --exclude-editable \
	    | sed 's/+[a-z0-9.]*$$//'; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf build/newest

clean: ## remove what make built (not runs/)
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
