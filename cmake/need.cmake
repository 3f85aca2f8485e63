# SPDX-License-Identifier: Apache-2.0
# need.cmake -- what is missing is named with its packages when CMake configures, not by the compiler in the middle of the build
#
# Every function takes the package's name in Debian and Ubuntu, the one in Fedora and RHEL, and the option to switch off
# in order to do without (nothing where the library itself needs it).

# kvrail_missing(what debian fedora [option] [MODE WARNING|FATAL_ERROR] [THEN consequence])
function(kvrail_missing what debian fedora)
	cmake_parse_arguments(M "" "MODE;THEN" "" ${ARGN})
	if(NOT M_MODE)
		set(M_MODE FATAL_ERROR)
	endif()
	set(text "${what} is missing: install ${debian} (Debian, Ubuntu) or ${fedora} (Fedora, RHEL)")
	if(M_UNPARSED_ARGUMENTS)
		string(APPEND text ", or configure with -D${M_UNPARSED_ARGUMENTS}=OFF")
	endif()
	if(M_THEN)
		string(APPEND text ". ${M_THEN}")
	endif()
	message(${M_MODE} "${text}")
endfunction()

# kvrail_need_header(header debian fedora)
function(kvrail_need_header header)
	include(CheckIncludeFile)
	string(MAKE_C_IDENTIFIER KVRAIL_HAVE_${header} have)
	check_include_file(${header} ${have})
	if(NOT ${have})
		unset(${have} CACHE) # so that the next run looks again
		kvrail_missing(${header} ${ARGN})
	endif()
endfunction()

# kvrail_need_library(name debian fedora option): NAME_INCLUDE and NAME_LIBRARY of lib<name> and <name>.h
function(kvrail_need_library name)
	string(TOUPPER ${name} upper)
	find_path(${upper}_INCLUDE ${name}.h)
	find_library(${upper}_LIBRARY ${name})
	mark_as_advanced(${upper}_INCLUDE ${upper}_LIBRARY)
	if(NOT ${upper}_INCLUDE)
		kvrail_missing(${name}.h ${ARGN})
	elseif(NOT ${upper}_LIBRARY)
		kvrail_missing("the library ${name}" ${ARGN})
	endif()
endfunction()
