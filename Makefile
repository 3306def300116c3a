# Every job by name. `make` lists them.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: help setup test lint clean
help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/.complete ## make .venv with everything

.venv/.complete: pyproject.toml
	@test -n "$(PYTHON)" || { echo "glm-trt needs Python 3.11 or newer in PATH" >&2; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

test: setup ## run every test
	$(BIN)/pytest

lint: setup ## formatting, lint with the one-way import rule, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p glm_trt

clean: ## remove what the targets made, but .venv
	rm -rf build dist *.egg-info
