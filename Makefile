# Two commands for a newcomer: `make run`, `make test`. Everything lives in .venv.
PYTHON ?= python3
BIN := .venv/bin
# --no-compile: Python compiles what is imported then, in half the time that all of it takes.
# A stamp is newer than what it was installed from, or the install runs again.
RUNTIME := .venv/.runtime
DEV := .venv/.dev
DOCS := .venv/.docs
RAY := .venv/.ray
GYMNAX := .venv/.gymnax
PYTEST := $(BIN)/python -m pytest
# What Python has compiled is kept, whatever the environment says: else each program compiles all of
# JAX anew before it starts, the tests' many too.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.DEFAULT_GOAL := help
.PHONY: help setup format check test test-all test-versions coverage soak run bench parity build docs

help:  ## This list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Kullback needs Python >= 3.11, got $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv

$(RUNTIME): setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e .
	touch $@

# The link lets basedpyright follow `kullback.*`: it cannot read the editable install's import hook.
$(DEV): $(RUNTIME)
	$(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	mkdir -p .cache/links
	ln -sfn ../.. .cache/links/kullback
	touch $@

$(DOCS): $(RUNTIME)
	$(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# Tests of sweeps over several machines skip without it.
$(RAY): $(RUNTIME)
	$(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[ray]'
	touch $@

# Tests of gymnax's own environments skip without it.
$(GYMNAX): $(RUNTIME)
	$(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e '.[gymnax]'
	touch $@

setup: $(DEV)  ## Makes .venv with everything that development needs.

format: $(DEV)  ## Formats, and mends what the linter can.
	$(BIN)/ruff check --quiet --fix || true
	$(BIN)/ruff format

check: $(DEV)  ## Lint, format and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

# Most of the time of fast tests is XLA's compilation, which takes far less without most of its
# optimisations, by its older way of writing fused loops, and of each program in one piece, as the
# cores have tests enough; test-all compiles as users do.
SOON := JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
    XLA_FLAGS='--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'

# worksteal: a worker does neighbours, which share fixtures and programs, and then what others have.
test: check  ## `check` and the fast tests.
	$(SOON) $(PYTEST) -n 2 --dist worksteal -m "not slow" --durations=10

test-all: check $(RAY) $(GYMNAX)  ## `check` and every test, slow ones too, on new random examples: hours.
	KULLBACK_TEST_EXAMPLES=random $(PYTEST) -n 2 --dist worksteal --durations=10

# Not those of constraints.txt: what setup.cfg allows, and of JAX what there is.
NEWEST := .versions/bin/pip install -qq --no-compile --disable-pip-version-check --upgrade

test-versions:  ## The fast tests on PYTHON= and the newest JAX, in .versions.
	$(PYTHON) -m venv .versions
	$(NEWEST) --upgrade-strategy eager -e '.[dev]'
	$(NEWEST) jax jaxlib
	.versions/bin/python -c 'import platform, jax; print("Python", platform.python_version(), "JAX", jax.__version__)'
	.versions/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

coverage: $(DEV)  ## Lines and branches that the fast tests run, .cache/coverage/html/index.html.
	mkdir -p .cache/coverage
	$(SOON) $(PYTEST) -n 2 --dist worksteal -m "not slow" --cov --cov-report=html --cov-report=term

# A piece of it; the next goes on where it ended, and all pieces of a seed are one table.
MINUTES ?= 10
SEED ?= 0

soak: $(DEV)  ## Kills, damages and misuses every command for MINUTES=10, with SEED=0.
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED)

run: $(RUNTIME)  ## Trains M-DQN on MinAtar's Breakout and films it: a few minutes.
	@$(BIN)/kullback train m-dqn minatar/breakout --steps 300000 --out $(DEMO)
	@$(BIN)/kullback evaluate $(DEMO) --episodes 20 --video $(DEMO)/videos/breakout.gif

# Names of benchmarks, and options: BENCH='published --out FILE --resume'; BENCH=--list has all.
BENCH ?=

bench: $(DEV)  ## Ours, the peer's and the ratio; BENCH=NAME is one of them.
	$(BIN)/python -m kullback.experiments.benchmarks $(BENCH)

PARITY := .parity/bin/python

parity: $(DEV)  ## What other libraries compute, written anew by them and compared.
	$(PYTHON) -m venv .parity
	.parity/bin/pip install -qq --disable-pip-version-check -r tests/parity/requirements.txt
	$(PARITY) tests/parity/write_fixtures.py tests/lm/fixtures
	$(PARITY) tests/parity/write_bert.py tests/lm/fixtures
	$(PARITY) tests/parity/write_pictures.py tests/lm/fixtures
	$(PARITY) tests/parity/write_vision.py tests/lm/fixtures
	$(PARITY) tests/parity/write_layouts.py tests/lm/fixtures
	$(PARITY) tests/parity/write_audio.py tests/lm/fixtures
	$(PARITY) tests/parity/peft_adapters.py write tests/lm/fixtures
	TRL_EXPERIMENTAL_SILENCE=1 $(PARITY) tests/parity/trl_gkd.py tests/lm/fixtures
	$(PARITY) tests/parity/entmax_reference.py tests/core/fixtures
	$(PYTEST) tests/lm/formats tests/lm/entailment tests/lm/distillation_test.py \
	    tests/lm/pictures_test.py tests/lm/interleaved_test.py tests/lm/audio_test.py \
	    tests/core/regularizers_parity_test.py
	rm -rf .cache/parity
	$(BIN)/python tests/parity/write_ours.py .cache/parity
	$(PARITY) tests/parity/load_ours.py .cache/parity
	rm -rf .cache/parity_adapters
	$(BIN)/python tests/parity/write_adapters.py .cache/parity_adapters
	$(PARITY) tests/parity/peft_adapters.py load .cache/parity_adapters
	rm -rf .cache/parity_gguf
	PYTHONPATH=. $(BIN)/python tests/parity/write_gguf.py .cache/parity_gguf
	$(PARITY) tests/parity/run_gguf.py .cache/parity_gguf

build: $(DEV)  ## A wheel in dist/.
	$(BIN)/python -m build --wheel

# Docstrings are read, not imported, through links by which `kullback` is a package.
SOURCE := .cache/docs/source/kullback

docs: $(DOCS)  ## The documents as pages, .cache/docs/site/index.html.
	rm -rf $(SOURCE)
	mkdir -p $(SOURCE)
	for room in */py.typed; do ln -s "$$PWD/$${room%/*}" $(SOURCE); done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
