# The two commands are `make demo` and `make test`. Either makes .venv and installs what it needs,
# through pip and python3 (3.11 or newer) alone; pip's own settings (PIP_INDEX_URL, ...) hold.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e
APT_GET := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n) env DEBIAN_FRONTEND=noninteractive apt-get -qq
CODE := shardrank actors jobs serve bench demo tests

# Ray sends usage statistics home unless told not to.
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help demo test test-gpu test-large test-load test-faults lint types install install-dev demo-model demo-data clean
.DEFAULT_GOAL := help

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: install  ## Rerank the embedded data set with the embedded model on a local Ray
	@echo "==> demo: the real job on demo/data with demo/model"
	@$(BIN)/python -m demo.run

test: lint types  ## Everything that must pass: ruff, mypy, pytest
	@echo "==> pytest: several minutes, real local Rays included"
	@$(BIN)/python -m pytest -n 2

test-gpu:  ## What needs a CUDA device, with a Python that has torch and transformers: no installing
	@echo "==> pytest -m gpu"
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest -m gpu tests/actors/test_gpu.py

test-large: install-dev  ## The real shape of 2B against transformers on this CPU: 11 GB, minutes
	@echo "==> pytest -m large"
	@$(BIN)/python -m pytest -m large -s tests/bench/test_large.py

test-load: install-dev  ## The endpoint under load on loopback, and 10,000 fuzzed requests: minutes
	@echo "==> pytest -m load"
	@$(BIN)/python -m pytest -m load -s

test-faults: install-dev  ## The long kill sweep and the like: about an hour
	@echo "==> pytest -m faults"
	@$(BIN)/python -m pytest -m faults -s

lint: install-dev  ## ruff: rules and formatting
	@echo "==> ruff"
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

types: install-dev  ## mypy over the package and the benchmark
	@echo "==> mypy"
	@$(BIN)/mypy

demo-model: install  ## Train the demo's model again (fixed steps and seed)
	@echo "==> training demo/model"
	@$(BIN)/python demo/train.py

demo-data: install  ## Draw the demo's data set again (maintainers: fetches the drawings with npm)
	@echo "==> building demo/data"
	@$(PIP_INSTALL) '.[data]' --quiet
	@$(BIN)/python demo/build_data.py
	@$(BIN)/python demo/build_set.py
	@$(BIN)/python demo/examples.py

install: $(INSTALLED)  ## The package and what it needs, into .venv

install-dev: $(INSTALLED_DEV)  ## All that the tests need as well; Chromium with apt, if no password is asked

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing into $(VENV), pinned by constraints.txt: minutes, and only once"
	@$(PIP_INSTALL) .
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing into $(VENV) with the tests' packages, pinned by constraints.txt: minutes, and only once"
	@$(PIP_INSTALL) '.[dev]'
	@command -v chromium >/dev/null || { $(APT_GET) update && \
	  $(APT_GET) install -y --no-install-recommends chromium; } </dev/null >/dev/null 2>&1 || \
	  echo "==> no Chromium here, and apt-get may not install it: the tests in a browser are skipped"
	@touch $(INSTALLED) $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "ShardRank needs Python 3.11 or newer, and '$(PYTHON)' was not found: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ShardRank needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1): make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "==> making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

clean:  ## Remove .venv and what the demo and the tools wrote
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
