# Every target sets up what it needs: a Python of 3.11 or newer and make are enough.
# `make` alone lists the targets.

VENV ?= .venv
DAYS ?=
DATA ?=
ARGS ?=
SECONDS ?= 900
KILLS ?= 32
SEED ?= 1
BROKERS ?= 1
ROWS ?=
FUZZ ?= 100000
REPEATS ?=

BIN := $(VENV)/bin
BENCH_VENV := build/bench-venv
PYTHON_OF_VENV := $(BIN)/python
INSTALLED := $(VENV)/.installed

# The home directory may be read-only (containers, CI): Numba's compiled code goes into the checkout. Its cache does not
# notice a change in a module that a compiled one imports, so that each state of the core has a cache of its own.
CORE := $(shell find pipeline/features pipeline/scoring pipeline/learning pipeline/decision pipeline/engine schemas \
  -name '*.py' | LC_ALL=C sort | xargs cat | cksum | cut -d ' ' -f 1)
export NUMBA_CACHE_DIR ?= $(CURDIR)/build/cache/numba/$(CORE)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start hundreds of processes: each would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup run-pipeline backtest broker worker test check lint types imports prepare pytest bounds evaluate quality chaos bench bench-docs run-docs docs format lock release clean

help: ## List the targets
	@echo "Usage: make TARGET [VARIABLE=value]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Variables: PYTHON (interpreter for the virtual environment), VENV (its directory, $(VENV)),"
	@echo "           DAYS and ARGS (run-pipeline), DATA and ARGS (evaluate),"
	@echo "           ARGS (backtest, broker, worker, pytest, bounds),"
	@echo "           SECONDS, KILLS, SEED, BROKERS (1 or 3), ROWS, DATA, FUZZ and ARGS (chaos), REPEATS and ARGS (bench)."

# --- The virtual environment -------------------------------------------------------------------------------------

setup: $(INSTALLED) ## Create the virtual environment and install the locked packages
	@:

# A virtual environment whose interpreter has gone (an upgraded system) is made anew.
ifeq ($(wildcard $(PYTHON_OF_VENV)),)
.PHONY: $(INSTALLED)
endif

$(INSTALLED): requirements-dev.lock pyproject.toml
	@found=; without_venv=; \
	for candidate in $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do \
	  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then found=$$candidate; break; fi; \
	  without_venv=$$candidate; \
	done; \
	if [ -z "$$found" ]; then \
	  if [ -n "$$without_venv" ]; then \
	    echo "$$without_venv lacks Python's venv module. Install it (Debian, Ubuntu: apt-get install python3-venv)." >&2; \
	  else \
	    echo "No Python of version 3.11 or newer was found (looked for: $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11})." >&2; \
	    echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),setup)" >&2; \
	  fi; \
	  exit 1; \
	fi; \
	if [ ! -w "$${HOME:-/nonexistent}" ]; then PIP_NO_CACHE_DIR=1; export PIP_NO_CACHE_DIR; fi; \
	echo "==> Installing the locked packages into $(VENV) (only when they have changed; about a minute)"; \
	if ! "$(PYTHON_OF_VENV)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  "$$found" -m venv --clear "$(VENV)" || exit 1; \
	fi; \
	"$(PYTHON_OF_VENV)" -m pip install --quiet --require-hashes --requirement requirements-dev.lock || exit 1; \
	"$(PYTHON_OF_VENV)" -m pip install --quiet --no-deps --no-build-isolation --editable . || exit 1; \
	touch "$@"

# --- Running -----------------------------------------------------------------------------------------------------

# Of a shell that waited for its program, Ctrl-C would be an error of make.

run-pipeline: $(INSTALLED) ## Run everything on simulated transactions (DAYS=n for n days of them)
	@exec "$(BIN)/fraud-pipeline" run $(if $(DAYS),--days $(DAYS)) $(ARGS)

backtest: $(INSTALLED) ## Compare two models on simulated history, from topics to a report (an example)
	@exec "$(BIN)/fraud-pipeline" backtest-example $(ARGS)

broker: $(INSTALLED) ## Run the embedded Kafka broker in the foreground
	@exec "$(BIN)/fraud-pipeline" broker $(ARGS)

worker: $(INSTALLED) ## Run the agents against KAFKA_BOOTSTRAP_SERVERS
	@exec "$(BIN)/fraud-pipeline" worker $(ARGS)

# --- Checking ----------------------------------------------------------------------------------------------------

# The static checks take one core; what the tests need is made by the other one meanwhile.
test: $(INSTALLED) ## Check everything: lint, types, import contract, tests
	@$(MAKE) --no-print-directory prepare & prepared=$$!; \
	  trap 'kill $$prepared 2>/dev/null' INT TERM; \
	  $(MAKE) --no-print-directory check; code=$$?; \
	  wait $$prepared || code=$$?; \
	  exit $$code
	@$(MAKE) --no-print-directory pytest PREPARED=yes

check: lint types imports ## The static part of `test`, in seconds

lint: $(INSTALLED) ## Check style and formatting
	@echo "==> Style"
	@"$(BIN)/ruff" check --quiet .
	@"$(BIN)/ruff" format --quiet --check . || { echo "Run 'make format' to reformat these files." >&2; exit 1; }

types: $(INSTALLED) ## Check types (mypy --strict)
	@echo "==> Types"
	@"$(BIN)/mypy" --strict

imports: $(INSTALLED) ## Check which package may import which
	@echo "==> Import contract"
	@"$(BIN)/lint-imports" --no-cache --no-logo

# What pip does not bring; .ci/run installs it.
TEST_TOOLS := chromium promtool prometheus
# Most tests with a broker wait, each for processes of its own: four at a time use a machine with two cores. Each has a
# directory of its own for temporary files: pytest's own are cleared by whichever ends.
SHARED_TESTS := "$(PYTHON_OF_VENV)" -m pytest -p tests.helpers.sharing --share build/tests/taken

# Made once, or each of the processes would make it, at the same time: compiled kernels, an archive of the classes of the
# broker's JVM, and the bytecode of the tests with their assertions.
prepare: $(INSTALLED) ## Compile once what all processes of `pytest` use
	@echo "==> Compiling kernels and tests (a minute, where they have changed)"
	@mkdir -p build/cache/numba; \
	  find build/cache/numba -mindepth 1 -maxdepth 1 ! -name '$(CORE)' -exec rm -rf {} +; \
	  "$(PYTHON_OF_VENV)" -m tests.helpers.kernels & kernels=$$!; \
	  "$(PYTHON_OF_VENV)" -m tests.helpers.classes; \
	  "$(PYTHON_OF_VENV)" -m pytest --collect-only --quiet -p no:cacheprovider >build/cache/collected.log 2>&1; code=$$?; \
	  [ $$code = 0 ] || cat build/cache/collected.log; \
	  wait $$kernels || code=$$?; \
	  exit $$code

pytest: $(INSTALLED) ## Run the tests only (ARGS="-k name" for some of them)
	@echo "==> Tests"
ifneq ($(ARGS),)
	@"$(PYTHON_OF_VENV)" -m pytest $(ARGS)
else
	@rm -rf build/tests && mkdir -p build/tests
	@for tool in $(TEST_TOOLS); do command -v $$tool >/dev/null || \
	  echo "    $$tool is not installed: tests that use it are skipped (Debian, Ubuntu: apt-get install chromium prometheus)."; done
	@$(if $(PREPARED),,$(MAKE) --no-print-directory prepare)
	@echo "    Four processes share them. The output of the first follows, that of the others at the end."
	@others=; for name in second third fourth; do \
	  case $$name in second) first=;; *) first=--broker-first;; esac; \
	  $(SHARED_TESTS) $$first --basetemp build/tests/$$name -p no:cacheprovider >build/tests/$$name.log 2>&1 & \
	  others="$$others $$!"; \
	done; \
	trap 'kill $$others 2>/dev/null' INT TERM; \
	$(SHARED_TESTS) --basetemp build/tests/first; code=$$?; \
	for other in $$others; do wait $$other || code=$$?; done; \
	for name in second third fourth; do echo "==> The $$name process"; cat build/tests/$$name.log; done; \
	exit $$code
endif

# Numba's cache does not tell code that checks from code that does not.
bounds: $(INSTALLED) ## Run the property tests with compiled code that checks every index (minutes)
	@NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR="$(CURDIR)/build/cache/numba-bounds/$(CORE)" \
	  "$(PYTHON_OF_VENV)" -m pytest $(or $(ARGS),tests/property)

evaluate: $(INSTALLED) ## Hold the whole pipeline to a file of real size (DATA=file with the Handbook's columns)
	@if [ -z "$(DATA)" ]; then \
	  echo "Name a file with the columns of the Fraud Detection Handbook: make evaluate DATA=/path/to/file.parquet" >&2; \
	  exit 1; \
	fi
	@"$(PYTHON_OF_VENV)" -m tests.evaluation.handbook "$(DATA)" $(ARGS)

quality: $(INSTALLED) ## Measure detection on the Handbook's transactions (DATA=file, ARGS=--final)
	@if [ -z "$(DATA)" ]; then \
	  echo "Name a file with the columns of the Fraud Detection Handbook: make quality DATA=/path/to/file.parquet" >&2; \
	  exit 1; \
	fi
	@FRAUD_PIPELINE_FEATURES_FILE="$${FRAUD_PIPELINE_FEATURES_FILE:-tests/evaluation/candidates.toml}" \
	  "$(PYTHON_OF_VENV)" -m tests.evaluation.quality "$(DATA)" $(ARGS)

# Root may mount the small file system that the snapshots fill; without it that one fault is left out.
chaos: $(INSTALLED) ## Kill and starve a running pipeline, then prove that nothing shows (SECONDS, KILLS, SEED, BROKERS)
	@echo "==> Decoders: $(FUZZ) inputs"
	@FUZZ_EXAMPLES=$(FUZZ) "$(PYTHON_OF_VENV)" -m pytest --quiet --timeout 1800 tests/contract/test_codec_fuzz.py
	@echo "==> Faults: $(SECONDS) s, $(KILLS) kills of workers, brokers: $(BROKERS)"
	@"$(PYTHON_OF_VENV)" -m tests.chaos --seconds $(SECONDS) --kills $(KILLS) --seed $(SEED) --brokers $(BROKERS) \
	  $(if $(ROWS),--rows $(ROWS)) $(if $(DATA),--data "$(DATA)") $(ARGS)

# Other engines have dependencies of their own, which must not become the project's.
$(BENCH_VENV)/.installed: requirements-bench.lock | $(INSTALLED)
	@echo "==> Installing the engines to compare with into $(BENCH_VENV) (only when they have changed)"
	@"$(PYTHON_OF_VENV)" -m venv --clear "$(BENCH_VENV)"
	@"$(BENCH_VENV)/bin/python" -m pip install --quiet --require-hashes --requirement requirements-bench.lock
	@touch "$@"

bench: $(INSTALLED) $(BENCH_VENV)/.installed ## Measure throughput beside other engines, latency and scale; check limits (REPEATS)
	@"$(PYTHON_OF_VENV)" -m tests.benchmarks $(if $(REPEATS),--set throughput.repeats=$(REPEATS)) $(ARGS)

bench-docs: $(INSTALLED) ## Put what `bench` measured into docs/benchmarks.md and its plots
	@"$(PYTHON_OF_VENV)" -m tests.benchmarks.docs $(ARGS)

run-docs: $(INSTALLED) ## Record `run-pipeline` and its console: the README's pictures and summary
	@"$(PYTHON_OF_VENV)" -m tests.helpers.recording
	@"$(PYTHON_OF_VENV)" -m tests.helpers.console_pictures

docs: $(INSTALLED) ## Write the generated tables into their pages and build the site (build/site), strictly
	@"$(PYTHON_OF_VENV)" -m tests.helpers.generated
	@"$(BIN)/sphinx-build" --quiet --fail-on-warning --keep-going -c docs -d build/doctrees . build/site
	@echo "    Open build/site/index.html"

# --- Maintaining -------------------------------------------------------------------------------------------------

format: $(INSTALLED) ## Reformat the code and fix what can be fixed
	@"$(BIN)/ruff" check --fix .
	@"$(BIN)/ruff" format .

# Versions and hashes only: an address in a lock would bind everyone to one package index.
LOCK_OPTIONS := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-annotate --no-header --quiet

lock: $(INSTALLED) ## Write the lock files anew (UPGRADE=1 to take the newest versions)
	@"$(PYTHON_OF_VENV)" -m pip install --quiet 'uv==0.13.9'
	@mkdir -p build
	@"$(PYTHON_OF_VENV)" -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" > build/build-requires.in
	@"$(BIN)/uv" pip compile pyproject.toml build/build-requires.in --extra console \
	  $(LOCK_OPTIONS) $(if $(UPGRADE),--upgrade) --output-file requirements.lock
	@"$(BIN)/uv" pip compile pyproject.toml build/build-requires.in --extra broker --extra console --group dev --constraint requirements.lock \
	  $(LOCK_OPTIONS) $(if $(UPGRADE),--upgrade) --output-file requirements-dev.lock
	@sed -n 's/^\(faust-streaming\|lightgbm\|msgspec\|numpy\|pandas\|river\)==[^\\]*/&/p' requirements.lock \
	  | tr -d '\\' > build/bench-constraints.txt
	@"$(BIN)/uv" pip compile --group bench --constraint build/bench-constraints.txt \
	  $(LOCK_OPTIONS) $(if $(UPGRADE),--upgrade) --output-file requirements-bench.lock

release: $(INSTALLED) ## Cut a release into dist: changelog, commit, tag, wheel, sdist, SBOM, image (VERSION=x.y.z)
	@"$(PYTHON_OF_VENV)" -m deploy.release $(VERSION)

clean: ## Remove the virtual environment and all caches (keeps .fraud-pipeline: models and topics)
	rm -rf "$(VENV)" build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find schemas pipeline agents tests -name __pycache__ -type d -prune -exec rm -rf {} +
