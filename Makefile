# Everything runs in .venv, which `make setup` makes once and later runs reuse.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CUDA ?= 13

.PHONY: setup demo test lint bench bench-gpu check-gpu clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Nightstream needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(STAMP)

demo: setup
	$(BIN)/nightstream demo --output demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: setup
	$(BIN)/python perf/bench.py --device cpu

bench-gpu: setup
	$(BIN)/python perf/bench.py --device gpu

check-gpu: setup
	$(BIN)/python -m pip install --quiet --editable '.[cuda$(CUDA)-wheels,check]'
	$(BIN)/python perf/check_gpu.py

clean:
	rm -rf build demo $(VENV) src/*.egg-info
