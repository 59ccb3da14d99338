# Each target sets up what it needs, on a bare Debian 12 as root; a second run starts at once.
#   make demo               watch healer do its whole job on a local machine
#   make test               all tests
#   make lint               ruff, mypy --strict
#   make bench SUITE=…      benchmarks
#   make clean              remove all that was built
# HEALER_CACHE=DIR keeps the virtual environment and the root file systems elsewhere than in build/.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CACHE := $(abspath $(or $(HEALER_CACHE),build))
VENV := $(CACHE)/venv
PY := $(VENV)/bin/python
PYTHON ?= python3
# More than processors: half of a test's time is spent waiting.
WORKERS ?= 3
SUITE ?=

# What the Python packages are built with, and what boots machines.
APT := ca-certificates debian-archive-keyring e2fsprogs gcc libsystemd-dev mmdebstrap nix-bin \
  openssl pkg-config procps python3-dev python3-pip python3-venv qemu-system-x86 \
  systemd-container util-linux

.PHONY: help demo test lint bench clean setup

help:
	@sed -n 's/^#   //p' Makefile

demo: setup
	@$(PY) -m tests.machine.demo

test: setup
	@$(PY) -m tests.machine.support
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: setup
	@$(PY) -m ruff check --extend-exclude build .
	@$(PY) -m ruff format --check --exclude build .
	@$(PY) -m mypy --strict

bench: setup
	@$(PY) -m bench $(SUITE)

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

setup: $(CACHE)/apt.stamp $(VENV)/stamp

# As root, installs what is missing; as anybody else, says what that is and goes on without.
$(CACHE)/apt.stamp: Makefile
	@mkdir -p $(CACHE)
	@missing=; for package in $(APT); do \
	  dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed \
	    || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then touch $@; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing$$missing"; export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null \
	    && touch $@; \
	else \
	  echo "make: not root, so these stay missing and what needs them is left out:$$missing" >&2; \
	fi

# A python3 that is not Debian's may lack ensurepip, or be too old; then /usr/bin/python3.
$(VENV)/stamp: pyproject.toml | $(CACHE)/apt.stamp
	@echo "setting up $(VENV)"; rm -rf $(VENV)
	@good='import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'; \
	for python in $(PYTHON) /usr/bin/python3; do \
	  if $$python -c "$$good" 2>/dev/null; then break; fi; \
	done; \
	$$python -m venv $(VENV)
	@$(PY) -m pip install -q --disable-pip-version-check -e '.[host,test]' \
	  || { echo "make: without libsystemd's headers: no [host] packages" >&2; \
	       $(PY) -m pip install -q --disable-pip-version-check -e '.[test]'; }
	@touch $@
