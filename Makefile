# make demo   set up, then show Cutaway at work on a bundled network, offline
# make test   set up, then lint, types, fast tests, slow tests
# make lint   ruff and mypy only          make bench   the benchmarks          make clean   remove what was made here
#
# Everything is installed into .venv in this folder; nothing outside it is touched. A second run installs nothing.
#   PYTHON=python3.12     another interpreter (3.11 or later)
#   TORCH_INDEX=URL       take PyTorch from this package index only (for a GPU build, for example)
#   TORCH_INDEX=default   take PyTorch from pip's usual index (on Linux that may be a CUDA build of several GB)
#   SHAPES=1              check the shapes in annotations while the tests run
#   JOBS=2                processes that share the tests (about 3 GB each)

PYTHON ?= python3
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_CPU := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= auto
SHAPES ?= 0
JOBS ?= 2

BIN := .venv/bin
STAMP := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A .venv that was moved with its folder, lost its interpreter or lost a package is no set-up: forget the stamp.
PROBE := import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("cutaway")))
$(shell { test "$$(cat $(STAMP))" = "$(CURDIR)" && $(BIN)/python -c '$(PROBE)'; } >/dev/null 2>&1 || rm -f $(STAMP))

.PHONY: demo test lint bench clean setup
.DEFAULT_GOAL := demo

demo: setup
	$(BIN)/cutaway demo

test: lint
	CUTAWAY_SHAPES=$(SHAPES) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"
	CUTAWAY_SHAPES=$(SHAPES) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/substrate.py
	$(BIN)/python benchmarks/zoo.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(STAMP)

# The stamp is removed first and written last, so that whatever interrupts this leaves a .venv that is made anew.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Cutaway needs Python 3.11 or later; name one with: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is incomplete here; on Debian or Ubuntu run: sudo apt-get install python3-venv" >&2; exit 1; }
	@test -e $(STAMP) || rm -rf .venv
	@rm -f $(STAMP)
	@test -x $(BIN)/python || { echo "Making .venv ..."; $(PYTHON) -m venv .venv; }
	@echo "Installing PyTorch ..."
	@$(install_torch)
	@echo "Installing Cutaway and what it needs ..."
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[all,dev]'
	@echo "$(CURDIR)" > $(STAMP)

# PyTorch on its own and first, so that nothing later pulls in another build. On Linux the usual index serves the CUDA
# build; the CPU build is taken from PyTorch's own index, unless pip already knows of a "+cpu" build (a local mirror).
# --no-deps: what PyTorch needs comes with the second installation, from the usual index and in the pinned versions.
define install_torch
set -e; from="$(TORCH_INDEX)"; \
if [ "$$from" = auto ]; then \
	if [ "$$(uname -s)" != Linux ] || $(PIP) index versions torch 2>/dev/null | grep -qF "$(patsubst torch==%,%,$(TORCH))+cpu"; \
	then from=default; else from="$(TORCH_CPU)"; fi; \
fi; \
if [ "$$from" = default ]; then $(PIP) install --quiet --no-deps $(TORCH); \
elif ! $(PIP) --timeout 20 --retries 2 install --quiet --no-deps --index-url "$$from" $(TORCH); then \
	if [ "$(TORCH_INDEX)" != auto ]; then exit 1; fi; \
	echo "PyTorch's CPU index cannot be reached; taking the usual index, whose build may be much larger."; \
	$(PIP) install --quiet --no-deps $(TORCH); \
fi
endef
