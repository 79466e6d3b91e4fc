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
# One process needs no launcher. torchrun dies of SIGUSR1 and leaves its ranks behind, unless it is named here.
SIGNALS := SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
TORCHRUN := $(VENV)/bin/torchrun --standalone --nproc-per-node=$(NGPU) --signals-to-handle=$(SIGNALS) --module
LAUNCH := $(if $(NGPU),$(TORCHRUN),$(PY) -m)
UV_VERSION := 0.13.9

export PYTHONPATH := $(CURDIR)
# If it is set, every process compiles every import again: monai takes 11 s instead of 4 s.
unexport PYTHONDONTWRITEBYTECODE
# Use the machine's own interpreter; download nothing but packages.
export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := $(VENV)
# Nothing reports home.
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

.PHONY: help setup cohort prepare pretrain eval test chaos bench bench-gpu lint clean
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo "Options:"
	@echo "  CONFIG=configs/tiny.yaml    which run (default: configs/default.yaml)"
	@echo "  ARGS=\"train.epochs=2\"       settings that override the run file"
	@echo "  ARM=tte                     what to pretrain: tte, visit, mtl or ssl"
	@echo "  NGPU=2                      number of training processes"
	@echo "  TESTS=\"tests/ehr -k bins\"   which tests (make test)"
	@echo "  PYTHON=python3.12           interpreter for a new environment"

setup: $(VENV)/.ready ## create the environment in .venv (the other targets do this when needed)

$(VENV)/.ready: pyproject.toml uv.lock jobs/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" UV_VERSION="$(UV_VERSION)" bash jobs/setup.sh
	@touch $@

cohort: $(VENV)/.ready ## write the synthetic patients: CTs and health records (skipped if CONFIG has its own input)
	$(PY) -m jobs.cohort $(CONFIG) $(ARGS)

prepare: cohort ## turn health records into labels and scans into volumes; runs cohort first
	$(PY) -m jobs.prepare $(CONFIG) $(ARGS)

pretrain: prepare ## pretrain an encoder; runs cohort and prepare first, and reuses finished work
	$(LAUNCH) jobs.pretrain $(CONFIG) $(TRAIN_ARGS)

eval: $(VENV)/.ready ## score the pretrained encoder on held-out patients and write the report
	$(PY) -m jobs.evaluation $(CONFIG) $(ARGS)

test: $(VENV)/.ready ## run all tests: those of the source tree, then the rest against the built wheel
	$(PY) -m pytest -m source
	bash tests/installed.sh $(VENV) $(TESTS)

chaos: export TTE_CHAOS_KILLS ?= 20
chaos: $(VENV)/.ready ## run the long tests: many kills, many damaged files, overfitting of every encoder and arm
	$(PY) -m pytest -n 0 tests/jobs/test_prepare_chaos.py
	$(PY) -m pytest -n 0 -m chaos tests/jobs/test_overfit.py
	$(PY) -m pytest -n 2 -m chaos tests/ttepretrain/volume/test_fuzz.py
	$(PY) -m pytest -n 0 -m chaos tests/ttepretrain/commands/test_stopped.py

bench-gpu: $(VENV)/.ready ## test and measure every encoder on the GPU of this machine
	$(PY) -m pytest -n 0 -m gpu tests/ttepretrain/test_cuda.py
	$(PY) -m benchmarks.gpu $(ARGS)

bench: $(VENV)/.ready ## measure speed against other software; results in benchmarks/results/
	$(PY) -m benchmarks.labels
	$(PY) -m benchmarks.volumes
	$(PY) -m benchmarks.loader
	$(PY) -m benchmarks.loss
	$(PY) -m benchmarks.monte_carlo

lint: $(VENV)/.ready ## check style, types and file hygiene
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) tests/hygiene.py

clean: ## remove the environment and caches, but never runs/
	rm -rf $(VENV) .uv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis ehr/__pycache__/numba-*
