# Two commands on a fresh machine: `make demo` runs the main job, `make test` the tests. Both set up `.venv` themselves.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# The public names, and the modules beside them whose names users write in configs and notebooks.
DOCUMENTED := deft_tsds $(addprefix deft_tsds., transport.terms config data metrics t5 training.finetune studies.contract)

.PHONY: demo test check audit fuzz notebooks docs clean

demo: .venv/ready
	$(BIN)/python scripts/run.py configs/demo.py --workdir runs/demo

test: .venv/ready-test
	$(BIN)/python -m pytest -n auto --dist worksteal

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Asks the advisory database of PyPI about every installed version; it needs the network.
audit: .venv/ready
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | \
	  $(BIN)/python -m pip_audit --strict --no-deps --disable-pip -r /dev/stdin

fuzz: .venv/ready-test
	$(BIN)/python benchmarks/fuzz.py --minutes 60 --keep-going True

# Runs them and keeps the outputs; what is read and changed is the .py of each.
notebooks: .venv/ready-test
	cd notebooks && ../$(BIN)/jupytext --to ipynb --execute *.py

# The API reference, from the docstrings: docs/api/index.html.
docs: .venv/ready-dev
	$(BIN)/pdoc $(DOCUMENTED) --docformat google --output-directory docs/api

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
