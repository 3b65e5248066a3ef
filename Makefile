# `make demo` audits the packaged facts with the packaged model; `make test` runs every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow lint fuzz bench-audit bench-tune agreement clean

demo: $(VENV)/.installed
	$(BIN)/foreknow audit facts --limit 520 --out runs/demo

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-audit: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/audit.py

bench-tune: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/tune.py

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet atheris
	$(BIN)/python benchmarks/fuzz.py --inputs 100000

agreement: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/agreement.py --model smollm2-135m --dtype float32 --out runs/agreement.json

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[facts]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[facts,dev]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
