# SPDX-License-Identifier: Apache-2.0
# package.cmake -- the packages of Debian and of Fedora, one for each component: `./dev package`
#
# What a policy wants beside the installed files is added by packaging/finish.cmake when cpack has laid them out.

set(KVRAIL_PACKAGER "" CACHE STRING "name <address> in the packages")
set(soname ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})

set(CPACK_PACKAGE_NAME kvrail)
set(CPACK_PACKAGE_VENDOR kvrail)
set(CPACK_PACKAGE_CONTACT "${KVRAIL_PACKAGER}")
# CPack's own words, because it puts any other before the description of each package.
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_NAME} built using CMake")
set(CPACK_PACKAGING_INSTALL_PREFIX ${CMAKE_INSTALL_PREFIX})
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE
	WORLD_READ WORLD_EXECUTE)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/packaging/finish.cmake)
set(CPACK_KVRAIL_SOURCE ${PROJECT_SOURCE_DIR})
set(CPACK_KVRAIL_CONTROL ${PROJECT_BINARY_DIR}/control)

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${PROJECT_BINARY_DIR}/kvapi)
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS ON)
# Debian's packages have a trigger where CPack writes scripts that call ldconfig. It writes none where there are such files
# already, and goes on where these are missing.
set(no_ldconfig ${CPACK_KVRAIL_CONTROL}/none/postinst ${CPACK_KVRAIL_CONTROL}/none/postrm)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA ${CPACK_KVRAIL_CONTROL}/symbols
	${CPACK_KVRAIL_CONTROL}/shlibs ${CPACK_KVRAIL_CONTROL}/triggers ${no_ldconfig})
set(CPACK_DEBIAN_NCCL_PACKAGE_CONTROL_EXTRA ${no_ldconfig})

set(CPACK_RPM_COMPONENT_INSTALL ON)
set(CPACK_RPM_PACKAGE_LICENSE Apache-2.0)
set(CPACK_RPM_PACKAGE_RELEASE 1)
set(CPACK_RPM_FILE_NAME RPM-DEFAULT)
set(CPACK_RPM_PACKAGE_RELOCATABLE OFF)
set(CPACK_RPM_SPEC_MORE_DEFINE "%define _build_id_links none")
set(CPACK_RPM_EXCLUDE_FROM_AUTO_FILELIST_ADDITION /usr/share/licenses /usr/share/man /usr/share/man/man1 /usr/share/man/man3
	/usr/share/man/man7 /usr/${CMAKE_INSTALL_LIBDIR}/cmake /usr/${CMAKE_INSTALL_LIBDIR}/pkgconfig)


# kvrail_package(component, its names in Debian and Fedora, Debian's section and Multi-Arch, summary, text, [needed component])
macro(kvrail_package component deb rpm section multiarch summary text)
	string(TOUPPER ${component} upper)
	list(APPEND CPACK_COMPONENTS_ALL ${component})
	set(CPACK_DEBIAN_${upper}_PACKAGE_NAME ${deb})
	set(CPACK_DEBIAN_${upper}_FILE_NAME DEB-DEFAULT)
	set(CPACK_DEBIAN_${upper}_PACKAGE_SECTION "${section}\nMulti-Arch: ${multiarch}") # which CPack knows since 3.31 only
	set(CPACK_DEBIAN_${upper}_DESCRIPTION "${summary}\n${text}")
	set(CPACK_RPM_${upper}_PACKAGE_NAME ${rpm})
	set(CPACK_RPM_${upper}_PACKAGE_SUMMARY "${summary}")
	string(REPLACE "\n.\n" "\n\n" plain "${text}")
	set(CPACK_RPM_${upper}_PACKAGE_DESCRIPTION "${plain}")
	if(${ARGC} GREATER 7)
		set(CPACK_COMPONENT_${upper}_DEPENDS ${ARGV7})
		set(CPACK_RPM_${upper}_PACKAGE_REQUIRES "kvrail-libs = ${PROJECT_VERSION}-1")
	else()
		set(CPACK_DEBIAN_${upper}_PACKAGE_RECOMMENDS "ibverbs-providers, librdmacm1, libssl3") # opened when the program runs
	endif()
endmacro()

set(about "kvrail moves the KV cache of a language model from the process that prefills\nto the process that decodes,\
 block by block, with a receipt: over RDMA, TCP or\nshared memory.\n.\n")
kvrail_package(library libkvrail${soname} kvrail-libs libs same
	"transport of KV cache blocks between processes - library" "${about}This package contains the shared library.")
kvrail_package(devel libkvrail-dev kvrail-devel libdevel same
	"transport of KV cache blocks between processes - headers"
	"${about}This package contains the headers, the files for pkg-config and CMake, and a\nmanual page for each function." library)
kvrail_package(tools kvrail-tools kvrail-tools net foreign
	"transport of KV cache blocks between processes - command"
	"${about}This package contains the command kvrail, which says whether a machine is\nready and how fast blocks reach another one,\
 the manual page of the options,\nalert rules for Prometheus and a script for bpftrace." library)
kvrail_package(nccl libnccl-net-kvrail kvrail-nccl libs same
	"network plugin of NCCL over kvrail's transport"
	"${about}This package contains the plugin that NCCL loads where NCCL_NET_PLUGIN is\nkvrail. It needs no other package of kvrail.")
if(TARGET kvrail_nixl)
	kvrail_package(nixl nixl-plugin-kvrail kvrail-nixl libs same
		"backend of NIXL over kvrail's transport"
		"${about}This package contains the plugin that NIXL loads as the backend KVRAIL. It\nneeds no other package of kvrail.")
endif()
include(CPack)

add_custom_target(kvrail_packages DEPENDS kvrail kvrail_tool kvrail_net kvrail_man $<TARGET_NAME_IF_EXISTS:kvrail_nixl>)
