# Writes dpi_build.h (cmake -P, at every build): a version and a number of the sources' content. It is a build step and
# not part of the configuration, because an edit configures nothing anew, and a worker built before the edit must differ.
# in: SOURCE_DIR, TEMPLATE, OUTPUT, PROJECT_VERSION, COMPILER (whatever else makes another build)
file(GLOB_RECURSE sources RELATIVE ${SOURCE_DIR} ${SOURCE_DIR}/src/*.c ${SOURCE_DIR}/src/*.cc ${SOURCE_DIR}/src/*.h
     ${SOURCE_DIR}/include/*.h)
list(SORT sources)
set(digest "${PROJECT_VERSION} ${COMPILER}")
foreach(file ${sources})
  file(SHA256 ${SOURCE_DIR}/${file} one)
  string(APPEND digest " ${file} ${one}")
endforeach()
string(SHA256 digest "${digest}")
string(SUBSTRING ${digest} 0 15 DPI_BUILD_ID)
configure_file(${TEMPLATE} ${OUTPUT} @ONLY) # leaves the file alone when nothing changed
