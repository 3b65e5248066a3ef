# `make demo` takes the packaged facts and the packaged model from audit to report; `make test` runs every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-avx2 test-slow test-faults test-integrations soak test-hypothesis lint docs fuzz bench-audit bench-host bench-tune agreement sbom licences advisories clean

# Says first how long it will take on this machine, and at the end how long it took.
demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py --install-seconds "$$(cat $(VENV)/.installed)"

# A process a core, four at most; a file's tests stay together, as they share what is slow to make.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -q -m "not slow and not faults" $(PARALLEL)

# The tests as on a processor that has AVX2 and no more: what torch multiplies matrices with is kept from the rest.
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2

test-avx2: $(VENV)/.installed-dev
	$(AVX2) $(BIN)/python -m pytest -q -m "not slow and not faults" $(PARALLEL)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow

test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m faults tests/faults

# With the trackers and EleutherAI's harness, in an environment of its own, as they bring some 150 packages.
test-integrations: .venv-integrations/.installed-all
	.venv-integrations/bin/python -m pytest -q tests/test_trackers.py tests/test_export.py

soak: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/soak.py --minutes 60

test-hypothesis: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not slow and not faults" --hypothesis-profile explore

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the site: site/index.html"

bench-audit: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/audit.py

bench-host: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/host.py --rows 64 --rounds 3

bench-tune: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/tune.py

fuzz: $(VENV)/.installed-dev
	$(PIP) atheris
	$(BIN)/python benchmarks/fuzz.py --inputs 100000

agreement: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/agreement.py --model smollm2-135m --dtype float32 --out runs/agreement.json

# Three tools of the ecosystem, each in an environment of its own (docs/supply-chain.md).
licences: $(VENV)/.installed-dev .venv-pip-licenses/.installed
	$(PIP) --editable '.[facts,dev,gcs]'
	mkdir -p runs
	.venv-pip-licenses/bin/pip-licenses --python $(BIN)/python --format markdown --output-file runs/licences.md

sbom: $(VENV)/.installed .venv-cyclonedx-bom/.installed
	mkdir -p runs
	.venv-cyclonedx-bom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file runs/sbom.cdx.json $(VENV)

advisories: .venv-pip-audit/.installed
	.venv-pip-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	began=$$(date +%s); test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(PIP) --no-compile --editable '.[facts]' && echo $$(( $$(date +%s) - began )) > $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[facts,dev]'
	test -s $(VENV)/.installed || echo 0 > $(VENV)/.installed
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@

.venv-%/.installed: constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt $*
	touch $@

.venv-integrations/.installed-all: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[facts,dev,harness,trackers]'
	touch $@

clean:
	rm -rf $(VENV) .venv-* runs site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
