# Everything runs in .venv, made from constraints.txt. PYTHON chooses the interpreter it is made with, WORKERS the processes of the tests.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
export GOMP_SPINCOUNT ?= 3000

.PHONY: demo test slow-test test-all fuzz lint docs accessibility dist arviz-1-test clean

demo: .venv/ready
	$(BIN)/epns-pyro train nbody
	$(BIN)/epns-pyro report runs/nbody

# A file of tests stays in one process: its fixtures are made once.
test: lint
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --durations 15

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

# The site, in build/docs: offline and strict. Tutorials are run, and kept until they change.
docs: .venv/docs
	$(BIN)/sphinx-build -q -W --keep-going -j auto -b html -d build/doctrees docs build/docs
	$(BIN)/python docs/check.py build/docs

# The site and a report, read by axe-core in Chromium; not in a minimal environment, which has no browser.
accessibility: docs
	$(BIN)/epns-pyro report pretrained:nbody --pages build/report
	$(BIN)/python docs/accessibility.py build/docs build/report

# Wheel and source distribution, and a try of the wheel in an environment that has nothing else.
dist: .venv/ready
	rm -rf dist build/wheel-venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt build
	$(BIN)/python -m build --quiet
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install --quiet --constraint constraints.txt torch
	build/wheel-venv/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && wheel-venv/bin/python ../tests/smoke.py

# The one module that calls ArviZ, with ArviZ 1 in an environment of its own: PYTHON has to be 3.12 or newer.
arviz-1-test:
	grep -v -i '^arviz==' constraints.txt > build-constraints.txt
	$(PYTHON) -m venv build/arviz-1
	build/arviz-1/bin/python -m pip install --quiet --constraint build-constraints.txt torch
	build/arviz-1/bin/python -m pip install --quiet --constraint build-constraints.txt '.[test]' 'arviz>=1'
	build/arviz-1/bin/pytest -q tests/calibration/test_idata.py
	rm build-constraints.txt

# torch first and alone: its pinned version decides which build of it the other packages find satisfied.
.venv/ready: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,docs]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
