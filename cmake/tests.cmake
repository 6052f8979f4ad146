# One process and one time limit per test. A test that needs what is not there exits with 77 and counts as skipped.
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)
set(DPI_PYTHON "python3" CACHE STRING "Python with onnx and numpy, for tests that make models")
set(dpi_test_environment
    "DPI_SRC=${CMAKE_SOURCE_DIR}" "DPI_SANITIZE=${DPI_SANITIZE}" "DPI_BUILD=${CMAKE_BINARY_DIR}" "DPI_PYTHON=${DPI_PYTHON}"
    "DPINFER=${CMAKE_BINARY_DIR}/dpinfer" "DPINFER_WORKER=${CMAKE_BINARY_DIR}/dpinfer-worker"
    "DPINFER_CACHE=${CMAKE_BINARY_DIR}/test-cache"
    "ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:abort_on_error=0"
    "LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/suppressions/lsan.txt:print_suppressions=0"
    "TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/suppressions/tsan.txt:halt_on_error=1:exitcode=66:atexit_sleep_ms=0"
    "UBSAN_OPTIONS=print_stacktrace=1")

if(EXISTS ${CMAKE_SOURCE_DIR}/.deps/torch/torch/lib/libtorch_cpu.so)
  list(APPEND dpi_test_environment "DPINFER_TORCH_LIBRARY=${CMAKE_SOURCE_DIR}/.deps/torch/torch/lib/libtorch_cpu.so")
endif()

if(DPI_SANITIZE)
  # OpenVINO's thread library opens a part of itself with RTLD_DEEPBIND, which the sanitizers' runtime refuses; this
  # variable of its own leaves that part out.
  list(APPEND dpi_test_environment "TBB_ENABLE_SANITIZERS=1")
endif()

if(DPI_SANITIZE MATCHES "thread")
  # Inference libraries are not instrumented: the thread sanitizer takes their mutexes for errors. Ours runs over sim.
  list(APPEND dpi_test_environment "DPINFER_OPENVINO_LIBRARY=/left-out" "DPINFER_ONNXRUNTIME_LIBRARY=/left-out"
       "DPINFER_TORCH_LIBRARY=/left-out")
endif()

# For what runs outside of ctest: `make chaos`, `make soak`.
file(WRITE ${CMAKE_BINARY_DIR}/test-environment "")
foreach(setting ${dpi_test_environment})
  file(APPEND ${CMAKE_BINARY_DIR}/test-environment "export \"${setting}\"\n")
endforeach()

function(dpi_test name)
  set_tests_properties(${name} PROPERTIES TIMEOUT 600 SKIP_RETURN_CODE 77 ENVIRONMENT "${dpi_test_environment}")
endfunction()

foreach(layer base ipc backend data runtime api)
  file(GLOB sources CONFIGURE_DEPENDS tests/${layer}/test_*.c)
  if(DPI_SANITIZE MATCHES "thread")
    list(FILTER sources EXCLUDE REGEX "conformance_(onnxruntime|openvino|tensorrt|aoti)")
  endif()
  file(GLOB helpers CONFIGURE_DEPENDS tests/${layer}/*.c)
  list(FILTER helpers EXCLUDE REGEX "/test_[^/]*$")
  foreach(file ${sources})
    get_filename_component(name ${file} NAME_WE)
    add_executable(${name} ${file} ${helpers})
    target_include_directories(${name} PRIVATE tests)
    target_link_libraries(${name} PRIVATE ${dpi_layers} PkgConfig::CMOCKA)
    add_dependencies(${name} dpinfer-worker)
    add_test(NAME ${layer}/${name} COMMAND ${name})
    dpi_test(${layer}/${name})
    if(name MATCHES "conformance") # they write one folder of standard cases, and each would replace the other's
      set_tests_properties(${layer}/${name} PROPERTIES RESOURCE_LOCK onnx-cases)
    endif()
    if(name MATCHES "aoti") # whose models are compiled by PyTorch the first time: minutes
      set_tests_properties(${layer}/${name} PROPERTIES TIMEOUT 1800)
    endif()
  endforeach()
endforeach()

# What process isolation is tested with, in strict isolation (tests/api/sim_kit.c).
foreach(name session_sim session_depth session_faults recovery recovery_finds elastic elastic_faults run events feed)
  add_test(NAME api/test_${name}_strict COMMAND test_${name})
  dpi_test(api/test_${name}_strict)
  set_property(TEST api/test_${name}_strict APPEND PROPERTY ENVIRONMENT DPI_TEST_ISOLATION=strict)
endforeach()

add_library(stop_at_call MODULE tests/stops/stop_at_call.c)
set_target_properties(stop_at_call PROPERTIES PREFIX "")
target_compile_definitions(stop_at_call PRIVATE _GNU_SOURCE)
target_compile_options(stop_at_call PRIVATE -Wall -Wextra -Wshadow -Wconversion $<$<BOOL:${DPI_WERROR}>:-Werror>)
# The chaos test: hundreds of plans here, thousands by `make chaos`.
file(GLOB sources CONFIGURE_DEPENDS tests/chaos/*.c)
add_executable(chaos ${sources} tests/api/sim_kit.c)
target_include_directories(chaos PRIVATE tests)
target_link_libraries(chaos PRIVATE ${dpi_layers} PkgConfig::CMOCKA)
add_dependencies(chaos dpinfer-worker)
set(plans 300)
if(DPI_SANITIZE)
  set(plans 100)
endif()
foreach(name soak caller) # `make soak`; killed by tests/cli/test_caller_kills.py
  add_executable(${name} tests/soak/${name}.c tests/api/sim_kit.c)
  target_include_directories(${name} PRIVATE tests)
  target_link_libraries(${name} PRIVATE ${dpi_layers} PkgConfig::CMOCKA)
  add_dependencies(${name} dpinfer-worker)
endforeach()
add_test(NAME chaos/plans COMMAND chaos --plans ${plans})
dpi_test(chaos/plans)

file(GLOB scripts CONFIGURE_DEPENDS tests/*/test_*.sh tests/*/test_*.py)
foreach(file ${scripts})
  get_filename_component(name ${file} NAME_WE)
  get_filename_component(folder ${file} DIRECTORY)
  get_filename_component(folder ${folder} NAME)
  if(file MATCHES "\\.py$")
    add_test(NAME ${folder}/${name} COMMAND ${DPI_PYTHON} ${file})
  else()
    add_test(NAME ${folder}/${name} COMMAND bash ${file})
  endif()
  dpi_test(${folder}/${name})
  if(folder MATCHES "^(python|docs)$") # it compiles: the package, and models by PyTorch
    set_tests_properties(${folder}/${name} PROPERTIES TIMEOUT 1800)
  endif()
endforeach()

if(DPI_FUZZ)
  file(GLOB fuzzers CONFIGURE_DEPENDS tests/fuzz/fuzz_*.c)
  foreach(file ${fuzzers})
    get_filename_component(name ${file} NAME_WE)
    add_executable(${name} ${file})
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(${name} PRIVATE dpi_cli ${dpi_layers})
  endforeach()
endif()
