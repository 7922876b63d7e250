# `make help` lists what is supported.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV    := .venv
BIN     := $(VENV)/bin
MEMBERS := linux runtime core drivers/overlay drivers/btrfs drivers/devicemapper drivers/zfs drivers/aufs drivers/copy tests/conformance
SOURCES := $(addsuffix /src,$(MEMBERS))
NO_EMIT := $(addprefix --no-emit-package ,cowshed-linux cowshed-runtime cowshed cowshed-driver-overlay cowshed-driver-btrfs cowshed-driver-devicemapper cowshed-driver-zfs cowshed-driver-aufs cowshed-driver-copy cowshed-conformance)

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

# Debian packages of the demo and the tests: a registry to compare with, an image's contents, file systems to test on
DEMO_PACKAGES := busybox-static
TEST_PACKAGES := $(DEMO_PACKAGES) docker-registry mmdebstrap e2fsprogs xfsprogs btrfs-progs erofs-utils attr acl procps skopeo curl zsh fish runc crun catatonit fuse-overlayfs uidmap iproute2 openssl kmod

# Runtimes that are only run by tests, and never installed
RUNTIME_PACKAGES := runsc containerd

# What guests are built and run with, where they can be (tests/vm)
VM_PACKAGES := qemu-system-x86 mmdebstrap e2fsprogs kmod busybox-static debian-archive-keyring git gcc-12 make binutils libc6-dev libelf1
VM ?= yes
WITH_VM := $(filter x86_64yes,$(shell uname -m)$(VM))

.PHONY: demo
demo: setup  ## pull an image from a registry, run it on overlay, then on another driver
	@tools/apt $(DEMO_PACKAGES)
	@python3 tools/demo

.PHONY: test
test: setup  ## all tests, the conformance suite on every driver, then the list of what was skipped and why
	@tools/apt $(TEST_PACKAGES) $(if $(WITH_VM),$(VM_PACKAGES))
	tools/unpack build/runtimes $(RUNTIME_PACKAGES)
	@tools/unpack --release sid build/criu criu || echo "criu is not there: its tests are skipped"
	@tools/unpack --release sid build/signing cosign skopeo || echo "cosign and skopeo are not there: their tests are skipped"
	@tools/peers bookworm || echo "podman, docker and containerd are not there: their tests are skipped"
	VM=$(VM) tools/test $(TESTS)

.PHONY: conformance
conformance: setup  ## the suite alone: make conformance DRIVER=overlay [OPTIONS="--backing xfs"]
	@tools/apt $(TEST_PACKAGES)
	tools/suite $(or $(DRIVER),overlay) $(OPTIONS)

.PHONY: vm
vm: setup  ## build a guest (kernel with device-mapper, zfs, cgroup v2) and boot it; tests/vm/run runs tests there
	@tools/apt $(VM_PACKAGES)
	tests/vm/build
	tests/vm/run -- sh -c 'modprobe -a zfs dm_thin_pool && uname -a && cowshed version'

.PHONY: matrix
matrix: setup  ## keep the last reports of the suite for the page of drivers by cases: make matrix [REPORTS="DIR..."]
	$(BIN)/python tools/matrix $(REPORTS)
	@$(BIN)/python tools/docs

.PHONY: coverage
coverage: setup  ## the packages' own tests under coverage, and which lines they leave out
	@tools/apt $(TEST_PACKAGES)
	tools/coverage

.PHONY: check
check: setup  ## all static checks: format, lint, types, architecture, dependencies, that every test can be imported
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	tools/deptry $(MEMBERS)
	$(BIN)/pytest --collect-only -qq -m "" > $(VENV)/collected || { cat $(VENV)/collected; exit 1; }

.PHONY: bench
bench: setup  ## time the commands against the engines installed beside: make bench [OPTIONS="--quick --only short"]
	@tools/apt $(TEST_PACKAGES)
	PYTHONPATH=tests/support $(BIN)/python benchmarks/commands.py $(OPTIONS)

.PHONY: bench-host
bench-host: setup  ## compare drivers and file systems on this host, when it is quiet: make bench-host [OPTIONS=--quick PLACE=/mnt]
	@tools/apt $(TEST_PACKAGES)
	$(BIN)/cowshed bench --strict --place $(or $(PLACE),/var/tmp) --out docs/examples/bench/$(shell date +%F) --html $(OPTIONS)

.PHONY: bench-drivers
bench-drivers: setup  ## time the storage drivers, each on a fresh file system: make bench-drivers [OPTIONS="--driver btrfs --scale 0.1"]
	@tools/apt $(TEST_PACKAGES)
	$(BIN)/python benchmarks/drivers.py $(OPTIONS)

.PHONY: docs
docs: setup  ## write the reference pages that come from tables of the code, and hold the links of all pages
	@$(BIN)/python tools/docs

.PHONY: clean
clean:  ## remove what make made
	rm -rf $(VENV) build .mypy_cache .ruff_cache .coverage* .import_linter_cache
