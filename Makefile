# Two commands do all the set-up: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Processes that share the tests.
JOBS ?= 2
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
# Native sources: a change rebuilds the extensions.
NATIVE = $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(VENV)/bin/diffast demo

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

lint: $(VENV)/.installed-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' | \
	  xargs $(VENV)/bin/clang-format --dry-run --Werror

bench: $(VENV)/.installed-test
	$(PIP) install --quiet "pytest-benchmark>=4"
	$(VENV)/bin/python -m pytest bench

# The build runs against the torch installed here: without isolation, with its tools beside it.
$(VENV)/.installed: $(NATIVE)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)" "setuptools>=77" wheel ninja
	$(PIP) install --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --no-build-isolation --editable ".[test]"
	$(PIP) install --no-deps "k-diffusion==0.1.1.post1"
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(PIP) install "ruff==0.17.5" "clang-format==23.1.5"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info diffast/*.so .pytest_cache .ruff_cache
