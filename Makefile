PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile
DATA ?= $(or $(LIT_HF_DATA),../shared/data)
BENCH_ARGS ?=
UV ?= uv==0.13.9
PIP ?= pip==26.3

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_VENV := benchmarks/.venv
BENCH_STAMP := $(BENCH_VENV)/.installed
BENCH := $(BENCH_VENV)/bin/python -m benchmarks --data $(DATA)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install lock quickstart test lint bench bench-quick bench-gpu clean
.DEFAULT_GOAL := help

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP) ## Make the environment, with exact versions
	@echo "lit-hf is installed in $(VENV): $(BIN)/lit-hf --help"

# setup.cfg, constraints.txt and the lock say what is installed, so the environment is as new as they are. All that is
# in the lock has the hash that stands there; what is left for the last line is torch alone, and what its build for
# this machine (CPU or CUDA) brings along.
$(STAMP): setup.cfg constraints.txt requirements.lock
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade '$(PIP)'
	@$(BIN)/python -m pip install -qq --require-hashes --no-deps --requirement requirements.lock
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[test,tools,tensorboard]'
	@touch $@

# Without torch: which of its builds is installed depends on the machine, and each has hashes of its own.
lock: ## Write the hashes of what constraints.txt names to requirements.lock
	@$(PYTHON) -m venv --clear .lock-venv
	@.lock-venv/bin/python -m pip install -qq '$(UV)'
	@.lock-venv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-deps --generate-hashes \
	  --no-emit-package torch --no-annotate --custom-compile-command 'make lock' constraints.txt --output-file requirements.lock
	@rm -rf .lock-venv

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

bench: $(BENCH_STAMP) ## Compare lit-hf with its peers on this machine (hours; DATA=folder, BENCH_ARGS='--only chat')
	$(BENCH) $(BENCH_ARGS)

bench-quick: $(BENCH_STAMP) ## The same on few rows, in five minutes
	$(BENCH) --quick $(BENCH_ARGS)

bench-gpu: $(BENCH_STAMP) ## The suite for one GPU
	$(BENCH) --gpu $(BENCH_ARGS)

# lit-hf and its peers side by side, with the one PyTorch that constraints.txt names.
$(BENCH_STAMP): setup.cfg constraints.txt benchmarks/requirements.txt benchmarks/requirements-bare.txt \
  benchmarks/requirements-plot.txt
	@echo "installing the peers into $(BENCH_VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install -qq --upgrade '$(PIP)'
	@$(BENCH_VENV)/bin/python -m pip install -qq --constraint constraints.txt --editable . \
	  --requirement benchmarks/requirements.txt
	@$(BENCH_VENV)/bin/python -m pip install -qq --no-deps --requirement benchmarks/requirements-bare.txt
	@$(BENCH_VENV)/bin/python -m pip install -qq --constraint constraints.txt --target $(BENCH_VENV)/plot \
	  --requirement benchmarks/requirements-plot.txt
	@touch $@

clean: ## Remove the environments and what tools left behind
	rm -rf $(VENV) $(BENCH_VENV) benchmarks/.cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage coverage.xml
