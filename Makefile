# Everything runs in .venv, made from constraints.txt. PYTHON chooses the interpreter it is made with, WORKERS the processes of the tests.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
export GOMP_SPINCOUNT ?= 3000

.PHONY: demo test slow-test test-all fuzz lint clean

demo: .venv/ready
	$(BIN)/epns-pyro train nbody
	$(BIN)/epns-pyro report runs/nbody

# A file of tests stays in one process: its fixtures are made once.
test: lint
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile

slow-test: .venv/ready
	$(BIN)/pytest -q -n $(WORKERS) -m slow

test-all: test slow-test

# Damaged files by the thousand, through every reader of files; prints how they ended.
fuzz: .venv/ready
	$(BIN)/python tests/fuzz --cases 100

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone: its pinned version decides which build of it the other packages find satisfied.
.venv/ready: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
