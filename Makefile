# SPDX-License-Identifier: Apache-2.0

PYTHON ?= python3
VENV := .venv
PEERS := .peers
BIN := $(VENV)/bin
TOOLS := $(VENV)/.tools

.PHONY: help demo test check docs conformance bench guests install dev peers man wheels clean

help:
	@echo "make demo         set everything up and boot Debian's kernel under a policy"
	@echo "make test         set everything up and run the tests, of kvmsr as users get it"
	@echo "make check        style and types only"
	@echo "make docs         build the documentation as a site, in build/site"
	@echo "make install      install kvmsr into $(VENV), as users get it"
	@echo "make dev          have $(VENV) use the files in src as they are, until make install"
	@echo "make man          write the man pages into build/man"
	@echo "make wheels       build and check what is released, into dist"
	@echo "make conformance  compare the KVMs that are here, item by item"
	@echo "make bench        measure"
	@echo "make guests       build the guest images again (needs binutils)"
	@echo "make clean        remove what was set up"

$(TOOLS): pyproject.toml tools/make_venv.sh
	@PYTHON=$(PYTHON) tools/make_venv.sh $(VENV)
	@touch $@

# Compares contents, not times: nothing is done if the environment has the present wheel.
install: $(TOOLS)
	@$(BIN)/python tools/install.py

dev: $(TOOLS)
	$(BIN)/python -m pip install --quiet --no-deps --no-index --no-build-isolation --editable .

man: $(TOOLS)
	@PYTHONPATH=src $(BIN)/python tools/make_man.py build/man

wheels: $(TOOLS)
	@$(BIN)/python tools/make_wheels.py dist

peers:
	@$(PYTHON) tools/fetch_peers.py $(PEERS)

demo: install
	@$(PYTHON) tools/fetch_peers.py $(PEERS) kernel
	@kernel=$$(ls $(PEERS)/kernel/boot/vmlinuz-* 2>/dev/null | tail -n 1); \
	if [ -n "$$kernel" ]; then \
		$(BIN)/kvmsr demo --kernel "$$kernel" --policy examples/linux.toml; \
	else \
		$(BIN)/kvmsr demo; \
	fi

check: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A file's tests stay together: they share what takes long to set up.
test: check install peers
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The commands, the catalog and the docstrings are those of the kvmsr that is installed.
docs: install
	@$(BIN)/python -m tools.site build/site

conformance: install peers
	$(BIN)/python -m tests.conformance

bench: install
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/access.py
	$(BIN)/python bench/attach.py
	$(BIN)/python bench/instructions.py
	$(BIN)/python bench/recording.py
	$(BIN)/python bench/soft.py
	$(BIN)/python bench/trace.py
	$(BIN)/python bench/boot.py

guests:
	$(MAKE) -C guests

clean:
	rm -rf src/kvmsr/native/*.so src/kvmsr/backend/soft/cpu/*.so $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
