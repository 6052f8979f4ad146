# make install: library, header, program, worker, pkg-config file, CMake package, man pages, completion.
include(CMakePackageConfigHelpers)

install(TARGETS dpinfer EXPORT dpinferTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/dpinfer DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS dpinfer-cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS dpinfer-worker RUNTIME DESTINATION libexec/dpinfer)
install(FILES python/dpinfer/report.py DESTINATION libexec/dpinfer)

# The file finds its prefix from its own place, so that --prefix and DESTDIR need no rebuild.
file(RELATIVE_PATH DPI_PC_TO_PREFIX "/p/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/p")
configure_file(cmake/dpinfer.pc.in dpinfer.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/dpinfer.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(EXPORT dpinferTargets NAMESPACE dpinfer:: FILE dpinferConfig.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/dpinfer)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/dpinferConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${CMAKE_BINARY_DIR}/dpinferConfigVersion.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/dpinfer)

file(GLOB man_pages CONFIGURE_DEPENDS man/*.1)
install(FILES ${man_pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
if(EXISTS ${CMAKE_SOURCE_DIR}/completions/dpinfer.bash)
  install(FILES completions/dpinfer.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME dpinfer)
endif()
if(tensorrt_targets)
  install(TARGETS ${tensorrt_targets} LIBRARY DESTINATION libexec/dpinfer)
endif()

if(image_targets)
  install(TARGETS ${image_targets} LIBRARY DESTINATION libexec/dpinfer)
endif()

# The Python wheel holds library, worker, backends and program side by side: the library finds its worker beside itself.
if(DPI_WHEEL)
  install(TARGETS dpinfer LIBRARY DESTINATION lib COMPONENT wheel)
  install(TARGETS dpinfer-cli dpinfer-worker ${tensorrt_targets} ${image_targets} RUNTIME DESTINATION lib COMPONENT wheel
          LIBRARY DESTINATION lib COMPONENT wheel)
endif()
