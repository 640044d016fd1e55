# Everything is set up by the targets themselves, in .venv; what has to be there is python3 >= 3.10, a C compiler, make.

PYTHON ?= python3
# The CPU build, a tenth of the size of PyPI's default one; the version is pyproject.toml's.
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml setup.py $(shell find csrc -name '*.[ch]')
SANITIZED := build/sanitized
EXAMPLES := styleid/data/demo
C_FILES = $(shell find csrc tests -name '*.[ch]' -o -path '*/kernels/*.cu*')

.PHONY: demo check test test-cuda gpu-bundle fuzz bench train docs notebooks format lint wheel clean

demo: demo/stylized.png

demo/stylized.png: $(VENV)/.styleid $(EXAMPLES)/content.jpg $(EXAMPLES)/style.jpg
	@mkdir -p demo
	$(BIN)/styleid transfer $(EXAMPLES)/content.jpg $(EXAMPLES)/style.jpg -o $@

# So many processes, each with whole files of tests, whose fixtures and builds are made once; conftest.py says in which order.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The tests without PyTorch, after compiling what changed: about a minute, for every change. The rest is `make test`.
check: $(VENV)/.check
	$(BIN)/python setup.py -q build_ext --inplace
	$(PYTEST) -m "not slow and not long and not torch"

test: $(VENV)/.test
	$(PYTEST) -m "not slow"
	$(PYTEST) -m slow
	$(PYTEST) -m "not slow" --device fake $(ON_FAKES)

# On the CUDA backend as well, with the fakes of NVIDIA's libraries.
ON_FAKES := $(patsubst %,tests/test_%.py,parity_unet parity_vae parity_taesd parity_text steps hooks masks guidance features) \
    -k "not 40-56 and not memory_is_given_back"

# What needs NVIDIA's wheels, 1.6 GB on disk and the headers of CUDA 12, but no GPU.
NVIDIA := .nvidia
CUDA13 := nvidia-cuda-nvrtc>=13,<14 nvidia-cublas>=13,<14 nvidia-cudnn-cu13>=9.8 nvidia-cuda-runtime>=13,<14 nvidia-cuda-crt>=13,<14
CUDA12 := nvidia-cuda-nvrtc-cu12 nvidia-cublas-cu12 nvidia-cudnn-cu12 nvidia-cuda-runtime-cu12

test-cuda: $(VENV)/.test $(NVIDIA)/cu13/.installed $(NVIDIA)/cu12/.installed
	STYLEID_NVIDIA_WHEELS=$(NVIDIA) $(BIN)/python -m pytest -q tests/test_cuda_wheels.py tests/test_cuda_kernels.py -k "wheels or compile"

# The C code under AddressSanitizer and UndefinedBehaviorSanitizer: random files and arguments for FUZZ_SECONDS, allocations
# that fail (one of every FAULTS_EVERY), and the tests of the module. oneDNN and Python are not instrumented, and keep memory to the end: leaks are what tests/test_module_runs.py
# looks for.
FUZZ_SECONDS ?= 180
FAULTS_EVERY ?= 50
SANITIZE := LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16 UBSAN_OPTIONS=print_stacktrace=1

fuzz: $(SANITIZED)/.styleid
	$(SANITIZE) $(SANITIZED)/bin/python tests/fuzz --seconds $(FUZZ_SECONDS) $(ENTRIES)
	$(SANITIZE) $(SANITIZED)/bin/python tests/faults --every $(FAULTS_EVERY)
	$(SANITIZE) $(SANITIZED)/bin/pytest -q tests/test_module*.py

# .gpu/: what a machine with a GPU and without a network needs beside the tree, 60 MB with it.
gpu-bundle: $(VENV)/.test
	$(BIN)/python -m benchmarks.gpu.bundle

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

# IMAGES: a folder of training images; training/README.md says which.
train: $(VENV)/.train
	$(BIN)/python -m training --images $(IMAGES)

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

# Runs them all and keeps their outputs: after a change of the default model or of what they show.
notebooks: $(VENV)/.test
	$(BIN)/python -m notebooks

# One wheel for this Python in dist/, with oneDNN and GNU OpenMP inside, for systems of this machine's C library or a later
# one. The workflow .github/workflows/wheels.yml makes those of all Pythons for older systems.
wheel: $(VENV)/.wheel
	rm -rf build/wheel
	$(PIP) wheel -q --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair -w dist build/wheel/styleid-*.whl

format: $(VENV)/.format
	$(BIN)/clang-format -i $(C_FILES)
	$(BIN)/ruff format .

# clang-tidy reads the commands of the build, and finds GCC's omp.h after its own headers.
lint: $(VENV)/.test $(VENV)/.check $(VENV)/.format
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/python setup.py -q build_ext --inplace
	printf '%s\n' csrc/*/*.c | xargs -n 8 -P "$$(nproc)" $(BIN)/clang-tidy -p build --quiet \
	    --extra-arg=-idirafter"$$($(CC) -print-file-name=include)"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build demo site *.egg-info styleid/*.so

# ---- environments; an empty file .NAME in them says that the package and its extra NAME are installed ----

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "styleid needs Python 3.10 or later as python3; or: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	    { echo "This Python cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $*

$(VENV)/.styleid: $(BIN)/python $(SOURCES)
	$(PIP) install -q -e .
	@touch $@

$(VENV)/.check: $(BIN)/python pyproject.toml setup.py
	$(PIP) install -q -e ".[check]"
	@touch $@

$(VENV)/.torch: $(BIN)/python Makefile
	$(PIP) install -q --retries 1 --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	@touch $@

$(VENV)/.test $(VENV)/.bench $(VENV)/.train: $(VENV)/.torch

$(VENV)/.test $(VENV)/.bench $(VENV)/.train $(VENV)/.docs $(VENV)/.wheel $(VENV)/.format: $(VENV)/.%: $(SOURCES)
	$(PIP) install -q -e ".[$*]"
	@touch $@

$(NVIDIA)/cu13/.installed: $(BIN)/python
	$(PIP) install -q --no-deps --upgrade --target $(@D) $(foreach wheel,$(CUDA13),"$(wheel)")
	@touch $@

$(NVIDIA)/cu12/.installed: $(BIN)/python
	$(PIP) download -q --no-deps -d $(@D)/wheels $(CUDA12)
	for wheel in $(@D)/wheels/*.whl; do $(BIN)/python -m zipfile -e $$wheel $(@D)/all; done
	cd $(@D)/all && find . -path '*/include/*' -name '*.h' -exec cp --parents {} .. \;
	rm -rf $(@D)/wheels $(@D)/all
	@touch $@

$(SANITIZED)/.styleid: $(SANITIZED)/bin/python $(SOURCES) $(shell find styleid -name "*.py")
	STYLEID_SANITIZE=address,undefined $(SANITIZED)/bin/python -m pip install -q . pytest
	@touch $@
