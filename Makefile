# One line each: `make demo` shows the product, `make test` proves it, `make check` is the fast gate.
# Everything runs from .venv, built from requirements/*.txt with hashes; nothing here needs root except
# scripts/install-debian, which `make test` calls.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
# make demo ARGS="--nodes 50 --duration 60s"
ARGS ?=
# Test processes at a time. Three on two cores: half of what a test does is waiting. Each that comes to the end-to-end
# tests has a control plane of its own, about 0.7 GB. make test WORKERS=0 ARGS="--pdb -k name"
WORKERS ?= 3
export WATTBALANCE_VENV := $(VENV)
# Where bytecode may not be written (many images say so), each start compiles everything anew: `wattbalance --help`
# took 80 ms of CPU instead of 45, the daemon seconds.
unexport PYTHONDONTWRITEBYTECODE

COMPILE := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-annotate --no-header --python-version 3.11

.PHONY: help demo test check lint format types imports unit bench fuzz test-gpu lock venv run-venv debian clean

help:
	@echo 'make demo      watch pods of a public trace being placed (ARGS="--nodes 50 --duration 60s")'
	@echo 'make test      install what the tests need (scripts/install-debian), then run all of them'
	@echo 'make check     format, lint, types, import layers, conventions, unit tests'
	@echo 'make bench     the benchmarks, with the comparison beside each figure'
	@echo 'make fuzz      100,000 bad annotations and 10,000 bad configurations, generated (some minutes)'
	@echo 'make test-gpu  the tests that need a real GPU'
	@echo 'make lock      compile requirements/*.txt anew (needs uv); make clean'

demo: run-venv
	@$(BIN)/wattbalance demo $(ARGS)

test: debian venv
	@scripts/run-tests $(WORKERS) $(ARGS)

check: lint types imports unit

lint: venv
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet

format: venv
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

types: venv
	$(BIN)/mypy

imports: venv
	@$(BIN)/lint-imports >/dev/null || $(BIN)/lint-imports
	@$(BIN)/deptry scheduler >/dev/null 2>&1 || $(BIN)/deptry scheduler

# The conventions are tests too (tests/conventions).
unit: venv
	@scripts/run-tests $(WORKERS) -q -m 'not e2e and not gpu and not slow' $(ARGS)

bench: venv
	@for file in benchmarks/[a-z]*.py; do \
		name=$$(basename "$$file" .py); echo "== $$name"; $(BIN)/python -m "benchmarks.$$name" $(ARGS) || exit 1; \
	done

fuzz: venv
	$(BIN)/python -m scripts.fuzz $(ARGS)

test-gpu: venv
	$(BIN)/python -m pytest -m gpu $(ARGS)

lock:
	$(COMPILE) pyproject.toml --extra demo -o requirements/run.txt
	$(COMPILE) pyproject.toml --extra demo --group dev -c requirements/run.txt -o requirements/dev.txt
	$(COMPILE) requirements/build.in -c requirements/dev.txt -o requirements/build.txt

venv:
	@scripts/make-venv dev

run-venv:
	@scripts/make-venv run

debian:
	@scripts/install-debian

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find scheduler tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
