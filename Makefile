# make demo: the example site, on http://127.0.0.1:$(PORT)    make test: the whole suite
PYTHON ?= python3
PORT ?= 8000
OF ?= trigger
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-minimum lint format coverage benchmark hammer chaos wheel clean

demo: $(VENV)/example
	@PORT=$(PORT) $(BIN)/python -m example_site

test: $(VENV)/test
	$(BIN)/python -m pytest $(ARGS)

test-minimum:
	$(PYTHON) -m venv $(VENV)-minimum
	$(VENV)-minimum/bin/python -m pip install --quiet --editable '.[test]' --constraint tests/minimum.txt
	$(VENV)-minimum/bin/python -m pytest -m 'not slow' $(ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python async_hooks tests
	$(BIN)/lint-imports setup.cfg

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/lint
	$(BIN)/python -m coverage run --branch --source async_hooks -m pytest -m 'not slow'
	$(BIN)/python -m coverage report --show-missing --skip-covered

# OF: trigger, loss, backlog, growth or limits.
benchmark: $(VENV)/benchmarks
	$(BIN)/python -m benchmarks.$(OF) $(ARGS)

# How visitors fare while strangers hammer at the endpoint, or at a page that does not exist.
hammer: $(VENV)/test
	$(BIN)/python -m tests.attacks.hammer $(ARGS)

# Kills, freezes and unplugs real servers for hours, and prints what was lost: nothing, so far.
chaos: $(VENV)/test
	$(BIN)/python -m tests.chaos.chaos $(ARGS)

wheel: $(VENV)/lint
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) $(VENV)-minimum build dist *.egg-info

# One file per extra says that it is installed, and is older than setup.cfg if it no longer is.
$(VENV)/%: setup.cfg $(VENV)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "async_hooks needs Python 3.11 or later. Name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
