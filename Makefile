# Every target works on a fresh machine with Python 3.11 to 3.13, make and a network.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart
JOBS ?= auto

.PHONY: help install browser demo test conformance docs lint types perf gate gate-update clean

help:
	@echo "make demo   create the environment, run the quickstart suite offline, show its leaderboard"
	@echo "make test   run the tests (with MEDBENCH_DATA set, those on real data too)"
	@echo "make conformance  every check of every bundled plugin (minutes)"
	@echo "make docs   build the documentation into docs/_build (any warning is an error)"
	@echo "make browser   the Chromium that tests of a board's page drive"
	@echo "make lint   ruff: style and formatting"
	@echo "make types  mypy, strict"
	@echo "make gate   run a tiny suite and compare it with the committed baseline (make gate-update writes it)"
	@echo "make perf   benchmarks of speed (pytest-benchmark)"
	@echo "make clean  remove the environment and caches; runs/ stays"

# The stamp makes installation happen once, and again when the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and f"Python 3.11 to 3.13 is needed, and this is {sys.version.split()[0]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

install: $(VENV)/.installed

browser: install
	$(BIN)/playwright install --with-deps chromium

demo: install
	$(BIN)/medbench run quickstart --out $(OUT)
	$(BIN)/medbench leaderboard $(OUT)

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

conformance: install
	$(BIN)/medbench check --all

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

perf: install
	$(BIN)/python -m pytest tests/perf -o addopts=''

# The baseline was measured on one machine; on others accuracy is compared and times are not.
gate: install
	$(BIN)/medbench run .ci/gate/suite.yaml --out runs/gate --workers 1 --device cpu
	$(BIN)/medbench gate .ci/gate/baseline.json runs/gate --thresholds .ci/gate/thresholds.yaml --all

gate-update: install
	$(BIN)/medbench run .ci/gate/suite.yaml --out runs/gate --workers 1 --device cpu
	$(BIN)/medbench gate .ci/gate/baseline.json runs/gate --thresholds .ci/gate/thresholds.yaml --update

clean:
	rm -rf $(VENV) docs/_build docs/reference .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks dist build
