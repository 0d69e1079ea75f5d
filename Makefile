# Two commands do all the set-up: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Processes that share the tests.
JOBS ?= 2
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
PYTEST = $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal
# Native sources: a change rebuilds the extensions.
NATIVE = $(shell find csrc -type f) setup.py pyproject.toml
# The packages of an extra of pyproject.toml, without building the package again.
EXTRA = import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
  print(*project["optional-dependencies"][sys.argv[1]], sep="\n")

.PHONY: demo test slow lint bench gpu-check asan clean

demo: $(VENV)/.installed-pictures
	$(VENV)/bin/diffast demo

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow"

# What `make test` leaves out.
slow: $(VENV)/.installed-test
	$(PYTEST) -m slow

lint: $(VENV)/.installed-test $(VENV)/.installed-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' | \
	  xargs $(VENV)/bin/clang-format --dry-run --Werror
	$(VENV)/bin/lint-imports --no-cache --no-logo
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

bench: $(VENV)/.installed-test $(VENV)/.installed-bench
	$(VENV)/bin/python -m pytest bench

# Everything that needs a GPU, in less than eight minutes, with the Python and the torch that are
# installed there: no virtual environment, no network. make gpu-check CHECK="--only bench"
gpu-check:
	$(PYTHON) bench/gpu_check.py $(CHECK)

# Attacks the ops' CPU kernels, which are built with sanitizers in a folder of their own.
# make asan CALLS=20000 REPORT=report.json
CALLS ?= 5000
FIRST ?= 0
REPORT ?= build/asan/report.json
SANITIZERS = LD_PRELOAD="$(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

asan:
	DIFFAST_SANITIZE=1 DIFFAST_CUDA=0 $(VENV)/bin/python setup.py -q build_py --build-lib build/asan \
	  build_ext --build-lib build/asan --build-temp build/asan-temp
	$(SANITIZERS) $(VENV)/bin/python bench/attack/ops.py --package build/asan --name sanitized \
	  --calls $(CALLS) --first $(FIRST) --report $(REPORT)

# The build runs against the torch installed here: without isolation, with its tools beside it.
$(VENV)/.installed: $(NATIVE)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)" "setuptools>=77" wheel ninja
	$(PIP) install --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(VENV)/bin/python -c '$(EXTRA)' $* > $(VENV)/$*.txt
	$(PIP) install --requirement $(VENV)/$*.txt
	if [ $* = test ]; then $(PIP) install --no-deps "k-diffusion==0.1.1.post1"; fi
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info diffast/*.so .pytest_cache .ruff_cache
