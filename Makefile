# `make demo` and `make test` do everything, set-up included. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
RUN_DIR ?= runs/demo
PYTEST_ARGS ?=

.PHONY: setup demo test lint clean

setup: .venv/.ready

# Half-made environments are never used: the marker file is written last.
.venv/.ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "dat_ray needs Python 3.11 or newer: make PYTHON=python3.11 " + "setup")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps -r constraints.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

.venv/.lint-ready: .venv/.ready constraints-dev.txt
	$(BIN)/pip install --quiet --no-deps -r constraints-dev.txt
	touch $@

demo: setup
	$(BIN)/dat run demo --run-dir $(RUN_DIR) --resume

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: .venv/.lint-ready
	$(BIN)/ruff check dat_ray tests jobs
	$(BIN)/ruff format --check dat_ray tests jobs
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
