# make demo, make test, make lint, make bench: each sets up what it needs, in .venv, on the first call.
.POSIX:

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
CC = cc
READY = $(VENV)/ready
NATIVE = lissom/engine/kernels/native
LONG = tests/server tests/export tests/recover/parallel tests/test_documents.py tests/test_examples.py
CPU_WHEELS = https://download.pytorch.org/whl/cpu

.PHONY: help demo test test-long test-native test-gpu lint docs bench bench-engine bench-quality map clean

help:
	@echo 'make demo           optimize a classifier and a language model, serve the result, ask it for a story'
	@echo 'make test           run every test but those that follow'
	@echo 'make test-long      those of servers, of other runtimes, of several workers, every snippet of the documents, the examples'
	@echo 'make test-native    the tests of the kernels in C, watched by AddressSanitizer and UBSan'
	@echo 'make test-gpu       the tests of the kernels in Triton: on a GPU, or in the interpreter of Triton, which it installs'
	@echo 'make lint           ruff, mypy --strict, the order of the rooms, and the documentation'
	@echo 'make docs           the documentation as a site, in the folder site'
	@echo 'make bench          speed: latency and tokens per second beside the limits of this machine'
	@echo 'make bench-engine   speed of language models in every format; with PEERS="--llama ..." beside other engines'
	@echo 'make bench-quality  quality: perplexity and accuracy of every technique, beside its peers'
	@echo 'make map            write docs/map.md anew'
	@echo 'make clean          remove the environment and the caches'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter (3.11 or newer), VENV=folder where the environment lies.'

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest $(LONG:%=--ignore=%)

test-long: $(READY)
	$(BIN)/python -m pytest $(LONG)

test-native: $(READY)
	$(CC) -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -ffp-contract=off -fPIC -shared -pthread \
	  -Wall -Wextra -Wno-psabi -o $(VENV)/native.so $(NATIVE)/*.c -lm
	LISSOM_NATIVE=$(VENV)/native.so LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
	  $(BIN)/python -m pytest -n0 tests/engine/kernels tests/engine/test_decoder.py \
	  tests/engine/test_encoder.py tests/engine/test_images.py

test-gpu: $(READY)
	$(BIN)/pip install -q -c $(VENV)/constraints.txt -e '.[cuda]'
	$(BIN)/python -m pytest tests/formats/gpu tests/formats/test_narrow.py tests/engine/test_graphs.py \
	  tests/engine/kernels/test_sparse.py tests/hardware/test_compiled.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir $(VENV)/site

bench: $(READY)
	$(BIN)/python benchmarks/speed.py

bench-engine: $(READY)
	$(BIN)/python benchmarks/engine.py .bench $(PEERS)

bench-quality: $(READY)
	$(BIN)/python benchmarks/quality.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

map: $(READY)
	$(BIN)/python docs/map.py >docs/map.new
	mv docs/map.new docs/map.md

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# torch comes first and alone: its CPU build may lie on another index, where nothing else should be taken from.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("lissom needs Python 3.11 or newer, this is %d.%d: try make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@if nvidia-smi >/dev/null 2>&1; then sed 's/+cpu//' constraints.txt; else cat constraints.txt; fi >$(VENV)/constraints.txt
	$(BIN)/pip install -q --no-deps -c $(VENV)/constraints.txt torch || \
	$(BIN)/pip install -q --no-deps -c $(VENV)/constraints.txt --index-url $(CPU_WHEELS) torch
	$(BIN)/pip install -q -c $(VENV)/constraints.txt -e '.[test,lint,demo]'
	@touch $@
