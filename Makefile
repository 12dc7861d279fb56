PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install quickstart test lint clean
.DEFAULT_GOAL := help

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP) ## Make the environment, with exact versions
	@echo "lit-hf is installed in $(VENV): $(BIN)/lit-hf --help"

# setup.cfg and constraints.txt say what is installed, so the environment is as new as they are.
$(STAMP): setup.cfg constraints.txt
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[test,tools,tensorboard]'
	@touch $@

quickstart: $(STAMP) ## Train a small classifier on this machine and try it
	$(BIN)/lit-hf fit --config configs/quickstart.yaml
	$(BIN)/lit-hf predict runs/quickstart \
	  --text 'async def wait(self, timeout): await asyncio.wait_for(self._event.wait(), timeout)' \
	  --text 'def assertEmpty(self, value, msg=None): self.fail(self._formatMessage(msg, f"{value!r} is not empty"))' \
	  --text 'def send_header(self, keyword, value): self._headers_buffer.append(f"{keyword}: {value}")'

test: $(STAMP) ## Run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP) ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage coverage.xml
