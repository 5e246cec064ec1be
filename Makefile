# Two commands: `make demo` trains the embedded default, `make test` checks everything (`make test-fast` all that is not
# slow). `make table` compares the methods, `make bench` measures speed.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/digits
BIN := $(VENV)/bin
# On Linux the CPU build of torch without its gigabytes of CUDA; elsewhere PyPI's is that already.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
# Python compiles what it imports; to compile all that is installed takes longer than the tests would gain.
PIP_FLAGS := --quiet --disable-pip-version-check --no-compile
# Of `make bench`: cpu or gpu.
DEVICE ?= cpu
# Tests run in processes side by side, which share a compilation cache.
PARALLEL ?= --numprocesses=auto --maxprocesses=4 --dist=worksteal

.PHONY: demo table test test-fast test-torch newest bench lint clean

demo: $(VENV)/ready
	$(BIN)/python -m switokd_jax.main --config=configs/digits.py --workdir=$(WORKDIR)

# All methods on digits, three seeds, and a report with pictures: about eight minutes on two cores.
table: $(VENV)/ready
	$(BIN)/python experiments/table_cifar.py --smoke --jobs=2
	$(BIN)/python -m switokd_jax.report runs/table_cifar_smoke

# Lint, types and every test that is not slow: two and a half minutes on two cores.
test-fast: lint
	$(BIN)/python -m pytest -m "not torch and not slow" $(PARALLEL)

test: lint
	$(BIN)/python -m pytest -m "not torch" $(PARALLEL)

test-torch: $(VENV)/ready-torch
	$(BIN)/python -m pytest -m torch $(PARALLEL)

# The newest release of everything, whatever setup.cfg allows, in an environment of its own: an early warning.
newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install $(PIP_FLAGS) --editable '.[dev]'
	.venv-newest/bin/python -m pip install $(PIP_FLAGS) --upgrade jax flax optax orbax-checkpoint \
		numpy scipy grain tensorflow-datasets clu ml_collections matplotlib scikit-learn
	.venv-newest/bin/python -m pytest -m "not torch and not slow" $(PARALLEL)

# Our speed beside PyTorch's, on whatever JAX runs on: about fifteen minutes on two cores.
bench: $(VENV)/ready-torch
	$(BIN)/python experiments/speed/compare_torch.py --device=$(DEVICE) --json=runs/speed.json
	$(BIN)/python experiments/speed/switching_cost.py
	$(BIN)/python experiments/speed/stream.py

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/ready: requirements.txt setup.cfg setup.py pyproject.toml
	@echo "setting up $(VENV) with $$(grep -c == requirements.txt) packages: about a minute"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -r requirements.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	$(BIN)/python -m pip install $(PIP_FLAGS) -r requirements-dev.txt
	$(BIN)/python -m pip check
	touch $@

$(VENV)/ready-torch: $(VENV)/ready-dev
	$(BIN)/python -m pip install $(PIP_FLAGS) --retries 1 --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
