# `make demo` and `make test` need only python3 (3.11 or later), make and a package index.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# Compile modules once, not in each of the hundreds of processes that the tests start.
unexport PYTHONDONTWRITEBYTECODE
# Tests with real processes mostly wait: use twice as many workers as cores.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() * 2)')
SCRIPTS := .ci/run packaging/install packaging/uninstall $(addprefix packaging/deb/,build postinst prerm postrm) tests/system/machine/boot.sh

.PHONY: help demo demo-svg test lint format bench coverage reference clean install uninstall deb test-deb lint-deb
help:
	@echo "make demo [ARGS='--mailboxes 300 --rate 200']   run the daemon against a simulated Exchange"
	@echo "make demo-svg                                   draw docs/demo.svg, the picture in the README, from the running demo"
	@echo "make test | lint | format | coverage | bench | reference | clean"
	@echo "make install [PREFIX=/usr/local] [DESTDIR=]     install with its own environment, units, man page, completions"
	@echo "make uninstall [PREFIX=/usr/local]              remove what \`make install\` installed, except configuration and state"
	@echo "make deb | test-deb                             build a Debian package in dist/; build and test it (as root)"

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.run
	@$(BIN)/ews-listener demo $(ARGS)

demo-svg: $(VENV)/.run
	$(BIN)/python docs/demo_svg.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/hadolint packaging/Containerfile

bench: $(VENV)/.run
	@for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The generated tables of docs/CONFIGURATION.md and docs/TROUBLE.md.
reference: $(VENV)/.run
	$(BIN)/python docs/reference.py
	$(BIN)/python packaging/reference.py

coverage: $(VENV)/.dev
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage combine -q && $(BIN)/coverage report --skip-covered --sort=cover

install:
	@PYTHON=$(PYTHON) DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" packaging/install

uninstall:
	@PREFIX="$(PREFIX)" packaging/uninstall

# The package always depends on the system's Python, independent of $(PYTHON).
deb:
	@packaging/deb/build

test-deb: $(VENV)/.dev
	@COMPRESS=gzip packaging/deb/build
	EWS_LISTENER_DEB="$$(ls -t $(CURDIR)/dist/*.deb | head -n 1)" $(BIN)/python -m pytest -q tests/system/test_deb.py

lint-deb:
	lintian --fail-on=error --tag-display-limit=0 "$$(ls -t dist/*.deb | head -n 1)"

clean:
	rm -rf $(VENV) dist .coverage* .mypy_cache .pytest_cache .ruff_cache
