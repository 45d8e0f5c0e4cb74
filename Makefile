# Everything a person types: `make help`.
#
# PYTHON=python3.12   the interpreter of .venv; default: the first that is at least 3.11
# TORCH=cpu|cuda      which PyTorch; default: cpu where there is no nvidia-smi
# BROKER=redis://…  DATABASE=postgresql+psycopg://…  MODEL=…  PHOTOS=folder   what `make demo` uses
# ARGS="-k name"      further arguments of pytest

PYTHON ?=
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
BROKER ?=
DATABASE ?=
MODEL ?=
PHOTOS ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-$(TORCH)
DEVELOPMENT := $(VENV)/.installed-$(TORCH)-dev
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

ifeq ($(filter cpu cuda,$(TORCH)),)
$(error TORCH must be cpu or cuda, not "$(TORCH)")
endif

DEMO_OPTIONS = $(if $(BROKER),--broker '$(BROKER)') $(if $(DATABASE),--database '$(DATABASE)') \
	$(if $(MODEL),--model '$(MODEL)') $(if $(PHOTOS),--photos '$(PHOTOS)')

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults lint types bench up clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s  %s\n", $$1, $$2 }' Makefile
	@awk '/^# [A-Z]+=/ { sub("# ", "  "); print } /^$$/ { exit }' Makefile

demo: $(RUNTIME) ## Caption drawn scenes (or PHOTOS=folder) through a queue into a database
	@$(BIN)/captioner demo $(DEMO_OPTIONS)

# Two at a time, for much of it is waiting; then one thread each, or they would wait for each other.
PYTEST_BUT_FAULTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore tests/faults -n 2 --dist worksteal

test: $(DEVELOPMENT) ## All tests but faults and long ones; starts the servers it needs by itself
	@$(PYTEST_BUT_FAULTS) -m 'not long' $(ARGS)

# They wait for most of their time. -rP shows the ledgers. ARGS may choose from either half alone.
NONE_IS_FINE = $(if $(ARGS),|| test $$? -eq 5)

test-faults: $(DEVELOPMENT) ## Kill, freeze and cut what there is, and count the jobs; then the long tests
	@$(BIN)/python -m pytest tests/faults -n 3 -rP $(ARGS) $(NONE_IS_FINE)
	@$(PYTEST_BUT_FAULTS) -m long $(ARGS) $(NONE_IS_FINE)

lint: $(DEVELOPMENT) ## Style, layers, Dockerfile
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/hadolint docker/Dockerfile

types: $(DEVELOPMENT) ## Static types
	@$(BIN)/mypy

bench: $(RUNTIME) ## Our BLIP beside transformers' (the demo model, or MODEL=…)
	@$(BIN)/captioner bench model --model '$(or $(MODEL),demo)' --batch 1,8 --beams 1,3

up: ## The whole service in containers; docker/README.md says which variables it needs
	@docker compose version >/dev/null 2>&1 || \
		{ echo 'make up needs Docker with its compose plugin (docker compose).' >&2; exit 1; }
	@docker compose -f docker/compose.yaml $(if $(filter cuda,$(TORCH)),-f docker/compose.gpu.yaml) up --build

clean: ## Remove .venv and every cache
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .coverage
	@find worker plugins migrations tests docker -name __pycache__ -type d -prune -exec rm -rf {} +

# --- .venv ----------------------------------------------------------------------------------------

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
PINNED := -c constraints.txt --build-constraint constraints.txt

# pip with its last words, and the likely reason in one line, when it fails.
define pip
	@$(PIP) $(1) >$(VENV)/pip.log 2>&1 || { tail -n 15 $(VENV)/pip.log >&2; \
		if grep -qE 'Failed to establish|Max retries|[Cc]onnection|resolution|getaddrinfo|timed out' $(VENV)/pip.log; \
		then echo 'make: no package index can be reached: the first installation needs a network.' >&2; \
		else echo 'make: pip could not install; its last lines are above, all in $(VENV)/pip.log.' >&2; \
		fi; exit 1; }
endef

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'make: captioner needs Python 3.11 or later; $(or $(PYTHON),python3.13 python3.12 python3.11 python3): none here is. Name one with PYTHON=/path/to/python.' >&2; \
		exit 1; \
	fi; \
	version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
		echo "make: $$python has no venv module; on Debian and Ubuntu: apt install python$$version-venv" >&2; \
		exit 1; \
	fi; \
	echo "Creating $(VENV) with Python $$version"; \
	"$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUNTIME): $(BIN)/python pyproject.toml constraints.txt
	@echo 'Bringing pip up to date'
	$(call pip,install --retries 1 --timeout 15 -c constraints.txt pip)
	@# Either PyTorch satisfies the same pin, so the other one has to go.
	@if ls $(VENV)/.installed-* 2>/dev/null | grep -qv -- '-$(TORCH)'; then \
		echo 'Removing the other PyTorch'; \
		$(PIP) uninstall --yes torch; rm -f $(VENV)/.installed-*; fi
	@echo 'Installing captioner with PyTorch ($(TORCH)) and all extras; the first time takes minutes'
	@rm -f $(VENV)/index
ifeq ($(TORCH),cpu)
	@# Elsewhere plain torch is the CUDA build, 2.7 GB. Asked first: pip would retry for minutes.
	@if $(BIN)/python -c 'import urllib.request as r; r.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=5)' \
		>/dev/null 2>&1; \
	then echo '--extra-index-url=$(TORCH_CPU_INDEX)' >$(VENV)/index; \
	else echo "PyTorch's own index of CPU builds cannot be reached: taking torch from the usual index"; \
	fi
endif
	$(call pip,install $(PINNED) $$(cat $(VENV)/index 2>/dev/null) -e '.[all]')
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	@echo 'Installing what tests, linters and type checks need'
	$(call pip,install $(PINNED) --group dev)
	@touch $@
