# Each verb works on a fresh machine with Python >= 3.11 (venv included), make and git: it makes .venv on first use
# and installs again only when pyproject.toml or requirements-dev.txt changed (the stamps lie inside .venv).
# More arguments for a verb's command: make test ARGS="-k presence", make run ARGS="--lan".

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python

# Kept even where the environment asks for none: else each start compiles all that it imports, and is twice as slow.
unexport PYTHONDONTWRITEBYTECODE

MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.PHONY: help setup run test check bench docs conformance lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: $(VENV)/.run ## make .venv and install the server in it

run: $(VENV)/.run ## serve the example pieces on http://localhost:8889
	@$(BIN)/session-server dev pieces $(ARGS)

# Three at a time on whatever machine: half of the time a test waits. For a debugger: make test ARGS="-n 0 --pdb".
test: $(VENV)/.dev ## run all tests, in a real Chromium too
	@scripts/ensure-chromium >/dev/null
	@scripts/ensure-geckos
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal $(ARGS)

check: $(VENV)/.dev node_modules/.package-lock.json ## format, lint and types, of the browser client too
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	node_modules/.bin/tsc -p .
	$(BIN)/uv --quiet pip check --python $(BIN)/python

bench: $(VENV)/.dev ## measure against the peers
	$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.docs ## build the documentation into site/
	$(BIN)/zensical build --clean --strict

conformance: $(VENV)/.dev ## run all WebSocket conformance cases
	$(BIN)/python -m tests.conformance $(ARGS)

lock: $(VENV)/.uv ## write requirements-dev.txt anew from pyproject.toml
	$(BIN)/uv --quiet pip compile --universal --python-version 3.11 --generate-hashes --extra dev --extra speed \
		--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
		$(ARGS) --output-file requirements-dev.txt pyproject.toml >/dev/null

clean: ## remove all that the other verbs made, .venv too
	rm -rf $(VENV) node_modules site dist build reports bench/.build bench/peers/node_modules .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The environment and uv inside it.
$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or later is needed; '$(PYTHON)' is not. Another one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) could not make $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet --disable-pip-version-check uv
	@touch $@

# The server alone. uvloop makes it faster and is never required.
$(VENV)/.run: pyproject.toml $(VENV)/.uv
	@echo "installing session-server into $(VENV)"
	@$(INSTALL) --editable '.[speed]' || { \
		echo "the extra 'speed' (uvloop) cannot be installed here; going on without it" >&2; $(INSTALL) --editable .; }
	@touch $@

# The same with what tests and checks need, in the versions of requirements-dev.txt, each file held to its hash.
$(VENV)/.dev: pyproject.toml requirements-dev.txt $(VENV)/.uv
	@echo "installing session-server and its test tools into $(VENV)"
	@$(INSTALL) --require-hashes --requirement requirements-dev.txt
	@$(INSTALL) --no-deps --editable .
	@touch $(VENV)/.run $@

$(VENV)/.docs: pyproject.toml $(VENV)/.uv
	@echo "installing the documentation tools into $(VENV)"
	@$(INSTALL) --editable '.[docs]'
	@touch $@

# npm writes this file last.
node_modules/.package-lock.json: package.json package-lock.json
	@scripts/ensure-node
	npm ci --no-audit --no-fund
	@touch $@
