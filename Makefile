# `make help` lists what is supported.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV    := .venv
BIN     := $(VENV)/bin
MEMBERS := linux runtime core drivers/overlay drivers/copy tests/conformance
SOURCES := $(addsuffix /src,$(MEMBERS))
NO_EMIT := $(addprefix --no-emit-package ,cowshed-linux cowshed-runtime cowshed cowshed-driver-overlay cowshed-driver-copy cowshed-conformance)

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: setup
setup: $(VENV)/.ready  ## fill .venv: Debian packages by name, Python packages from the lock, our packages editable

$(VENV)/.ready: requirements/bootstrap.txt requirements/dev.txt tools/setup tools/launcher $(addsuffix /pyproject.toml,$(MEMBERS))
	tools/setup $(VENV) $(MEMBERS)
	@touch $@

.PHONY: lock
lock: setup  ## resolve the dependencies again into requirements/*.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade requirements/bootstrap.in -o requirements/bootstrap.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade $(NO_EMIT) requirements/dev.in -o requirements/dev.txt

.PHONY: clean
clean:  ## remove what make made
	rm -rf $(VENV) build .mypy_cache .ruff_cache .coverage* .import_linter_cache
