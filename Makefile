# Every target does all the set-up it needs; run again, it skips what is done. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Tests start hundreds of processes that import torch and transformers: 8 seconds less for each where
# compiled modules are kept, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Name of the JSON file that `make bench` writes, and further arguments for pytest, e.g. `-k write`.
BENCH_NAME ?= cpu
BENCH_ARGS ?=
# Passed to uv as --torch-backend: `cpu` picks the small build of torch where its index can be reached.
TORCH_BACKEND ?=
UV_FLAGS := $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND),)
# What development needs: the package's own requirements, the extras its tests use, the tools.
DEV_REQUIREMENTS := -r pyproject.toml --extra demo --extra eval --extra parquet --group dev
RUST_SOURCES := $(shell find rust -path rust/fuzz -prune -o -name '*.rs' -o -name Cargo.toml 2>/dev/null) Cargo.toml Cargo.lock
PYTHON_SOURCES := $(shell find python kernels -name '*.py' -o -name '*.pyi' -o -name '*.yaml' 2>/dev/null)
STAMP_DEPS := $(VENV)/.stamp-dependencies
STAMP_BUILD := $(VENV)/.stamp-build

# The interpreter is the sentinel: a folder without it is a broken environment.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mmfast needs Python >= 3.11, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(STAMP_DEPS): constraints/dev.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(UV_FLAGS) -c constraints/dev.txt $(DEV_REQUIREMENTS)
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

.PHONY: demo
demo: $(STAMP_BUILD) ## real digits to drawn and captioned ones, with a report: SEED=0 OUT=out/demo
	@echo "export, 2 tokenizers, prepare, train, generate, evaluate, report: about 5 minutes on 2 cores"
	PATH="$(abspath $(BIN)):$$PATH" bash examples/digits/run.sh

.PHONY: test
test: test-rust test-python test-wheel test-floor ## all tests: Rust, Python, kernels, wheel, oldest versions

.PHONY: test-rust
test-rust: $(STAMP_BUILD)
	cargo test --workspace --locked --quiet

.PHONY: test-python
test-python: $(STAMP_BUILD)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# Names of rows of tests/reliability/rows.py, to run only these.
ROWS ?=

.PHONY: reliability
reliability: $(STAMP_BUILD) ## the long crash, fault, damage and fuzz tests; writes docs/reliability.md
	$(BIN)/python -m tests.reliability.run $(ROWS)

# Seconds that each target runs.
FUZZ_SECS ?= 60

.PHONY: fuzz
fuzz: ## libFuzzer on the parsers; needs cargo-fuzz: FUZZ_SECS=60
	cd rust/fuzz && cargo run --quiet --bin seeds corpus
	cd rust/fuzz && for target in index sidecar journal; do \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . $$target -- -max_total_time=$(FUZZ_SECS) -malloc_limit_mb=64; done

# The wheel is built from the sdist, opened, and installed into an environment that holds nothing else.
dist/.stamp-wheel: $(STAMP_DEPS) $(RUST_SOURCES) $(PYTHON_SOURCES) pyproject.toml README.md
	rm -rf dist && mkdir dist
	$(BIN)/uv build --quiet --python $(BIN)/python --no-build-isolation --out-dir dist
	touch $@

.PHONY: wheel
wheel: dist/.stamp-wheel ## build the abi3 wheel, check its contents, import it in an empty environment
	$(BIN)/python tests/wheel/check_wheel.py dist
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-wheel
	$(BIN)/uv pip install --quiet --python $(VENV)-wheel/bin/python $(UV_FLAGS) -c constraints/dev.txt dist/*.whl
	cd / && $(abspath $(VENV)-wheel)/bin/mmfast doctor
	rm -rf $(VENV)-wheel

.PHONY: test-wheel
test-wheel: wheel

# Where torch, transformers and Triton show: kernels and their compiler, attention, training, generation, the road.
# What takes minutes and shows no more of them is left to the newest.
FLOOR_TESTS := tests/kernels tests/e2e tests/unit/test_document_attention.py tests/unit/test_engine.py \
	tests/unit/test_train_export.py tests/distributed/test_training_runs.py

$(VENV)-floor/.stamp-dependencies: constraints/floor.txt $(STAMP_DEPS)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-floor
	$(BIN)/uv pip install --quiet --python $(VENV)-floor/bin/python $(UV_FLAGS) -c constraints/floor.txt $(DEV_REQUIREMENTS)
	touch $@

.PHONY: test-floor
test-floor: dist/.stamp-wheel $(VENV)-floor/.stamp-dependencies ## the built wheel under the oldest torch, transformers and Triton
	$(BIN)/uv pip install --quiet --python $(VENV)-floor/bin/python --no-deps --reinstall dist/*.whl
	OMP_NUM_THREADS=1 $(VENV)-floor/bin/python -m pytest -n 2 --dist loadgroup $(FLOOR_TESTS) \
		-k 'not random_configurations and not folder_of_photographs and not dry_run'

# The list is complete; --no-deps, as one peer's own bounds are overridden in it (constraints/peers-overrides.txt).
$(VENV)-peers/.stamp-dependencies: constraints/peers.txt $(STAMP_DEPS)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-peers
	$(BIN)/uv pip install --quiet --python $(VENV)-peers/bin/python $(UV_FLAGS) --no-deps -r constraints/peers.txt
	touch $@

# Further arguments, e.g. `--only 350m`.
GPU_TRAIN_ARGS ?=

# On a machine without a Rust toolchain the kernels run all the same: any Python with torch and Triton will do.
.PHONY: gpu-kernels
gpu-kernels: ## sampling kernels on one GPU, checked, then timed beside their peers; JSON into benches/results
	PYTHONPATH=python $(or $(wildcard $(BIN)/python),$(PYTHON)) benches/kernels/gpu_sampling.py $(GPU_KERNELS_ARGS)

.PHONY: kernel-resources
kernel-resources: $(STAMP_BUILD) ## registers and memory of every sampling kernel on three architectures, without a GPU
	$(BIN)/python tests/kernels/compile_sampling.py --every-variant 80 90 100 > benches/results/kernel_resources.json

.PHONY: gpu-train
gpu-train: $(STAMP_BUILD) ## training steps on one GPU beside transformers alone; JSON into benches/results
	$(BIN)/python benches/train/gpu_train.py $(GPU_TRAIN_ARGS)

# Likewise, e.g. `--only 760m`.
GPU_GENERATE_ARGS ?=

.PHONY: gpu-generate
gpu-generate: $(STAMP_BUILD) ## pictures on one GPU beside transformers' generate; JSON into benches/results
	$(BIN)/python benches/generate/gpu_generate.py $(GPU_GENERATE_ARGS)

# Further datasets to hold against megatron-core, as prefixes.
PEER_PREFIXES ?=

.PHONY: bench
bench: dist/.stamp-wheel $(VENV)-peers/.stamp-dependencies ## every benchmark beside its peers, one run; JSON into benches/results
	$(BIN)/uv pip install --quiet --python $(VENV)-peers/bin/python --no-deps --reinstall dist/*.whl
	mkdir -p benches/results
	OMP_NUM_THREADS=1 $(VENV)-peers/bin/python -m pytest benches -o python_files='bench_*.py' -o filterwarnings=default -p no:xdist \
		--benchmark-columns=median,iqr,rounds --benchmark-json benches/results/$(BENCH_NAME).json $(BENCH_ARGS)
	$(VENV)-peers/bin/python benches/table.py benches/results/$(BENCH_NAME).json

.PHONY: peers
peers: $(STAMP_BUILD) $(VENV)-peers/.stamp-dependencies ## datasets and sample order held against megatron-core, byte for byte
	rm -rf out/peers
	$(BIN)/python tests/peers/datasets.py out/peers $(PEER_PREFIXES)
	$(VENV)-peers/bin/python tests/peers/check_megatron.py $$(ls out/peers/*.idx | sed 's/\.idx$$//') $(PEER_PREFIXES)
	$(BIN)/python tests/peers/orders.py out/peers/order
	$(VENV)-peers/bin/python tests/peers/check_megatron_order.py out/peers/order

.PHONY: constraints
constraints: | $(BIN)/python ## resolve the pinned environments anew
	$(call resolve,dev)
	$(call resolve,floor)
	$(BIN)/uv pip compile --quiet --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
		--override constraints/peers-overrides.txt constraints/peers.in pyproject.toml -o constraints/peers.txt

resolve = $(BIN)/uv pip compile --quiet --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
	constraints/$(1).in $(DEV_REQUIREMENTS:-r=) -o constraints/$(1).txt

.PHONY: clean
clean: ## remove environments and build results
	rm -rf $(VENV) $(VENV)-wheel $(VENV)-floor $(VENV)-peers dist target out python/mmfast/*.so

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
