# `make run` and `make test` set up everything they need in .venv/ beside this file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SBOM ?= sbom.cdx.json

.PHONY: run test test-all check format bench torture faults pictures lock sbom clean

run: $(VENV)/.run-ready
	@exec $(BIN)/python manage.py serve

# Whatever the environment says: compiling anew is a quarter of the start of each of hundreds of processes.
test test-all: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/.dev-ready
	$(BIN)/python -m pytest -n auto $(ARGS)

test-all: $(VENV)/.dev-ready
	$(BIN)/python -m pytest -n auto -m "slow or not slow" $(ARGS)

check: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check --fail-level WARNING

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev-ready
	$(BIN)/python -m benchmarks $(ARGS)

# Kills gateways under load: `make torture ENGINE=postgresql ROUNDS=100 SECONDS=600`.
ENGINE ?= sqlite
ROUNDS ?= 1000
torture: $(VENV)/.dev-ready
	@$(if $(filter postgresql,$(ENGINE)),.ci/postgresql) $(BIN)/python -m tests.faults.torture --engine $(ENGINE) \
	  --rounds $(ROUNDS) $(if $(SECONDS),--limit $(SECONDS)) $(ARGS)

# All that tries to break the promises, with one table (docs/reliability.md); takes an hour or two.
faults: $(VENV)/.dev-ready
	@$(BIN)/python -m tests.faults $(ARGS)

# Requests and upstream answers that nobody should send: `make fuzz SEED=7 CASES=10000 ENGINE=postgresql`.
CASES ?= 10000
fuzz: $(VENV)/.dev-ready
	@tests/clients/install --schemathesis
	@$(if $(filter postgresql,$(ENGINE)),.ci/postgresql) $(BIN)/python -m tests.fuzz --cases $(CASES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Of README and docs/admin.md; needs chromium.
pictures: $(VENV)/.dev-ready
	$(BIN)/python -m tests.browser.take_pictures

# Of requirements*.in, for all platforms; versions that stand are kept.
lock: $(VENV)/.dev-ready
	@for name in requirements requirements-dev; do \
	  $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-annotate --quiet --output-file $$name.txt $$name.in $(ARGS) || exit 1; \
	  { echo "# Made by \`make lock\` from $$name.in: every version and the hashes of its files."; \
	    cat $$name.txt; } >$$name.new && mv $$name.new $$name.txt || exit 1; done

# What is installed to run, as a CycloneDX document.
sbom: $(VENV)/.dev-ready
	$(BIN)/cyclonedx-py requirements requirements.txt --output-reproducible --of JSON -o $(SBOM)

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is not. Name another: make run PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "This Python cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.run-ready: requirements.txt | $(BIN)/python
	@echo "Installing requirements into $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev-ready: requirements-dev.txt $(VENV)/.run-ready
	@echo "Installing test requirements into $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
