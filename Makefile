# Every target works from a clean clone with nothing but Python 3.11 or newer (and, for `test`, root or sudo on Debian to
# install brokers). Nothing here needs a container engine; where one answers, the tests use it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# how long `make demo` runs
DURATION ?= 90
# more words for pytest, as in `make test ARGS="-k kafka -x"`
ARGS ?=
# how often `make properties` draws anew
ROUNDS ?= 10
# more words for `make results-matrix`: MATRIX=--small is about ten minutes, MATRIX="--hours 1" stops after an hour
MATRIX ?=

# where services of `make services-up` are; without that file the tests start their own
-include build/services/env
export PILOTLIGHT_TEST_KAFKA PILOTLIGHT_TEST_RABBITMQ_AMQP PILOTLIGHT_TEST_RABBITMQ_HTTP
export PILOTLIGHT_TEST_PROMETHEUS PILOTLIGHT_TEST_SQS

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- using it ---------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.demo ## a queue, bursts, simulated GPU pods and the scaler, for DURATION seconds (90)
	$(BIN)/pilotlight demo --duration $(DURATION)

.PHONY: wheel-compiled
wheel-compiled: $(VENV)/.test ## a wheel with machine code for this platform in it, checked against the sources, into dist/
	rm -rf build/wheel && mkdir -p build/wheel dist
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w build/wheel .
	$(BIN)/python -m tests.compiled --check build/wheel/*.whl
	mv build/wheel/*.whl dist/

# --- testing it -------------------------------------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.test ## all tests, against real brokers that it installs and starts; ARGS="-k kafka" chooses
	$(BIN)/python -m tests.services install
	$(BIN)/python -m pytest $(ARGS)

.PHONY: properties
properties: $(VENV)/.test ## the property tests with examples drawn anew, ROUNDS (10) times: those of `make test` never change
	for round in $$(seq $(ROUNDS)); do \
	  $(BIN)/python -m pytest -m hypothesis --hypothesis-profile properties $(ARGS) || exit; \
	done

.PHONY: lint
lint: $(VENV)/.test ## style, types, import contracts, and that everything generated is current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m scaler.cli docs --check
	$(BIN)/python -m pytest -q tests/test_generated.py tests/test_compose.py tests/test_locks.py

.PHONY: services-up
services-up: $(VENV)/.test ## start the brokers of the tests and leave them running, for several test runs
	$(BIN)/python -m tests.services up

.PHONY: services-down
services-down: $(VENV)/.test ## stop them and forget their data
	$(BIN)/python -m tests.services down

.PHONY: conformance-keda
conformance-keda: $(VENV)/.test ## KEDA's own scalers, compiled from its Go module, against the service (minutes; needs Go)
	$(BIN)/python -m tests.conformance.keda.run $(ARGS)

.PHONY: reality
reality: $(VENV)/.test ## the simulator against a real broker, the real service and KEDA's calls (10 minutes)
	$(BIN)/python -m tests.services install
	$(BIN)/python -m tests.reality $(ARGS)

.PHONY: bench
bench: $(VENV)/.test ## speed and size against their goals, as JSON (six minutes); ARGS="latency memory" chooses
	$(BIN)/python -m tests.services install
	$(BIN)/python -m tests.bench $(ARGS)

# --- writing what is generated ----------------------------------------------------------------------------------------

.PHONY: protos
protos: $(VENV)/.test ## write scaler/_generated from protos/
	$(BIN)/python -m grpc_tools.protoc -Iscaler/_generated=protos --python_out=. --pyi_out=. --grpc_python_out=. \
	  scaler/_generated/externalscaler.proto scaler/_generated/pilotlight.proto

.PHONY: docs
docs: $(VENV)/.test ## write docs/sources.md from the definitions in the code
	$(BIN)/python -m scaler.cli docs

.PHONY: pictures
pictures: $(VENV)/.test ## draw docs/pictures for docs/policies.md from the simulator, and print their figures
	$(BIN)/python -m scaler.backtest.pictures

.PHONY: results
results: results-matrix results-bench ## docs/results.md and docs/results/bench.json

.PHONY: results-matrix
results-matrix: $(VENV)/.test ## the policies against tuned KEDA and others, into docs/results.md (resumable; about an hour)
	$(BIN)/python -m tests.compiled build/compiled || echo "not compiled: the same figures take four times as long" >&2
	PYTHONPATH=build/compiled $(BIN)/pilotlight backtest matrix $(MATRIX)

.PHONY: results-bench
results-bench: $(VENV)/.test ## what `make bench` measures, into docs/results/bench.json
	mkdir -p docs/results build
	$(BIN)/python -m tests.bench $(ARGS) > build/bench.json
	cp build/bench.json docs/results/bench.json

.PHONY: results-small
results-small: $(VENV)/.test ## a part of the matrix, about ten minutes, into build/results-small
	mkdir -p build/results-small
	$(BIN)/pilotlight backtest matrix --small --out build/results-small/runs --docs build/results-small

# Universal locks with hashes, for Python 3.11 and newer on every platform. They name no package index, so that pip takes
# the one that is set up on the machine.
COMPILE := build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" pyproject.toml locks/build.in

.PHONY: lock
lock: build/uv/bin/uv ## fit locks/ to pyproject.toml; ARGS=--upgrade takes the newest versions
	$(COMPILE) $(ARGS) --extra test --output-file locks/test.txt
	$(COMPILE) $(ARGS) --extra demo --constraint locks/test.txt --output-file locks/demo.txt

build/uv/bin/uv:
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet uv

# --- the environment --------------------------------------------------------------------------------------------------

.PHONY: clean
clean: ## remove the environment and everything built; stop `make services-up` first
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian splits `venv` from Python; as root it is installed, else Python's own message says what is missing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is too old or missing: Python 3.11 or newer is needed (make PYTHON=python3.12 ...)" >&2; exit 1; }
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get -q update && apt-get -q install --yes --no-install-recommends python3-venv; } || true
	$(PYTHON) -m venv $(VENV)

# a lock is installed again when it or the project's metadata has changed
$(VENV)/.%: locks/%.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
