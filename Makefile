# `make demo` and `make test` need python3, make and a C compiler; each sets up .venv the first time and only then.
# A PYTHON of your choice has an environment of its own, as .venv-3.12.
PYTHON ?= python3
ifneq ($(origin PYTHON),file)
OF_PYTHON := $(shell $(PYTHON) -c 'import sys; print("-%d.%d" % sys.version_info[:2])' 2>/dev/null)
$(if $(OF_PYTHON),,$(error expected an interpreter, got PYTHON=$(PYTHON), which does not run))
endif
VENV ?= .venv$(OF_PYTHON)
PY := $(VENV)/bin/python
# Which torch is installed: auto (the CPU build where there is no NVIDIA driver), pip (what pip finds), cpu, cu130, rocm7.0, ...
TORCH ?= auto
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
OUT ?= out/gpu
RESULTS ?= out/bench
BENCH ?=
MODEL ?=
TEXT ?=
SET ?= oldest
FOLDER ?= out/versions
TESTS ?= tests
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint docs bench gpu codegen proofs versions release rehearsal clean

demo: $(VENV)/.installed-demo
	$(PY) -m fastbert demo $(MODEL) $(if $(TEXT),--text $(TEXT))

# The kernels are tested under Triton's interpreter, then compiled: their PTX runs in an emulator, and is looked at ahead of
# time. Triton reads which of the two it is when a kernel is decorated, and a target is one GPU: each has processes of its own.
test: $(VENV)/.installed-test
	$(PY) -m pytest -n $(JOBS) --dist worksteal -q tests
	$(PY) -m pytest -n $(JOBS) --dist worksteal -q tests/compiled --compiled=sm_80
	$(PY) -m pytest -n $(JOBS) --dist worksteal -q tests/compiled --compiled=sm_90
	$(PY) -m pytest -q --quick --benchmark-disable benchmarks
	$(PY) -m benchmarks.codegen --summary --part --jobs $(JOBS) --check benchmarks/codegen.tsv

lint: $(VENV)/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# The pages of docs/ with the reference, into out/docs; a link or a name that leads nowhere is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

codegen: $(VENV)/.installed-test
	$(PY) -m benchmarks.codegen --jobs $(JOBS) --record benchmarks/codegen.tsv

# Every sample through the compiled kernels of both targets, by the usual schedule, and every pipelined kernel by the late one;
# what passed goes into the record that `fastbert verify` shows, where the run ends.
proofs: $(VENV)/.installed-test
	$(PY) -m pytest -n $(JOBS) -q tests/compiled --compiled=sm_80 --full --record-proofs
	$(PY) -m pytest -n $(JOBS) -q tests/compiled --compiled=sm_90 --full --record-proofs

# Small sizes without a GPU, the headline rows with one; BENCH=--full for every row of the records.
bench: $(VENV)/.installed-test
	mkdir -p $(RESULTS)
	$(PY) -m pytest -q benchmarks $(BENCH) --record=$(RESULTS)/raw.json
	$(PY) -m benchmarks.report $(RESULTS)

# Everything that needs a GPU: no network, no virtual environment, the machine's own packages.
gpu:
	PYTHONPATH=$(CURDIR) $(PYTHON) -m benchmarks.gpu --out $(OUT)

# The suite on the oldest or the newest versions that pyproject.toml allows (SET), in an environment of its own under FOLDER.
versions:
	$(PYTHON) tests/versions.py $(SET) --folder $(FOLDER) $(TESTS)

# The files of a release in dist/, from the last commit, which carries the tag; docs/release.md says the steps. `make rehearsal`
# builds the same files of any commit, to look at.
release: $(VENV)/.installed-release
	$(PY) .ci/release.py

rehearsal: $(VENV)/.installed-release
	$(PY) .ci/release.py --rehearse

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-demo: $(VENV)/.created pyproject.toml constraints.txt
	$(PY) .ci/install.py --torch $(TORCH) demo
	touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml constraints.txt
	$(PY) .ci/install.py --torch $(TORCH) demo test bench lint
	touch $@

$(VENV)/.installed-release: $(VENV)/.created pyproject.toml constraints.txt
	$(PY) .ci/install.py --torch $(TORCH) release
	touch $@

$(VENV)/.installed-docs: $(VENV)/.created pyproject.toml constraints.txt
	$(PY) .ci/install.py --torch $(TORCH) docs
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info
