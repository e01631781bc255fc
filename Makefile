# `make demo` and `make test` work as the first command on a fresh machine with Python 3.11 or
# 3.12, a C compiler and a package registry. `make help` lists the rest.

# The first of these commands that is a Python 3.11 or 3.12.
IS_RIGHT := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
first = $(shell for python in $(1); do \
  $$python -c '$(IS_RIGHT)' 2>/dev/null && echo $$python && break; done)
PYTHON ?= $(call first,python3 python3.12 python3.11)
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := all,demo,docs,dev
# The versions to install, for pip's -c; none: the newest that pyproject.toml allows.
CONSTRAINTS := constraints.txt
LOWER_BOUNDS := build/lower-bounds.txt
# Built when the environment is as these files and this Python want it; the name tells.
STATE := $(shell (cat $(CONSTRAINTS) pyproject.toml setup.py Makefile; $(PYTHON) --version) | \
  cksum | cut -d ' ' -f 1)
READY := $(VENV)/ready-$(STATE)
# Compiled below, by all cores at once.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile $(addprefix -c ,$(CONSTRAINTS))

# Tests start many programs; without bytecode on disk, each would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help venv demo reference test quick gpu test-newest test-oldest test-light test-kits lint type docs light \
  unit format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(READY)  ## make the virtual environment, unless it is right already

$(READY):
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(IS_RIGHT)' || { echo \
	  "Python 3.11 or 3.12 is needed and not found: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test "$$($(BIN)/python --version 2>&1)" = "$$($(PYTHON) --version 2>&1)" || \
	  { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@rm -f $(VENV)/ready-*
	@echo "installing PyTorch ..."
	@$(PIP) torch torchaudio numpy cython setuptools wheel
	@echo "building fairseq and installing the rest (3 to 5 minutes) ..."
	@$(PIP) --no-build-isolation -e '.[$(EXTRAS)]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages hold templates of code
	@touch $@

demo: $(READY)  ## pretrain on spoken words, evaluate and plot, in minutes
	$(BIN)/mae-ast demo

reference: $(READY)  ## train the demo's model, and compare its metrics with recorded ones
	PATH=$(CURDIR)/$(BIN):$$PATH scripts/reference_run.sh

test: lint  ## everything that has to hold
	$(MAKE) --jobs 2 unit type docs light

# What a change is tried with first: no training, no s3prl.
quick: $(READY)  ## ruff and the fast tests, in a minute and a half
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not network" --numprocesses auto \
	  --maxprocesses 4 --dist loadfile

lint: $(READY)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)  ## mypy, strict
	$(BIN)/mypy

docs: $(READY)  ## build the documentation site into build/docs
	$(BIN)/python -m scripts.docs.build

light: $(READY)  ## check the wheel without extras, its dependencies linked from the environment
	$(BIN)/python -m scripts.light_install --linked

# Files of tests run side by side, each on one thread: small models gain nothing by more.
unit: $(READY)  ## pytest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	  --no-loadscope-reorder

# Each in an environment of its own, made anew: what the registry offers changes from day to day.
test-newest:  ## pytest with the newest dependencies that pyproject.toml allows
	rm -rf .venv-newest
	$(MAKE) unit VENV=.venv-newest CONSTRAINTS= \
	  PYTHON=$(if $(filter file,$(origin PYTHON)),$(call first,python3.12 python3.11),$(PYTHON))

test-oldest:  ## pytest with the oldest dependencies that pyproject.toml allows
	rm -rf .venv-oldest
	mkdir -p $(dir $(LOWER_BOUNDS))
	$(PYTHON) scripts/lower_bounds.py > $(LOWER_BOUNDS)
	$(MAKE) unit VENV=.venv-oldest CONSTRAINTS=$(LOWER_BOUNDS)
	$(PYTHON) scripts/lower_bounds.py --light > $(LOWER_BOUNDS)
	.venv-oldest/bin/python -m scripts.light_install --constraints $(LOWER_BOUNDS) --python 3.10

test-light: $(READY)  ## install the wheel without extras on each Python that is there, and check it
	$(BIN)/python -m scripts.light_install

# Under 10 minutes on an H100, with the packages of this environment. REFERENCE is a checkout of
# the authors' repository, whose step is then compared with ours.
gpu: $(READY)  ## on a machine with a GPU: its tests, then the benchmark suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu tests/gpu --numprocesses 12
	$(BIN)/mae-ast bench --device cuda --minutes 6
	$(if $(REFERENCE),$(BIN)/python scripts/benchmarks/step_against_reference.py --device cuda \
	  --reference $(REFERENCE))

test-kits:  ## the evaluation kits' own checkers: HEAR, X-ARES, mteb
	$(MAKE) venv VENV=.venv-kits
	.venv-kits/bin/python -m pip install --quiet -c constraints.txt xares mteb tensorflow-cpu
	.venv-kits/bin/python -m pip install --quiet --no-deps hearvalidator
	OMP_NUM_THREADS=1 .venv-kits/bin/python -m pytest tests/evaluate/kits

format: $(READY)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what was built
	rm -rf .venv .venv-newest .venv-oldest .venv-kits build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
