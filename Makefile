# Everything runs from this folder. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CONFIG ?= configs/default.yaml
ARM ?=
NGPU ?=
ARGS ?=
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
TESTS ?=
TRAIN_ARGS := $(if $(ARM),train.arm=$(ARM)) $(ARGS)
# One process needs no launcher. torchrun must be told of SIGUSR1, or it dies of it and leaves its ranks behind.
SIGNALS := SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
TORCHRUN := $(VENV)/bin/torchrun --standalone --nproc-per-node=$(NGPU) --signals-to-handle=$(SIGNALS) --module
LAUNCH := $(if $(NGPU),$(TORCHRUN),$(PY) -m)
UV_VERSION := 0.13.9

export PYTHONPATH := $(CURDIR)
# With it set, every process compiles every import again: monai 11 s instead of 4 s.
unexport PYTHONDONTWRITEBYTECODE
# The interpreter is the machine's own; nothing is fetched but packages.
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := $(VENV)
# Nothing reports home.
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

.PHONY: help setup cohort prepare pretrain eval test chaos bench bench-gpu lint clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22
	@echo "  CONFIG=configs/x.yaml  ARM=tte  NGPU=2  ARGS=\"train.epochs=2 ...\""

setup: $(VENV)/.ready ## create the environment (the other targets do it when needed)

$(VENV)/.ready: pyproject.toml uv.lock jobs/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" UV_VERSION="$(UV_VERSION)" bash jobs/setup.sh
	@touch $@

cohort: $(VENV)/.ready ## write the synthetic cohort (nothing to do where CONFIG names its own input)
	$(PY) -m jobs.cohort $(CONFIG) $(ARGS)

prepare: cohort ## align studies with timelines: survival labels and the volume cache
	$(PY) -m jobs.prepare $(CONFIG) $(ARGS)

pretrain: prepare ## train; every earlier stage runs first and reuses what is there
	$(LAUNCH) jobs.pretrain $(CONFIG) $(TRAIN_ARGS)

eval: $(VENV)/.ready ## embed, probe, score and write the report
	$(PY) -m jobs.evaluation $(CONFIG) $(ARGS)

test: $(VENV)/.ready ## the whole suite, against the installed wheel; the source tree's own checks first
	$(PY) -m pytest -m source
	bash tests/installed.sh $(VENV) $(TESTS)

chaos: export TTE_CHAOS_KILLS ?= 20
chaos: $(VENV)/.ready ## the long tests: many kills, many damaged files, every encoder and arm learning by heart
	$(PY) -m pytest -n 0 tests/jobs/test_prepare_chaos.py
	$(PY) -m pytest -n 0 -m chaos tests/jobs/test_overfit.py
	$(PY) -m pytest -n 2 -m chaos tests/ttepretrain/volume/test_fuzz.py

bench-gpu: $(VENV)/.ready ## measure every encoder on the GPU of this machine (docs/performance.md), its own tests first
	$(PY) -m pytest -n 0 -m gpu tests/ttepretrain/test_cuda.py
	$(PY) -m benchmarks.gpu $(ARGS)

bench: $(VENV)/.ready ## measure against the peers; results under benchmarks/results/
	$(PY) -m benchmarks.labels
	$(PY) -m benchmarks.volumes
	$(PY) -m benchmarks.loader
	$(PY) -m benchmarks.loss
	$(PY) -m benchmarks.monte_carlo

lint: $(VENV)/.ready ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean: ## remove the environment and caches; never runs/
	rm -rf $(VENV) .uv build dist .pytest_cache .ruff_cache .hypothesis ehr/passes/__pycache__/numba-*
