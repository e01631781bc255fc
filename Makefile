# `make demo` and `make test` work as the first command on a fresh machine with Python 3.11 or
# 3.12, a C compiler and a package registry. `make help` lists the rest.

# The first of these that is a Python 3.11 or 3.12.
IS_RIGHT := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
  $$python -c '$(IS_RIGHT)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := demo,s3prl,onnx,dev
# Built when the environment is as these files and this Python want it; the name tells.
STATE := $(shell (cat constraints.txt pyproject.toml setup.py Makefile; $(PYTHON) --version) | \
  cksum | cut -d ' ' -f 1)
READY := $(VENV)/ready-$(STATE)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint type unit format clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

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
	@$(PIP) --no-deps timm  # for comparison in tests; it asks for torchvision, and does without
	@touch $@

demo: $(READY)  ## pretrain on spoken words, with pictures, in minutes
	$(BIN)/mae-ast demo

test: lint type unit  ## everything that has to hold

lint: $(READY)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)  ## mypy, strict on the core
	$(BIN)/mypy

# Files of tests run side by side, each on one thread: small models gain nothing by more.
unit: $(READY)  ## pytest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

format: $(READY)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
