# `make demo`, `make test` and `make test-k2` build the project's own environment when it is missing and do all the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

# The older end: k2 from the package index, with the Python 3.9, torch and ESPnet that it was built for.
VENV_K2 := .venv-k2
STAMP_K2 := $(VENV_K2)/.installed
# The first Python 3.9 that runs, on the PATH (where pyenv may have put a command that does not) or among pyenv's versions.
PYTHON39 ?= $(shell for python in python3.9 $$(pyenv root 2>/dev/null)/versions/3.9.*/bin/python3.9; do \
  "$$python" -c "import ensurepip, venv" >/dev/null 2>&1 && { echo "$$python"; break; }; done)
# Every file with a test marked k2, and what shows that the package works there, from its registration to a training. Files,
# each once: given a folder and a file in it, pytest leaves out the folder's others.
TESTS_K2 = $(sort $(shell grep -rlE --include='test_*.py' 'mark\.k2\b' tests) $(wildcard tests/losses/test_*.py tests/models/test_*.py) \
  tests/espnet/test_contract.py tests/espnet/test_registry.py tests/deploy/test_extract.py tests/trainers/test_resume.py tests/espnet/test_checkpoint_files.py)

.PHONY: venv demo test test-k2 run-k2 lint docs clean

venv: $(STAMP)

# uv from the PATH, or one of the project's own: nothing is asked of the machine but Python and a C compiler.
FIND_UV = uv=$$(command -v uv) && "$$uv" --version >/dev/null 2>&1 || { \
  $(PYTHON) -m venv .uv && .uv/bin/python -m pip install -q uv && uv=$$PWD/.uv/bin/uv; }

# Bytecode is made at once: where PYTHONDONTWRITEBYTECODE is set, each command would compile torch and ESPnet again, for 4 seconds.
$(STAMP): setup.py pyproject.toml constraints.txt
	@$(FIND_UV); \
	set -e; \
	[ -x $(VENV)/bin/python ] || "$$uv" venv -q --python 3.11 $(VENV); \
	"$$uv" pip install -q --compile-bytecode --python $(VENV)/bin/python -c constraints.txt -e '.[test]'; \
	touch $@

# A CTC supernet with Conformer encoders, then an RNN-T one with state space encoders on the same features, each with its sizes as
# ONNX files in float32 and int8, and the words that it writes where nobody speaks; in the end one table of both.
DEMO = ./run.sh --onnx "fp32 int8" --nonspeech_minutes 2
demo: venv
	cd egs/mini && $(DEMO) && $(DEMO) --stage 10 --asr_config conf/train_rnnt.yaml --report_with exp/train_todm_fbank_char
	cd egs/mini && $(CURDIR)/$(VENV)/bin/python -m espnet_todm.bin.overview exp/train_todm_fbank_char exp/train_rnnt_fbank_char --set test

# In as many processes as there are cores, up to four: each holds torch and ESPnet. A file's tests stay together, since they share
# what is trained once.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ "$$n" -lt 4 ] && echo "$$n" || echo 4)

test: venv
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-k2:
	@if [ -n "$(PYTHON39)" ]; then $(MAKE) --no-print-directory run-k2 PYTHON39="$(PYTHON39)"; else \
	  echo "test-k2: skipped, for k2 $$(sed -n s/k2==//p constraints-k2.txt) is built for Python 3.9, and there is no python3.9 on the" \
	    "PATH or among pyenv's versions"; fi

run-k2: $(STAMP_K2)
	$(VENV_K2)/bin/python -m pytest $(TESTS_K2)

# pip of that Python, since uv takes the k2 of another one; k2 is imported, since its tests are skipped where it cannot be.
$(STAMP_K2): setup.py pyproject.toml constraints-k2.txt
	@echo "test-k2: installing into $(VENV_K2), 4 GB"
	@[ -x $(VENV_K2)/bin/python ] || $(PYTHON39) -m venv $(VENV_K2)
	@$(VENV_K2)/bin/python -m pip install -qq -c constraints-k2.txt -e '.[k2,test]'
	@$(VENV_K2)/bin/python -c "import k2" && touch $@

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The reference of all modules. pdoc cannot resolve the types of some fields, and writes them as they stand.
docs: venv
	@$(VENV)/bin/python -c "import pdoc" 2>/dev/null || { \
	  $(FIND_UV); "$$uv" pip install -q --compile-bytecode --python $(VENV)/bin/python -c constraints.txt -e '.[docs]'; }
	@$(VENV)/bin/python -W ignore -m pdoc --docformat google -o docs/api espnet_todm
	@echo "docs/api/index.html"

clean:
	rm -rf $(VENV) $(VENV_K2) .uv build ./*.egg-info
