# Plain venv and pip. `make demo` and `make test` need nothing but Python 3.11 and make.
#
#   make test PYTHON=python3.12      another interpreter
#   make test VENV=/tmp/env          another environment
#   make test ARGS="-k tiers -x"     arguments for pytest
#   make test JOBS=0                 all tests in one process

PYTHON ?= python3
VENV ?= .venv
# From make's own command line only: the environment must not choose which tests run.
ARGS :=
# Processes that tests run in; a file's tests stay in one, with what they share. The longest files come first.
JOBS ?= 2
# The one version that a fresh resolve keeps; see the head of constraints.txt.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)

BIN := $(VENV)/bin
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
DOCS := .venv-docs
LOCK_VENV := .venv-constraints
LOCK := $(LOCK_VENV)/bin/uv pip compile --quiet --constraints constraints.txt --generate-hashes --universal \
	--python-version 3.11 --no-annotate --custom-compile-command 'make lock'

# An activated environment or a search path of another project must not leak into ours.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME
unexport PYTEST_ADDOPTS PYTEST_PLUGINS PYTEST_DISABLE_PLUGIN_AUTOLOAD

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo web test check fix bench docs mutants constraints lock clean

supported = $(shell command -v '$(PYTHON)' >/dev/null && \
	$(PYTHON) -c 'import sys; print(int(sys.version_info >= (3, 11)))' 2>/dev/null)
found = $(shell command -v '$(PYTHON)' >/dev/null && $(PYTHON) --version 2>&1 || echo not found)
require_python = $(if $(filter 1,$(supported)),,$(error dimec needs Python 3.11 or newer, but \
"$(PYTHON)" says "$(found)": name another with `make PYTHON=python3.11 ...`))

# The build backend is installed from the constraints too, so that a build uses no version they do not name.
define install
	@: $(require_python)
	@echo "== installing dimec[$(1)] into $(VENV)"
	$(PYTHON) -m venv "$(VENV)"
	"$(BIN)/python" -m pip install -c constraints.txt hatchling editables
	"$(BIN)/python" -m pip install -c constraints.txt --no-build-isolation -e '.[$(1)]'
endef

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# With Node.js the demonstration has its page too; without, or without a network, it does without.
demo: $(DEMO) ## Fit, export and classify over three real tiers, on built-in data, without a hub (installs first)
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory web || echo "== no page: it was not built"; fi
	"$(BIN)/dimec" demo

web: web/dist/index.html ## Build the page that is the mobile tier into web/dist (needs Node.js 20.19 or newer)

test: $(DEV) ## Run the tests; DIMEC_DATA=FOLDER adds those on real data
	"$(BIN)/python" -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(DEV) ## Format, lint, types and direction of imports
	"$(BIN)/ruff" format --check .
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

fix: $(DEV) ## Format, and correct what ruff can
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

bench: $(DEV) ## Run every benchmark; DIMEC_DATA=FOLDER for those on real data
	@set -e; for script in benchmarks/bench_*.py; do \
		[ -e "$$script" ] || { echo "no benchmarks yet"; break; }; \
		echo "== $$script"; "$(BIN)/python" "$$script"; \
	done

docs: $(DOCS)/.installed ## Build the site of docs/ into build/site; a link that leads nowhere fails
	"$(DOCS)/bin/zensical" build --clean --strict
	"$(DOCS)/bin/python" .ci/offline_search.py

mutants: $(DEV) ## Try faults that the tests should notice; MODULE=policies/pools for one module
	nice -n 10 "$(BIN)/python" .ci/mutants.py "$(or $(MODULE),all)" $(if $(ONLY),'$(ONLY)')

# pip takes longer than ten minutes to resolve all of it. What belongs to torch on a GPU is left to torch.
constraints: ## Resolve every version afresh into constraints.txt; TORCH=x.y.z changes torch
	@: $(require_python)
	rm -rf $(LOCK_VENV)
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install uv
	sed '/^#/!d' constraints.txt > $(LOCK_VENV)/constraints.txt
	printf '%s\n' 'torch==$(TORCH)' hatchling editables > $(LOCK_VENV)/besides.in
	$(LOCK_VENV)/bin/uv pip compile --quiet --no-annotate --no-header --python-version 3.11 --group docs \
		--extra train --extra offline --extra report --extra dev pyproject.toml $(LOCK_VENV)/besides.in \
		-o $(LOCK_VENV)/all.txt
	sed -E '/^(nvidia|cuda|triton==)/d' $(LOCK_VENV)/all.txt >> $(LOCK_VENV)/constraints.txt
	mv $(LOCK_VENV)/constraints.txt constraints.txt
	rm -rf $(LOCK_VENV)
	$(MAKE) lock

lock: ## Write the hashes of what deploy/ installs, in the versions of constraints.txt, for every system
	@: $(require_python)
	rm -rf $(LOCK_VENV)
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install uv
	$(LOCK) -o deploy/requirements.lock pyproject.toml
	echo hatchling | $(LOCK) -o deploy/build.lock -
	rm -rf $(LOCK_VENV)

clean: ## Remove environments, caches and built files
	rm -rf .venv .venv-* build dist src/*.egg-info .coverage web/dist web/dist-device web/node_modules
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Rebuilt only when what they are made from has changed.
web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	@command -v npm >/dev/null || { echo "the page needs Node.js 20.19 or newer, with npm: install it" >&2; exit 1; }
	cd web && npm ci --no-audit --no-fund
	@touch $@

web/dist/index.html: web/node_modules/.package-lock.json web/vite.config.ts web/index.html \
		$(shell find web/src web/public -type f)
	cd web && npm run build

$(DEMO): pyproject.toml constraints.txt
	$(call install,train$(,)offline)
	@touch $@

$(DEV): pyproject.toml constraints.txt
	$(call install,train$(,)offline$(,)report$(,)dev)
	@touch $(DEMO) $@

# pip 25.1 is the first that knows groups.
$(DOCS)/.installed: pyproject.toml constraints.txt
	@: $(require_python)
	$(PYTHON) -m venv "$(DOCS)"
	"$(DOCS)/bin/python" -m pip install 'pip>=25.1'
	"$(DOCS)/bin/python" -m pip install -c constraints.txt --group docs
	@touch $@

, := ,
