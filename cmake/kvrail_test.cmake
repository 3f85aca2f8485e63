# SPDX-License-Identifier: Apache-2.0
# kvrail_test.cmake -- how a test is made known: exit 77 = skipped, with the reason printed as its last line
#
# Every test carries the name of its rig (the folder it stands in) as a label, so that a rig can be chosen
# (ctest -L loop) or declared present (KVRAIL_REQUIRE). Tests labelled "long" run in `./dev test --long` only.
#
# A timeout is there to end a test that hangs, so it is many times what the test takes on an idle machine.
kvrail_need_library(cmocka libcmocka-dev libcmocka-devel KVRAIL_TESTS)
find_package(Python3 COMPONENTS Interpreter)
if(NOT Python3_Interpreter_FOUND)
	kvrail_missing("the program python3" python3 python3 KVRAIL_TESTS)
endif()

# A key file for tests of what runs with one. Not a secret.
set(KVRAIL_TEST_KEY ${PROJECT_BINARY_DIR}/test-key)
if(NOT EXISTS ${KVRAIL_TEST_KEY})
	file(WRITE ${KVRAIL_TEST_KEY} "the key of the tests is no secret\n")
endif()
file(CHMOD ${KVRAIL_TEST_KEY} PERMISSIONS OWNER_READ OWNER_WRITE)

# kvrail_add_test(name COMMAND … [LABELS …] [TIMEOUT seconds])
function(kvrail_add_test name)
	cmake_parse_arguments(T "" "TIMEOUT" "COMMAND;LABELS" ${ARGN})
	get_filename_component(rig ${CMAKE_CURRENT_SOURCE_DIR} NAME)
	string(REPLACE "mpi_tests" "mpi" rig ${rig})
	if(NOT T_TIMEOUT)
		set(T_TIMEOUT 180)
	endif()
	if(KVRAIL_SANITIZE)
		math(EXPR T_TIMEOUT "3 * ${T_TIMEOUT}")
	endif()
	add_test(NAME ${name} COMMAND ${T_COMMAND})
	# Threads and descriptors are counted by many; what is about KVCACHE_VIEW sets it.
	# What is not about a deadline may take long on a busy machine under a sanitizer. More variables: set_property(APPEND).
	set_tests_properties(${name} PROPERTIES ENVIRONMENT "KVCACHE_HANDSHAKE_MS=20000;KVCACHE_OP_TIMEOUT_MS=20000;KVCACHE_VIEW=0")
	if(KVRAIL_SANITIZE MATCHES "thread") # children may have threads; what is not a race stands in the file
		set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT
			TSAN_OPTIONS=die_after_fork=0:suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp)
	endif()
	set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${T_TIMEOUT} LABELS "${rig};${T_LABELS}")
endfunction()

# The main of programs that have none. The linker takes it from the archive only where none is.
add_library(kvrail_test_main STATIC ${PROJECT_SOURCE_DIR}/tests/lib/main.c)
target_include_directories(kvrail_test_main PRIVATE ${CMOCKA_INCLUDE})
target_link_libraries(kvrail_test_main PRIVATE kvrail_flags PUBLIC ${CMOCKA_LIBRARY})

# kvrail_test(name SOURCES … [LIBS …] [ARGS …] [LABELS …] [TIMEOUT seconds]): a cmocka program
function(kvrail_test name)
	cmake_parse_arguments(T "" "TIMEOUT" "SOURCES;LIBS;ARGS;LABELS" ${ARGN})
	add_executable(${name} ${T_SOURCES})
	target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests ${CMOCKA_INCLUDE})
	target_link_libraries(${name} PRIVATE ${T_LIBS} kvrail_test_main)
	kvrail_add_test(${name} COMMAND ${name} ${T_ARGS} LABELS ${T_LABELS} TIMEOUT ${T_TIMEOUT})
endfunction()
