# The few words a developer types. PYTHON=... chooses another interpreter.
PYTHON ?= python
DIST ?= dist
SANITIZE := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined
SANITIZED := tests/kernels/test_entries.py tests/test_operations.py tests/test_forward.py tests/test_backward.py tests/test_epilogue.py

.PHONY: build wheel test test-large bench lint asan memcheck docs clean

# After a change of compiled code, into a clone that is installed with `pip install -e ".[dev]"`. The
# others below run what is compiled, and so need no compiler's packages.
build:
	$(PYTHON) setup.py build_ext --inplace

# A wheel for this machine in $(DIST). What an earlier build left would go in as it is.
wheel:
	rm -rf build/lib* build/bdist*
	$(PYTHON) -m pip wheel --no-deps --wheel-dir $(DIST) .

test:
	$(PYTHON) -m pytest -rs

test-large:
	$(PYTHON) -m pytest -m large

bench:
	mkdir -p .benchmarks
	$(PYTHON) bench/compare.py --write docs --json .benchmarks/compare.json
	$(PYTHON) bench/scaling.py --write docs

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# A build apart, so that the everyday one stays; Python itself is not instrumented, hence LD_PRELOAD.
asan:
	rm -rf build/asan && mkdir -p build/asan
	cp -r cnorm tests setup.py pyproject.toml README.md LICENSE build/asan/
	find build/asan -name '*.so' -delete
	cd build/asan && CNORM_CFLAGS="$(SANITIZE) $(WARN)" $(PYTHON) setup.py -q build_ext --inplace --force
	cd build/asan && LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		$(PYTHON) -m pytest -q $(SANITIZED)

# On the AVX2 build, or the baseline: valgrind's processor has no AVX-512. Every array is a block of
# its own of the system's allocator, whose ends valgrind guards. Of the cnorm that is installed.
memcheck:
	PYTHONMALLOC=malloc OPENBLAS_NUM_THREADS=1 valgrind --quiet --error-exitcode=1 --num-callers=60 \
		--suppressions=tools/memcheck.supp $(PYTHON) tests/memcheck.py

docs:
	$(PYTHON) -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf build dist wheelhouse docs/_build *.egg-info
	find cnorm -name '*.so' -delete
