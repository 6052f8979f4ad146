# make run    installs what is missing, builds, runs the main job          make test    builds and runs every test
# make check  the wide one: sanitizers, fuzzers, linters                   make bench   writes docs/benchmarks.md
# make docs   the documents as a site, build-docs/site/index.html
# make chaos  20,000 random fault plans and 1,000 kills of the caller     make soak    half an hour with kills
# make model  the protocol of claims, death and replay in a model checker, five minutes
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

model:
	@tools/deps.sh check
	@tools/check_model.sh

check:
	@tools/deps.sh check
	@tools/check.sh

# CHAOS_PLANS, CHAOS_SEED, CHAOS_KILLS, SOAK_MINUTES: less, or the same again
chaos: chaos-build
	@. build-test/test-environment && \
	    build-test/chaos --plans $(or $(CHAOS_PLANS),20000) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED))
	@. build-test/test-environment && "$$DPI_PYTHON" -B tests/cli/test_caller_kills.py $(or $(CHAOS_KILLS),1000)

soak: chaos-build
	@. build-test/test-environment && build-test/soak $(or $(SOAK_MINUTES),30)

chaos-build:
	@tools/deps.sh test
	@$(CMAKE) -S . -B build-test -DDPI_TESTS=ON >/dev/null
	@ninja -C build-test --quiet chaos soak caller dpinfer-worker dpinfer-cli

test-gpu: all
	@tools/deps.sh test
	@$(CMAKE) -S . -B build-test -DDPI_TESTS=ON >/dev/null && ninja -C build-test --quiet
	@DPI_PYTHON=$${DPI_PYTHON:-$(CURDIR)/.deps/venv/bin/python} tools/test_gpu.sh || [ $$? -eq 77 ]

bench: deps all
	@tools/deps.sh test
	@bench/run.sh

docs:
	@tools/deps.sh docs
	@tools/build_docs.sh .deps/venv/bin/python build-docs/site

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

install: all
	cmake --install build --prefix $(PREFIX)

clean:
	rm -rf build build-*

.PHONY: all deps run test chaos soak chaos-build test-gpu model check bench docs format install clean
