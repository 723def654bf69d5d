# SPDX-License-Identifier: Apache-2.0

PYTHON ?= python3
VENV := .venv
PEERS := .peers
BIN := $(VENV)/bin
NATIVE := setup.py src/kvmsr/native/build.py $(wildcard src/kvmsr/native/c/*.[ch])
READY := $(VENV)/.ready

.PHONY: help demo test check conformance bench guests clean

help:
	@echo "make demo    set everything up and boot Debian's kernel under a policy"
	@echo "make test    set everything up and run the tests"
	@echo "make check   style and types only"
	@echo "make conformance  compare the KVMs that are here, item by item"
	@echo "make bench   measure"
	@echo "make guests  build the guest images again (needs binutils)"
	@echo "make clean   remove what was set up"

$(READY): pyproject.toml tools/make_venv.sh $(NATIVE)
	@PYTHON=$(PYTHON) tools/make_venv.sh $(VENV)
	@touch $@

$(PEERS)/.tried: tools/fetch_peers.py
	@mkdir -p $(PEERS)
	@$(PYTHON) tools/fetch_peers.py $(PEERS)
	@touch $@

demo: $(READY)
	@mkdir -p $(PEERS)
	@$(PYTHON) tools/fetch_peers.py $(PEERS) kernel
	@kernel=$$(ls $(PEERS)/kernel/boot/vmlinuz-* 2>/dev/null | tail -n 1); \
	if [ -n "$$kernel" ]; then \
		$(BIN)/kvmsr demo --kernel "$$kernel" --policy examples/linux.toml; \
	else \
		echo "Debian's kernel cannot be had here: the demo runs kvmsr's own small guest."; \
		$(BIN)/kvmsr demo; \
	fi

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check $(PEERS)/.tried
	$(BIN)/pytest

conformance: $(READY) $(PEERS)/.tried
	$(BIN)/python -m tests.conformance

bench: $(READY)
	$(BIN)/python bench/access.py
	$(BIN)/python bench/soft.py
	$(BIN)/python bench/boot.py

guests:
	$(MAKE) -C guests

clean:
	rm -rf src/kvmsr/native/*.so $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis build
