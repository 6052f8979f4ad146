# make run    installs what is missing, builds, runs the main job          make test    builds and runs every test
# make check  the wide one: sanitizers, fuzzers, linters                   make bench   writes docs/benchmarks.md
# make test-gpu  what needs an NVIDIA GPU and TensorRT (headers by cmake -DDPI_TENSORRT_INCLUDE=...); skipped elsewhere
PREFIX ?= /usr/local
TENSORRT_INCLUDE ?=
CMAKE = cmake -G Ninja -DDPI_PYTHON=$(CURDIR)/.deps/venv/bin/python \
    $(if $(TENSORRT_INCLUDE),"-DDPI_TENSORRT_INCLUDE=$(TENSORRT_INCLUDE)")

all: build/build.ninja
	@ninja -C build --quiet

deps:
	@tools/deps.sh

build/build.ninja: | deps
	@$(CMAKE) -S . -B build --no-warn-unused-cli -DDPI_TESTS=OFF >build-configure.log || { cat build-configure.log; exit 1; }
	@rm -f build-configure.log

run: deps all
	@tools/run_demo.sh

test:
	@tools/deps.sh test
	@$(CMAKE) -S . -B build-test -DDPI_TESTS=ON -DDPI_WERROR=ON >build-test-configure.log || \
	    { cat build-test-configure.log; exit 1; }
	@rm -f build-test-configure.log
	@ninja -C build-test --quiet
	@ctest --test-dir build-test --output-on-failure --no-tests=error -j2

check:
	@tools/deps.sh check
	@tools/check.sh

test-gpu: all
	@tools/deps.sh test
	@$(CMAKE) -S . -B build-test -DDPI_TESTS=ON >/dev/null && ninja -C build-test --quiet
	@DPI_PYTHON=$${DPI_PYTHON:-$(CURDIR)/.deps/venv/bin/python} tools/test_gpu.sh || [ $$? -eq 77 ]

bench: deps all
	@tools/deps.sh test
	@bench/run.sh

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

install: all
	cmake --install build --prefix $(PREFIX)

clean:
	rm -rf build build-*

.PHONY: all deps run test test-gpu check bench format install clean
