# Two commands on a fresh machine: `make demo` runs the main job, `make test` the tests. Both set up `.venv` themselves.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test check notebooks clean

demo: .venv/ready
	$(BIN)/python scripts/run.py configs/demo.py --workdir runs/demo

test: .venv/ready-test
	$(BIN)/python -m pytest -n auto --dist worksteal

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Runs them and keeps the outputs; what is read and changed is the .py of each.
notebooks: .venv/ready-test
	cd notebooks && ../$(BIN)/jupytext --to ipynb --execute *.py

clean:
	rm -rf runs/demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/ready: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torch, which the tests compare with, comes first and pinned: a bare `torch` may bring gigabytes of CUDA.
.venv/ready-test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ .venv/ready

.venv/ready-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/ready .venv/ready-test
