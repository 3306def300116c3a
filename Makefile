# Every job by name. `make` lists them.
CHECKPOINT ?= tests/data/glm-5.1-tiny
BUNDLE ?= build/$(notdir $(patsubst %/,%,$(CHECKPOINT)))
BACKEND ?= tensorrt-rtx
# Several words are several targets; none: those that glm-trt build builds by default.
TARGET ?=
PROMPT ?= def main():
PREFIX ?= build/runtime-installed
# The first that is new enough and starts; a name in PATH alone may be an empty shim.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: help setup plugins export engines validate report run runtime runtime-test fuzz install wheel wheel-python test test-all mutations bench gpu lint constraints clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.complete ## make .venv with everything; nothing to do the second time

# kernel-lens is there for the TensorRT headers in it, TensorRT 11's bindings for their names: what they
# depend on is not needed.
.venv/.complete: pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
		{ echo "glm-trt needs Python 3.11 or newer; none of python3.13, python3.12, python3.11, python3 in PATH is. Install one, or name it: make setup PYTHON=/path/to/python" >&2; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps kernel-lens tensorrt-cu13-bindings
	touch $@

plugins: setup ## build build/plugins/libglm_trt_plugins.so, every kernel: no GPU and no CUDA toolkit needed
	$(BIN)/python -P -m glm_trt.plugins --output build/plugins

# Of a whole library that is up to date all kernels are there; else those that BUNDLE needs.
define BUILD_ENGINES
	library=$$($(BIN)/python -P -m glm_trt.engines.build.plugins "$(BUNDLE)" --backend "$(BACKEND)" \
		$(if $(TARGET),--target $(TARGET)) --output build/plugins) && \
	$(BIN)/glm-trt build "$(BUNDLE)" --backend "$(BACKEND)" $(if $(TARGET),--target $(TARGET)) \
		--plugins "$$library"
endef

export: setup ## CHECKPOINT to BUNDLE: export, engines (BACKEND=, TARGET=), validate, report
	$(BIN)/glm-trt export "$(CHECKPOINT)" -o "$(BUNDLE)"
	$(BUILD_ENGINES)
	$(BIN)/glm-trt validate "$(BUNDLE)" --report "$(BUNDLE)-report" --if-changed
	@echo "The report is $(BUNDLE)-report/report.html"

engines: setup ## build the engines of BUNDLE, with the kernels that it needs
	$(BUILD_ENGINES)

validate: setup ## compare BUNDLE with the eager model
	$(BIN)/glm-trt validate "$(BUNDLE)"

report: setup ## the same, as a page, Markdown and JSON in BUNDLE-report
	$(BIN)/glm-trt validate "$(BUNDLE)" --report "$(BUNDLE)-report"
	@echo "The report is $(BUNDLE)-report/report.html"

run: setup ## continue PROMPT with BUNDLE
	$(BIN)/glm-trt run "$(BUNDLE)" --prompt "$(PROMPT)"

runtime: setup ## build the C++ runtime, build/runtime: library, glm-trt-run
	$(BIN)/python -P -m glm_trt.engines.build.runtime --output build/runtime

install: runtime ## install the C++ runtime to PREFIX
	$(BIN)/python -P -m cmake --install build/runtime --prefix "$(PREFIX)"

runtime-test: setup ## the C++ runtime's own tests, under AddressSanitizer and UBSan, and ThreadSanitizer
	$(BIN)/python -P -m glm_trt.engines.build.runtime --output build/runtime-sanitized --sanitize address --tests
	$(BIN)/ctest --test-dir build/runtime-sanitized --output-on-failure
	$(BIN)/python -P -m glm_trt.engines.build.runtime --output build/runtime-threads --sanitize thread --tests
	$(BIN)/ctest --test-dir build/runtime-threads --output-on-failure --exclude-regex fuzz

wheel: plugins ## a wheel with the plugin library and the C++ runtime, in dist
	$(MAKE) install PREFIX=build/runtime-installed
	$(BIN)/python -P -m glm_trt.engines.build.wheel --runtime build/runtime-installed

wheel-python: setup ## a wheel for any machine, in dist: exports, validates, runs on onnxruntime
	$(BIN)/python -P -m glm_trt.engines.build.wheel --python-only

fuzz: setup ## a million cases of each fuzzer of the C++ runtime
	$(BIN)/python -P -m glm_trt.engines.build.runtime --output build/runtime-sanitized --sanitize address --tests
	set -e; for fuzzer in build/runtime-sanitized/tests/fuzz_*; do $$fuzzer 1000000; done

test: setup ## run the tests that prove everything once
	$(BIN)/pytest -n auto --dist loadfile -m "not slow"

test-all: setup ## run every test, the slow ones too
	$(BIN)/pytest -n auto --dist loadfile

mutations: setup ## put each known bug into a copy of the tree and see its test fail
	$(BIN)/python tests/mutations/run.py

bench: setup ## run every benchmark of the CPU backend
	set -e; for script in benchmarks/cpu_*.py; do $(BIN)/python $$script; done

# The stand-ins are an sm90: of the plugin library, its kernels are enough.
STAND_IN_LIBRARY := build/plugins/partial/sm90/libglm_trt_plugins.so
# STAND_INS=1: without a GPU. AGAIN: steps that are done again though they were ok.
gpu: $(if $(STAND_INS),$(if $(LIBRARY),,$(STAND_IN_LIBRARY))) ## the bring-up on a GPU: kernels, times, engines, tokens; results in OUT (build/gpu)
	$(or $(wildcard $(BIN)/python),python3) benchmarks/gpu --output "$(or $(OUT),build/gpu)" \
		$(if $(LIBRARY)$(STAND_INS),--library "$(or $(LIBRARY),$(STAND_IN_LIBRARY))") \
		$(if $(STAND_INS),--stand-ins) $(if $(AGAIN),--again $(AGAIN))

.PHONY: $(STAND_IN_LIBRARY)
$(STAND_IN_LIBRARY): setup
	$(BIN)/python -P -m glm_trt.plugins --target sm90 --output build/plugins

lint: setup ## formatting, lint with the one-way import rule, types, what is made of the bundle's format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p glm_trt
	$(BIN)/python -P -m glm_trt.export.bundle.generate --check

constraints: setup ## write what .venv holds as constraints.txt
	mkdir -p build
	sed -n '/^#/p' constraints.txt >build/constraints.txt
	$(BIN)/pip freeze --exclude-editable | sed 's/+[a-z0-9]*$$//' >>build/constraints.txt
	mv build/constraints.txt constraints.txt

clean: ## remove what the targets made, but .venv
	rm -rf build dist *.egg-info
