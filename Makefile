# `make demo` and `make test` do everything, set-up included. PYTHON picks the interpreter (3.11 or newer), DEVICE what .venv is
# built for: cpu, or gpu for an NVIDIA GPU. One that is there stays what it is.
PYTHON ?= python3
BUILT := $(shell cat .venv/device 2>/dev/null || { test -e .venv/.ready && echo cpu; })
DEVICE ?= $(or $(BUILT),cpu)
CONSTRAINTS := $(if $(filter gpu,$(DEVICE)),constraints-gpu.txt,constraints.txt)
BIN := .venv/bin
RUN_DIR ?= runs/demo
PYTEST_ARGS ?=
RUNS ?= 5
FAULTS_ARGS ?=
# Processes that share the tests; what each of them gets, tests/conftest.py says.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --durations=20 --durations-min=1
SHARED = -n $(WORKERS)

.PHONY: help setup device demo quick test drills faults lint format docs audit clean

help: ## This list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: device .venv/.ready ## Builds .venv from the tested set of packages; DEVICE=gpu from that for CUDA.

# vLLM for CPUs and for GPUs are two packages with one import name: an environment is not turned from one into the other.
device:
	@case "$(DEVICE)" in cpu|gpu) ;; *) echo "DEVICE=$(DEVICE): choose cpu or gpu" >&2; exit 2;; esac
	@case "$(BUILT)" in ""|$(DEVICE)) ;; *) echo "DEVICE=$(DEVICE): .venv is built for $(BUILT); make clean first" >&2; exit 2;; esac

# Half-made environments are never used: the marker file is written last.
.venv/.ready: $(CONSTRAINTS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "dat_ray needs Python 3.11 or newer: make PYTHON=python3.11 " + "setup")'
	$(PYTHON) -m venv .venv
	echo $(DEVICE) > .venv/device
	$(BIN)/pip install --quiet --no-deps -r $(CONSTRAINTS)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

.venv/.lint-ready: .venv/.ready constraints-dev.txt
	$(BIN)/pip install --quiet --no-deps -r constraints-dev.txt
	touch $@

demo: setup ## The whole pipeline on real models; the report lies in runs/demo.
	$(BIN)/dat run demo --run-dir $(RUN_DIR) --resume

# Three tiers. What a tier leaves out is counted in pytest's last line ("deselected"), and runs in the next one.
quick: lint ## Style, types, and the unit tests that take no time: minutes.
	$(PYTEST) $(SHARED) tests/unit -m "not slow and not drill" $(PYTEST_ARGS)

test: setup ## Every test but the drills: real models, real Ray, one short form of each fault.
	$(PYTEST) $(SHARED) -m "not drill" $(PYTEST_ARGS)

drills: setup ## The long forms: kills by enumeration, large matrices, repeats for statistics.
	$(PYTEST) -m drill --timeout=3600 $(PYTEST_ARGS)

# Not beside other tests: its record says how long each drill took.
faults: setup ## The fault drills RUNS times in a row beside two busy processes; the record lies in runs/faults.
	$(BIN)/python -m tests.ray.repeat_faults --runs $(RUNS) $(FAULTS_ARGS)

lint: .venv/.lint-ready ## Style and types.
	$(BIN)/ruff check dat_ray tests jobs docs studies benchmarks
	$(BIN)/ruff format --check dat_ray tests jobs docs studies benchmarks
	$(BIN)/mypy

format: .venv/.lint-ready ## Formats the code in place.
	$(BIN)/ruff check --fix dat_ray tests jobs docs studies benchmarks
	$(BIN)/ruff format dat_ray tests jobs docs studies benchmarks

docs: ## The documentation site, in build/site; a broken link fails.
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/pip install --quiet --no-deps -r constraints-docs.txt
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/python docs/build.py

# --strict: a package that the advisories do not know fails too. They list versions without a build's name (+cpu).
audit: setup ## Known weaknesses of the tested packages (asks the public advisories), and their licenses.
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit pip-licenses
	.venv/audit/bin/pip-licenses --python=$(BIN)/python --format=csv --order=license
	sed 's/+cpu$$//' $(CONSTRAINTS) > .venv/audit/tested.txt
	.venv/audit/bin/pip-audit --requirement .venv/audit/tested.txt --no-deps --disable-pip --strict --progress-spinner=off

clean: ## Removes what was built; runs stay.
	rm -rf .venv build dist *.egg-info
