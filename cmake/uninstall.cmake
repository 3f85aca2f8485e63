# SPDX-License-Identifier: Apache-2.0
# uninstall.cmake -- removes what `cmake --install` wrote last from this build folder, and its folders named kvrail if they are empty then
#
# cmake -DMANIFEST=…/install_manifest.txt -P uninstall.cmake; DESTDIR as for the installation.
if(NOT EXISTS ${MANIFEST})
	message(FATAL_ERROR "nothing to remove: ${MANIFEST} is written by `cmake --install`")
endif()
file(STRINGS ${MANIFEST} files)
foreach(file ${files})
	message(STATUS "Removing $ENV{DESTDIR}${file}")
	file(REMOVE $ENV{DESTDIR}${file})
	get_filename_component(folder $ENV{DESTDIR}${file} DIRECTORY)
	get_filename_component(name ${folder} NAME)
	file(GLOB left ${folder}/*)
	if(name STREQUAL "kvrail" AND NOT left) # only folders that bear our name
		file(REMOVE_RECURSE ${folder})
	endif()
endforeach()
file(REMOVE ${MANIFEST})
