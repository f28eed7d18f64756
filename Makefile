# `make` alone lists the targets. Each target sets up .venv first; python3 is all it needs.
# Works with GNU make 3.81, the one on macOS.

VENV := .venv
BIN := $(VENV)/bin
# `make setup CUDA=1`: MLX for an NVIDIA GPU. Later targets keep what the environment was made for;
# `make setup CUDA=` goes back. The two builds of MLX bring the same files, so the environment is made anew.
CUDA ?= $(if $(wildcard $(VENV)/.dynquant-setup-cuda),1)
RUN_PART := $(if $(CUDA),cuda,run)
# Written last, so that an interrupted setup runs again. The second is of what only developers need.
STAMP := $(VENV)/.dynquant-setup$(if $(CUDA),-cuda)
DEV_STAMP := $(VENV)/.dynquant-setup-dev
NUM_TEST_WORKERS ?= 2
PYTEST_ARGS ?=
# `make test COVERAGE=1` measures branch coverage, as CI does; it takes half as long again.
COVERAGE ?=
HUB_PORT ?= 8811
# `make serve HUB=local` or HUB=huggingface; without it, as this machine has a token or not.
HUB ?=
MINUTES ?= 30
MODELS := ../shared/models/tiny-qwen3,../shared/models/tiny-qwen3-moe
# What mypy checks, as far as it is there: it refuses a folder without Python files.
TYPED = $(strip dynquant $(foreach d,tests local_hub benchmarks examples scripts,$(if $(wildcard $(d)/*.py $(d)/*/*.py),$(d))) $(wildcard app.py))
COMMON_EXTRAS := --extra vlm --extra web --extra local
RUN_EXTRAS := --extra mlx $(COMMON_EXTRAS)
# The oldest Python we support decides what is locked.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --no-emit-index-url --upgrade

# Containers often forbid Python to keep what it has compiled. Every process that starts here would
# compile MLX's and the Hub's libraries anew: two and a half times as long a start.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev cpu-only demo hub serve screenshots test test-fast families chaos harden soak sbom lint format bench bench-full bench-real lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make .venv with dynquant and its locked packages; CUDA=1 for an NVIDIA GPU
	@echo "$(VENV) is ready"

setup-dev: $(DEV_STAMP) ## that, and the locked packages that tests and lint need
	@echo "$(VENV) is ready for development"

$(STAMP): pyproject.toml requirements/$(RUN_PART).lock requirements/installer.lock \
		scripts/setup_venv.sh scripts/install_locked.py scripts/openblas_for_mlx.py
	@rm -f $@
	@sh scripts/setup_venv.sh $(VENV) $(RUN_PART)
	@# Python compiles modules at their first import: here, and not in the first command.
	@$(BIN)/python -c "import dynquant.cli.app, dynquant.runner.worker, mlx_vlm.generate" 2>/dev/null || true
	@touch $@
	@$(BIN)/python scripts/blas_hint.py

$(DEV_STAMP): $(if $(CUDA),cpu-only) $(STAMP) requirements/dev.lock
	@rm -f $@
	@sh scripts/setup_venv.sh $(VENV) dev
	@touch $@

cpu-only:
	@echo "requirements/dev.lock has MLX for the CPU: run 'make VENV=.venv-cpu $(MAKECMDGOALS)'." >&2; exit 1

demo: $(STAMP) ## from a model to published quants and back, without network or account
	@$(BIN)/python scripts/blas_hint.py
	@$(BIN)/python examples/demo.py

hub: $(STAMP) ## the local Hub that 'make demo' published to, to look at in a browser
	@$(BIN)/python -m local_hub --folder out/demo/hub --port $(HUB_PORT)

serve: $(STAMP) ## the web pages at http://127.0.0.1:7860, with a runner beside them
	@$(BIN)/python -m scripts.serve $(HUB)

screenshots: $(DEV_STAMP) ## a picture of every page into out/screenshots (needs Chromium)
	@$(BIN)/python -m scripts.screenshots

test: $(DEV_STAMP) ## all tests; COVERAGE=1 measures branch coverage too
	@$(BIN)/python -m pytest -n $(NUM_TEST_WORKERS) $(if $(COVERAGE),--cov --cov-report=term) $(PYTEST_ARGS)
ifneq ($(COVERAGE),)
	@echo "coverage of the pure modules alone:"
	@$(BIN)/coverage report --include="$$($(BIN)/python -m scripts.pure_modules)" --fail-under=97
endif

# Leaves out what converts a model, starts runners or browsers, or attacks.
SLOW_TESTS := cli faults hostile jobs quant/mlx runner secrets service watch web \
	test_bad_input.py test_before_work.py test_demo.py test_determinism.py test_mishaps.py test_setup.py test_soak.py

test-fast: $(DEV_STAMP) ## the tests that convert nothing, in about two minutes, without coverage
	@$(BIN)/python -m pytest -n $(NUM_TEST_WORKERS) -q $(foreach t,$(SLOW_TESTS),--ignore=tests/$(t)) $(PYTEST_ARGS)

families: $(DEV_STAMP) ## every family of models with every step of the method
	@DYNQUANT_FAMILIES=1 $(BIN)/python -m pytest -n $(NUM_TEST_WORKERS) \
		tests/quant/mlx/test_families.py tests/quant/mlx/runtimes/test_vlm_families.py

chaos: $(DEV_STAMP) ## runners killed, frozen and cut off at every moment, for real (half an hour)
	@DYNQUANT_CHAOS=1 $(BIN)/python -m pytest -o faulthandler_timeout=3600 \
		tests/jobs/test_chaos.py tests/service

harden: $(DEV_STAMP) ## every attack and mishap that we know of, and a table of how each ended (long)
	@DYNQUANT_HARDEN=1 $(BIN)/python -m pytest -o faulthandler_timeout=3600 -m harden \
		-n $(NUM_TEST_WORKERS) $(PYTEST_ARGS)

soak: $(DEV_STAMP) ## watcher, runner and pages under load for MINUTES; fails when something grows
	@$(BIN)/python -m tests.soak --minutes $(MINUTES)

lint: $(DEV_STAMP) ## format, lint, types, imports and the words of prose; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m scripts.words
	$(BIN)/python -m scripts.supply_chain licenses
	$(BIN)/python -m scripts.supply_chain audit

sbom: $(STAMP) ## dist/sbom.cdx.json, what a release is made of (CycloneDX)
	@$(BIN)/python -m scripts.supply_chain sbom dist/sbom.cdx.json

format: $(DEV_STAMP) ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP) ## dynquant beside its peers, short form (ten minutes on two cores)
	@$(BIN)/python scripts/blas_hint.py
	$(BIN)/python benchmarks/allocation.py
	$(BIN)/python -m benchmarks.measuring --rounds 1
	$(BIN)/python -m benchmarks.quality

bench-full: $(DEV_STAMP) ## all peers, sizes, models; goes on where it was cut off (hours on two cores)
	$(BIN)/python -m benchmarks.quality --full --keep .bench-full
	$(BIN)/python -m benchmarks.measuring --models $(MODELS)
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.reading
	$(BIN)/python -m benchmarks.larger_than_memory

bench-real: $(DEV_STAMP) ## a real chat model beside its peers; resumes (hours on two cores)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python gguf==0.19.0
	$(BIN)/python -m benchmarks.real

lock: $(DEV_STAMP) ## resolve the newest allowed versions into requirements
	$(LOCK) $(RUN_EXTRAS) --extra dev pyproject.toml --output-file requirements/dev.lock
	$(LOCK) $(RUN_EXTRAS) pyproject.toml --constraint requirements/dev.lock --output-file requirements/run.lock
	$(LOCK) --extra cuda $(COMMON_EXTRAS) pyproject.toml --constraint requirements/run.lock \
		--output-file requirements/cuda.lock
	echo uv | $(LOCK) --no-deps - --output-file requirements/installer.lock
	$(LOCK) --extra mlx --extra web pyproject.toml --constraint requirements/run.lock --output-file requirements.txt

clean: ## remove .venv, caches and build output
	rm -rf $(VENV) .bench-full .bench-real .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache .ruff_cache build dist htmlcov *.egg-info
	find dynquant tests local_hub benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
