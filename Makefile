# `make demo` and `make test` do everything on a fresh machine with Python >= 3.11; each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# One more than cores: tests over sockets wait more than they compute.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(1 + (os.cpu_count() or 1))')

.PHONY: demo test test-all coverage mutants lint documents site constraints clean setup
.DEFAULT_GOAL := help

help:
	@echo "make demo      a federation of real processes dreams together, securely (digits, 5 clients)"
	@echo "make test      lint, types, import rules, all tests that fit in minutes"
	@echo "make test-all  the same and the exhaustive ones"
	@echo "make coverage  how much of the protocol its tests run; fails below 97 %"
	@echo "make mutants   disable each defence in turn, and see that its tests notice"
	@echo "make lint      ruff, mypy --strict, import-linter"
	@echo "make documents write the pages that the code says itself"
	@echo "make site      the documents as a site, in site/index.html; a warning fails it"
	@echo "make constraints  write constraints.txt from what is installed in .venv"
	@echo "make clean     remove .venv, caches and runs"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/secure-codream demo $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder -m "not exhaustive" $(ARGS)

test-all: lint
	$(BIN)/pytest $(ARGS)

coverage: setup
	$(BIN)/pytest -n auto --dist loadscope -m "not exhaustive" tests/protocols --cov=codream_protocols \
		--cov-report=term-missing:skip-covered --cov-fail-under=97 $(ARGS)

documents: setup
	$(BIN)/python -m secure_codream.documents docs

site: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs site

constraints: setup
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

mutants: setup
	$(BIN)/python -m tests.mutants $(ARGS)

clean:
	rm -rf .venv runs dist site .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
