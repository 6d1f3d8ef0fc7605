# `make demo` and `make test` build the project's own environment when it is missing and do all the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: venv demo test lint clean

venv: $(STAMP)

# uv from the PATH, or one of the project's own: nothing is asked of the machine but Python and a C compiler.
$(STAMP): setup.py pyproject.toml constraints.txt
	@uv=$$(command -v uv) && "$$uv" --version >/dev/null 2>&1 || { \
	  $(PYTHON) -m venv .uv && .uv/bin/python -m pip install -q uv && uv=$$PWD/.uv/bin/uv; }; \
	set -e; \
	[ -x $(VENV)/bin/python ] || "$$uv" venv -q --python 3.11 $(VENV); \
	"$$uv" pip install -q --python $(VENV)/bin/python -c constraints.txt -e '.[test]'; \
	touch $@

demo: venv
	cd egs/mini && ./run.sh

test: venv
	$(VENV)/bin/python -m pytest

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) .uv build ./*.egg-info
