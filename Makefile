# Two commands do it all: `make test` and `make reproduce`. Each sets up .venv first if need be.
PYTHON  ?= python3
PROFILE ?= demo
RESULTS ?= results/$(PROFILE)
UV      ?= uv
WORKERS ?= 2
ARGS    ?=

VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
LINTED := ckasr theory tests benchmarks examples notebooks

.DEFAULT_GOAL := help
.PHONY: help environment test test-slow reproduce figures theory benchmarks lab lint lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PROFILE=demo          what reproduce runs: a workflow/*.toml; RESULTS=folder  where it goes"
	@echo "  PYTHON=python3.12     the interpreter of a new .venv (3.11 to 3.13); ARGS='-k cka'  for the tool run"
	@echo "  WORKERS=2             processes that run the tests side by side"

environment: $(READY) ## .venv with exactly what requirements.lock names, and ckasr itself

# The lock is installed whole and hash-checked; ckasr comes last, without its dependencies, because
# pip cannot hash a folder. A .venv whose pip runs is kept, so a changed lock costs only the changes.
$(READY): requirements.lock pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  command -v "$(PYTHON)" >/dev/null || { \
	    echo "make: no $(PYTHON) found; name a Python 3.11 to 3.13: make PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	  "$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "make: $(PYTHON) is Python %d.%d; ckasr needs 3.11 to 3.13: make PYTHON=python3.12" % v)' && \
	  "$(PYTHON)" -m venv --clear $(VENV); }
	@echo "Installing requirements.lock into $(VENV) (about 5 GB, some minutes the first time) ..."
	@$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: $(READY) ## the tests; those on real CIFAR need CKASR_DATA, else they skip
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(READY) ## the tests that take minutes
	$(PY) -m pytest -m slow $(ARGS)

reproduce: $(READY) ## run the notebooks of PROFILE: records, figures and tables under RESULTS
	$(PY) -m ckasr reproduce --profile $(PROFILE) --results $(RESULTS) $(ARGS)

figures: $(READY) ## every figure and table again from the committed records, no training
	$(PY) -m ckasr figures $(ARGS)
	$(PY) -m theory trained_networks
	$(PY) -m theory.report
	$(PY) -m theory.readme
	$(PY) -m benchmarks.figures

theory: $(READY) ## check the claims of the theory, one verdict a line; ARGS=--fast: small sizes
	$(PY) -m theory $(ARGS)
	$(PY) -m theory.readme

benchmarks: $(READY) ## times beside a plain implementation of the same
	$(PY) -m benchmarks $(ARGS)

lab: $(READY) ## the notebooks in JupyterLab
	CKASR_DATA="$${CKASR_DATA:-$(CURDIR)/data}" $(PY) -m jupyterlab notebooks $(ARGS)

lint: $(READY) ## ruff (style and format) and mypy (types); nothing is changed
	$(PY) -m ruff check $(LINTED)
	$(PY) -m ruff format --check $(LINTED)
	$(PY) -m mypy

lock: ## resolve pyproject.toml into requirements.lock again (needs uv; keeps what still fits)
	@command -v "$(UV)" >/dev/null || { echo "make: lock needs uv: pip install uv, or make lock UV=/path/to/uv" >&2; exit 1; }
	"$(UV)" pip compile pyproject.toml --all-extras --universal --generate-hashes --python-version 3.11 \
	  --no-header --no-emit-index-url --quiet -o requirements.lock

clean: ## remove .venv and every cache; results stay
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache .hypothesis .snakemake *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
