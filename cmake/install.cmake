# SPDX-License-Identifier: Apache-2.0
# install.cmake -- what `cmake --install` leaves behind: library, headers, pkg-config file, CMake package
#
# A component is a package: package.cmake.
include(CMakePackageConfigHelpers)

add_library(kvrail::kvrail ALIAS kvrail)
# While the major version is 0 the ABI may change with every minor one, so both stand in the SONAME.
set_target_properties(kvrail PROPERTIES VERSION ${PROJECT_VERSION}
	SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
if(NOT KVRAIL_INSTALL)
	return()
endif()

if(PROJECT_IS_TOP_LEVEL)
	add_custom_target(uninstall COMMAND ${CMAKE_COMMAND} -DMANIFEST=${PROJECT_BINARY_DIR}/install_manifest.txt
		-P ${PROJECT_SOURCE_DIR}/cmake/uninstall.cmake VERBATIM)
endif()
install(TARGETS kvrail EXPORT kvrail LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT devel)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/kvrail DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT devel
	FILES_MATCHING PATTERN "*.h")
if(TARGET kvrail_tool)
	install(TARGETS kvrail_tool RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT tools)
endif()

# The file finds its prefix from where it lies, so an installation can be moved.
file(RELATIVE_PATH pc_to_prefix /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(${PROJECT_SOURCE_DIR}/cmake/kvrail.pc.in ${PROJECT_BINARY_DIR}/kvrail.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/kvrail.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT devel)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/kvrail)
install(EXPORT kvrail NAMESPACE kvrail:: FILE kvrail-config.cmake DESTINATION ${package_dir} COMPONENT devel)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kvrail-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/kvrail-config-version.cmake DESTINATION ${package_dir} COMPONENT devel)
