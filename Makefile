# `make demo` and `make test` are all a newcomer needs: each makes the environment when it is not there.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin

.PHONY: install demo test lint format clean
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --upgrade pip
	$(RUN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: install     ## teach a small net with a larger one on real handwritten digits, three seeds, and show the table
	$(RUN)/python -m benchmarks.demo

test: install     ## everything that can be checked without a GPU
	$(RUN)/python -m pytest --numprocesses 2

lint: install     ## style and types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: install
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache
