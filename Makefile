# `make demo` and `make test` do everything from a bare clone; the environment in .venv is made once.
# 3.13 comes last: no wheels of what OGBench's and Robomimic's environments need
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
EXTRAS := dev,docs,plots,postgresql,onnx,minari,lerobot,ray
ENVIRONMENTS := $(shell $(PYTHON) -c "import sys; print(',ogbench,robomimic' * (sys.version_info < (3, 13)))")
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Where it is set, as containers do, every process would compile PyTorch's and all other sources again: ten seconds each
unexport PYTHONDONTWRITEBYTECODE

# Headless rendering; MuJoCo finds its own way on macOS
ifeq ($(shell uname -s),Linux)
export MUJOCO_GL ?= egl
endif

.PHONY: demo test test-slow lint format docs clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

# The others, of 3 seconds and more: learning, compilation, whole commands, the docs' code
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A warning is an error, a link to nowhere is a warning
docs: $(STAMP)
	$(BIN)/python -m sphinx -q -E -W --keep-going docs docs/_build/html
	$(BIN)/python benchmarks/page.py benchmarks/results --out docs/_build/html/curves.html
	@echo "docs/_build/html/index.html, and all curves in curves.html beside it"

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): setup.py constraints.txt
	@echo "Installing into $(VENV): a few minutes, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Compiling every file of every package takes as long as the rest; Python compiles what it imports
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e ".[$(EXTRAS)$(ENVIRONMENTS)]"
	@touch $@

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
