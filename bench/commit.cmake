# SPDX-License-Identifier: Apache-2.0
# commit.cmake -- -DSOURCE=DIR -DOUT=FILE: a header with the commit that is built; untouched where it says so already
cmake_minimum_required(VERSION 3.22)
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty OUTPUT_VARIABLE commit ERROR_QUIET
	OUTPUT_STRIP_TRAILING_WHITESPACE)
if(NOT commit)
	set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT "#define RESULTS_COMMIT \"@commit@\"\n" @ONLY)
