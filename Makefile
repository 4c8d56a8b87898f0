# `make demo` and `make test` are all a newcomer needs: each makes the environment when it is not there.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin
TOOLS  := $(VENV)-tools

.PHONY: install demo test test-oldest test-newest lint format wheel audit clean
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --upgrade pip
	$(RUN)/pip install --quiet --editable '.[dev]'
	touch $@

$(TOOLS)/.installed: pyproject.toml
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --upgrade pip
	$(TOOLS)/bin/pip install --quiet --group tools
	touch $@

demo: install     ## teach a small net with a larger one on real handwritten digits, three seeds, and show the table
	$(RUN)/python -m benchmarks.demo

test: install     ## everything that can be checked without a GPU
	$(RUN)/python -m pytest --numprocesses 2

# The same in environments of their own: every dependency at its lower bound, and at its newest version.
# Old libraries find words of newer ones deprecated; kdkit's own are looked for in the newest.
test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest --numprocesses 2 -W ignore::DeprecationWarning

test-newest: $(VENV)-newest/.installed
	$(VENV)-newest/bin/python -m pytest --numprocesses 2

$(VENV)-oldest/.installed: HOW := lowest-direct
$(VENV)-newest/.installed: HOW := highest
$(VENV)-oldest/.installed $(VENV)-newest/.installed: pyproject.toml $(TOOLS)/.installed
	$(TOOLS)/bin/uv venv --quiet --clear --python $(PYTHON) $(@D)
	$(TOOLS)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution $(HOW) --editable '.[dev]'
	touch $@

lint: install     ## style and types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: install
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

wheel: install    ## dist/kdkit-….whl, the same bytes from the same commit wherever it is built
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(RUN)/python -m hatchling build -t wheel -d dist

audit: install $(TOOLS)/.installed    ## licences and a bill of materials into dist/, then known vulnerabilities
	mkdir -p dist
	$(TOOLS)/bin/pip-licenses --python $(RUN)/python --format markdown --order license --output-file dist/licences.md
	$(TOOLS)/bin/cyclonedx-py environment $(RUN)/python --pyproject pyproject.toml --output-reproducible \
	  --output-format JSON --output-file dist/sbom.cdx.json
	$(RUN)/python .ci/audit.py $(TOOLS)/bin/pip-audit

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(TOOLS) build dist runs .pytest_cache .mypy_cache .ruff_cache
