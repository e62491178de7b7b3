# Every target does all the set-up it needs; run again, it skips what is done. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Passed to uv as --torch-backend: `cpu` picks the small build of torch where its index can be reached.
TORCH_BACKEND ?=
UV_FLAGS := $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND),)
RUST_SOURCES := $(shell find rust -name '*.rs' -o -name Cargo.toml 2>/dev/null) Cargo.toml Cargo.lock
STAMP_DEPS := $(VENV)/.stamp-dependencies
STAMP_BUILD := $(VENV)/.stamp-build

# The interpreter is the sentinel: a folder without it is a broken environment.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mmfast needs Python >= 3.11, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(STAMP_DEPS): constraints/dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(UV_FLAGS) -r constraints/dev.txt
	touch $@

$(STAMP_BUILD): $(STAMP_DEPS) $(RUST_SOURCES) pyproject.toml
	@command -v cargo >/dev/null || { echo "mmfast needs a Rust toolchain to build: https://rustup.rs"; exit 1; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: build
build: $(STAMP_BUILD) ## set up the environment and build the native extension

.PHONY: lint
lint: $(STAMP_BUILD) ## rustfmt, clippy, ruff, mypy, stub check
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest mmfast._mmfast

.PHONY: format
format: $(STAMP_BUILD) ## rewrite the sources in the house format
	cargo fmt --all
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

.PHONY: test
test: test-rust test-python ## all tests

.PHONY: test-rust
test-rust: $(STAMP_BUILD)
	cargo test --workspace --locked --quiet

.PHONY: test-python
test-python: $(STAMP_BUILD)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: constraints
constraints: | $(BIN)/python ## resolve the pinned development environment anew
	$(BIN)/uv pip compile --quiet --no-emit-index-url --no-header --no-annotate --python-version 3.11 pyproject.toml constraints/dev.in --extra demo --extra eval --extra parquet --extra log --group dev -o constraints/dev.txt

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
