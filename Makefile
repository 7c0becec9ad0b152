# Everything runs in .venv, which the first target that needs it creates.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: demo test test-slow check clean

$(READY): pyproject.toml constraints.txt
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
		--target-macs 0.5 --round-to 8 --epochs 10 --latency
	$(BIN)/obc-onnx verify models/fashion_resnet20.onnx demo/small.onnx --plan demo/plan.json

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --quiet

test-slow: $(READY)
	$(BIN)/python -m pytest --runslow --quiet

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_architecture.py

clean:
	rm -rf .venv demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
