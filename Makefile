# Everything runs in .venv, which the first target that needs it creates.

PYTHON ?= python3
FOLDER := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := .venv/$(FOLDER)
READY := .venv/.installed
REQUIREMENTS := pyproject.toml requirements.txt requirements-onnxruntime.txt constraints.txt
FLOORS := .venv-floors
SITE := .venv-docs
FLOOR_TESTS := $(patsubst %,tests/%.py,samples/test_archives cli/test_cli graph/test_graph \
	samples/test_images graph/test_outline run/test_pipeline run/test_program recover/test_recover)

.PHONY: demo test fuzz fuzz-long test-slow test-floors check docs release-check clean

$(READY): $(REQUIREMENTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Compress a trained ResNet-20 to less than half of its MACs and print before and after.
demo: $(READY)
	mkdir -p demo
	$(BIN)/obc-onnx compress models/fashion_resnet20.onnx --output demo/small.onnx \
		--plan-out demo/plan.json \
		--data models/fashion-train.npz --eval-data models/fashion-test.npz \
		--target-macs 0.5 --epochs 10 --lr 0.01 --force
	$(BIN)/obc-onnx verify models/fashion_resnet20.onnx demo/small.onnx --plan demo/plan.json

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --quiet

# Try damaged models and files of every kind for a minute, or for an hour: nothing may crash or hang.
fuzz: $(READY)
	$(BIN)/python tests/fuzz/run.py --seconds 60

fuzz-long: $(READY)
	$(BIN)/python tests/fuzz/run.py --seconds 3600 --first $$(date +%s)

test-slow: $(READY)
	$(BIN)/python -m pytest --runslow --quiet

# Run some tests with the oldest versions that are said to work. TORCH=2.6.0 tries that of torch
# too, which comes with several GB of CUDA on Linux.
test-floors: $(FLOORS)/.installed
	$(FLOORS)/$(FOLDER)/python -m pytest --quiet $(FLOOR_TESTS)

$(FLOORS)/.installed: $(REQUIREMENTS) tools/floors.py
	$(PYTHON) -m venv --clear $(FLOORS)
	$(PYTHON) tools/floors.py $(if $(TORCH),--torch $(TORCH)) > $(FLOORS)/floors.txt
	$(FLOORS)/$(FOLDER)/python -m pip install --quiet --requirement $(FLOORS)/floors.txt
	$(FLOORS)/$(FOLDER)/python -m pip install --quiet --no-deps --editable .
	touch $@

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/project/test_architecture.py
	$(BIN)/python -m pytest --quiet tests/project/test_docs.py -k 'not run_in_order'

# Build the site of docs/ in site/, and fail at any warning.
docs: $(SITE)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/$(FOLDER)/mkdocs build --strict --quiet

$(SITE)/.installed: docs/requirements.txt
	$(PYTHON) -m venv --clear $(SITE)
	$(SITE)/$(FOLDER)/python -m pip install --quiet --requirement docs/requirements.txt
	touch $@

# Build the source archive and the wheel, install the wheel, and test what is installed.
release-check: $(READY)
	$(BIN)/python -m pytest --quiet tests/project/test_packaging.py tests/project/test_installation.py \
		tests/project/test_release_files.py

clean:
	rm -rf .venv $(FLOORS) $(SITE) site demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
