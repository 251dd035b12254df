# One-liners over the three command lines. CONFIG picks the experiment; ARGS passes flags through.
# `sweep` runs several: ARGS goes to the sweep alone, SHARED (--run-dir, --clip, --store.path, …) to extract, train and sweep.
CONFIG ?= configs/demo.yaml
# Those with data of their own and a pruner to train.
DEMOS := configs/demo.yaml configs/demo_large.yaml configs/demo_sweep.yaml configs/scenes_hard.yaml configs/scenes_hard_deep.yaml
ARGS ?=
SHARED ?=
ONLY_SHARED := --run-dir% --clip% --model.% --data.% --store.%
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_VENV := .bench-venv
DOCS_VENV := .docs-venv
# The upper end of `make test-versions`: newest (pinned in tests/versions/newest.txt), or latest (what the package index has today).
NEWEST ?= newest
export TOKENIZERS_PARALLELISM ?= false
# Idle OpenMP threads sleep instead of spinning: on a busy machine spinning costs up to 20x the CPU time.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup data demo extract train eval sweep parity inspect test test-faults test-geometry test-versions check lint types docs bench bench-store bench-pruners bench-gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtual environment (every target below does it when needed)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## the whole idea in minutes, on the embedded default: data, extract, train, eval, parity
	$(BIN)/python -m stage1_extract.demo data --config configs/demo.yaml
	$(BIN)/python -m stage1_extract extract --config configs/demo.yaml $(ARGS)
	$(BIN)/python -m stage2_prune train --config configs/demo.yaml $(ARGS)
	$(BIN)/python -m stage2_prune eval --config configs/demo.yaml $(ARGS)
	$(BIN)/python -m stage2_prune parity --config configs/demo.yaml $(ARGS)

data: $(READY) ## write the demo's images and questions (CONFIG=configs/demo.yaml, _large, _sweep, or scenes_hard.yaml)
	$(BIN)/python -m stage1_extract.demo data --config $(CONFIG) $(ARGS)

extract: $(READY) ## stage 1: encode every image of CONFIG once into its store
	$(BIN)/python -m stage1_extract extract --config $(CONFIG) $(ARGS)

train: $(READY) ## stage 2: train CONFIG's pruner from the store
	$(BIN)/python -m stage2_prune train --config $(CONFIG) $(ARGS)

eval: $(READY) ## stage 2: score CONFIG's pruners from the store
	$(BIN)/python -m stage2_prune eval --config $(CONFIG) $(ARGS)

sweep: CONFIG = configs/demo_sweep.yaml
sweep: $(READY) ## every method at every budget, from one config: table, tidy CSV, pictures (the demo's with its data and training)
	$(if $(filter $(ONLY_SHARED),$(ARGS)),$(error expected $(filter $(ONLY_SHARED),$(ARGS)) in SHARED, which extract, train and sweep are given, got it in ARGS, which only the sweep is: say make sweep SHARED="…"))
	$(if $(filter $(DEMOS),$(CONFIG)),$(BIN)/python -m stage1_extract.demo data --config $(CONFIG))
	$(BIN)/python -m stage1_extract extract --config $(CONFIG) $(SHARED)
	$(if $(filter $(DEMOS),$(CONFIG)),$(BIN)/python -m stage2_prune train --config $(CONFIG) $(SHARED))
	$(BIN)/python -m stage2_prune sweep --config $(CONFIG) $(SHARED) $(ARGS)

parity: $(READY) ## prove that the store answers as the full model does, bit for bit
	$(BIN)/python -m stage2_prune parity --config $(CONFIG) $(ARGS)

inspect: $(READY) ## look into CONFIG's store
	$(BIN)/python -m store inspect --config $(CONFIG) $(ARGS)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -m 'not geometry' -n 2 $(ARGS)

test-faults: $(READY) ## what may go wrong, with 30 random kills: tests/faults
	ENCODE_ONCE_FAULT_SEEDS=30 $(BIN)/python -m pytest tests/faults -n 2 $(ARGS)

test-geometry: $(READY) ## the real shapes: CLIP ViT-L/14-336, projector 1024 -> 4096, language model of width 4096
	$(BIN)/python -m pytest -m geometry $(ARGS)

test-versions: $(READY) ## what touches transformers, with the oldest and the newest version (NEWEST=latest: of today)
	$(BIN)/python -m tests.versions oldest $(NEWEST) -n 2 $(ARGS)

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/basedpyright

check: lint types test ## lint, types and tests

docs: $(DOCS_VENV)/.ready ## build the site of docs/ into site/; it gets .docs-venv, without torch, of its own
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict $(ARGS)

$(DOCS_VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --upgrade pip  # one that knows --group
	$(DOCS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --group docs
	@touch $@

bench: $(READY) ## ratios, measured in interleaved runs
	$(BIN)/python -m tests.benchmarks $(ARGS)

bench-store: $(READY) ## the store against np.memmap and other containers; they get .bench-venv, 6 GB, of their own
	@$(MAKE) --no-print-directory $(BENCH_VENV)/.ready || echo "the other libraries are left out" >&2
	$(BIN)/python -m tests.benchmarks.store --others $(BENCH_VENV) $(ARGS)

bench-pruners: $(READY) ## what every pruner costs beside one layer of the tower, and what shorter prompts save
	$(BIN)/python -m tests.benchmarks.pruners $(ARGS)

bench-gpu: $(READY) ## what one GPU reaches at the shapes of LLaVA-1.5-7B, in eight minutes (ARGS=--quick: small, on the CPU)
	$(BIN)/python -m tests.benchmarks.gpu $(ARGS)

$(BENCH_VENV)/.ready: tests/benchmarks/store/others.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --requirement $< 2> $(BENCH_VENV)/pip.err
	@touch $@

clean: ## remove what the demo wrote
	rm -rf runs data/demo data/demo_large data/demo_sweep data/scenes_hard
