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
	file(GLOB left ${folder}/*)
	while(folder MATCHES "/kvrail(/[^/]+)?$" AND NOT left) # only folders that bear our name, and what lies in them
		file(REMOVE_RECURSE ${folder})
		get_filename_component(folder ${folder} DIRECTORY)
		file(GLOB left ${folder}/*)
	endwhile()
endforeach()
file(REMOVE ${MANIFEST})
