# One command a chore; each sets up what it needs, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test quick check bench docs

demo: .venv/ready  ## scan the demo's network over the demo's photographs and draw the figure
	$(BIN)/unitscope demo --out demo

test: .venv/ready  ## all tests
	$(BIN)/python -m pytest

quick: .venv/ready  ## the tests that take about a minute
	$(BIN)/python -m pytest -m "not slow"

check: .venv/ready  ## style, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready  ## a scan beside a plain evaluation loop
	$(BIN)/python benchmarks/evaluation_loop.py

docs: .venv/ready  ## the documentation, as pages in docs/_build
	$(BIN)/typer unitscope.cli utils docs --name unitscope --title "Command line" --output docs/cli.md
	$(BIN)/sphinx-build -W -q -b html docs docs/_build
	@echo "docs/_build/index.html"

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
