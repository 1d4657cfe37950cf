# `make` lists the targets. A Python of 3.11 or newer, its pip and GNU make are all it takes.

PYTHON ?= python3
UV ?= uv
POSTGRES ?= /usr/lib/postgresql/15/bin
# What charges, and what is the organization's own: the rest does not know where a row lies.
CITUS_TESTS := tests/db/on_citus*.py tests/db/test_gate*.py tests/db/test_races.py tests/db/test_rls.py \
	tests/db/test_staff.py tests/db/test_staff_verbs.py tests/db/test_keys.py tests/db/test_switch_outage.py \
	tests/api/test_spending.py

# Files in their order: the browser's, which take longest, early; a unit test does not keep one waiting.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
# What the lock names and nothing else: known hashes, no builds from source.
LOCKED := --require-hashes --no-deps --only-binary :all:
EDITABLE := --no-build-isolation --no-deps --editable .
COMPILE := $(UV) pip compile pyproject.toml --all-extras --group build \
	--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet

.DEFAULT_GOAL := help
.PHONY: help run test test-thorough test-citus test-faults test-postgres screens bench bench-console pictures audit lint format lock schema wheel clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.runtime ## Start console and API on http://localhost:8501
	@exec $(BIN)/tokenlib serve

test: $(VENV)/.dev lint ## Run every check and every kind of test, but not the faults
	@$(BIN)/pytest $(TWO) -m "not thorough" --ignore=tests/faults

test-thorough: $(VENV)/.dev ## Run more of the same: other seeds, pairs and pages, a million rows
	@$(BIN)/pytest $(TWO) -m thorough --ignore=tests/faults

test-%: $(VENV)/.dev ## Run one folder of tests: make test-unit, make test-browser
	@$(BIN)/pytest $(TWO) tests/$*

test-faults: $(VENV)/.dev ## Break the database under load, and print what happened
	@$(BIN)/pytest --session-timeout=400 tests/faults

test-citus: $(VENV)/.dev ## Run what a Citus changes, on that of the server in POSTGRES
	@test -f $$($(POSTGRES)/pg_config --sharedir)/extension/citus.control || { echo "The PostgreSQL in \
	$(POSTGRES) has no Citus. Name another: make test-citus POSTGRES=/path/to/bin" >&2; exit 1; }
	@TOKENLIB_TEST_CITUS=1 TOKENLIB_TEST_POSTGRES=$(POSTGRES) $(BIN)/pytest -m "not one_node" $(CITUS_TESTS)

test-postgres: $(VENV)/.dev ## Run the database tests on the server in POSTGRES, Debian's 15 unless set
	@test -x $(POSTGRES)/postgres || { echo "There is no PostgreSQL in $(POSTGRES). Name another: make \
	test-postgres POSTGRES=/path/to/bin" >&2; exit 1; }
	@TOKENLIB_TEST_POSTGRES=$(POSTGRES) $(BIN)/pytest $(TWO) -m "not bundled" tests/db

bench: $(VENV)/.dev ## Measure the gate against its targets, on a quiet machine; build/bench.json
	@$(BIN)/python -m tests.benchmarks

bench-console: $(VENV)/.dev ## Time every page of the console in a browser, some minutes
	@$(BIN)/python -m tests.benchmarks.console

screens: $(VENV)/.dev ## Go through the console in a browser, and keep each page in build/screens
	@TOKENLIB_SCREENS=1 $(BIN)/pytest $(TWO) tests/browser

pictures: $(VENV)/.dev ## Take the pictures of the documents anew, in a browser
	@$(BIN)/python -m tests.browser.pictures

audit: $(VENV)/.dev ## Ask the package index for known vulnerabilities in the lock files
	@$(BIN)/python -m tests.audit $(AUDIT)

lint: $(VENV)/.dev ## Check style, types and imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary .
	@$(BIN)/lint-imports >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

format: $(VENV)/.dev ## Format the code and mend what can be mended
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

lock: ## Pin the dependencies; with UPGRADE=--upgrade, newer ones (needs uv)
	$(COMPILE) $(UPGRADE) --output-file requirements.lock
	$(COMPILE) $(UPGRADE) --group dev --constraint requirements.lock --output-file requirements-dev.lock

schema: $(VENV)/.dev ## Write down the schema that doctor compares with, after a change of it
	@$(BIN)/python -m tests.schema_snapshot

wheel: $(VENV)/.runtime ## Build the wheel into dist/
	@$(BIN)/hatchling build --target wheel

clean: ## Remove environment, caches and build results; the data stay
	@rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "tokenlib needs Python 3.11 or newer, and $(PYTHON) \
	was not found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("tokenlib needs Python \
	3.11 or newer, and $(PYTHON) is %d.%d. Name another: make PYTHON=/path/to/python3" % v)'
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.created requirements.lock pyproject.toml
	@echo "Installing the locked packages into $(VENV), once. This takes a minute or two."
	@$(PIP) $(LOCKED) -r requirements.lock
	@$(PIP) $(EDITABLE)
	@touch $@

# The development lock contains the runtime lock, so one install serves both stamps.
$(VENV)/.dev: $(VENV)/.created requirements-dev.lock pyproject.toml
	@echo "Installing the locked packages and tools into $(VENV), once. This takes a minute or two."
	@$(PIP) $(LOCKED) -r requirements-dev.lock
	@$(PIP) $(EDITABLE)
	@touch $(VENV)/.runtime $@
