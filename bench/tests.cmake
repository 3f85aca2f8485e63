# SPDX-License-Identifier: Apache-2.0
# tests.cmake -- short runs of the benchmarks; every byte is checked, no speed
set(net_env NCCL_SOCKET_IFNAME=lo)
set(expect ${PROJECT_SOURCE_DIR}/mpi_tests/expect.sh)

# A stand-in for libcuda: two processes, all ways. On a GPU: tests/gpu/run.sh.
foreach(way gpu-gpu gpu-host host-gpu)
	set(run $<TARGET_FILE:gpu_pd> --way ${way} --prefill 3 --decode 3 --batch 200 --rounds 3)
	kvrail_add_test(bench_gpu_${way} COMMAND ${expect} 0 "^${way} +256 .* 0$" -- ${run} --pool 8)
	kvrail_add_test(bench_gpu_${way}_pieces COMMAND ${expect} 0 "^${way} +256 .* 0$" -- ${run} --pool 24 --pieces)
	kvrail_add_test(bench_gpu_${way}_tcp COMMAND ${expect} 0 "^${way} +256 .* 0$" -- ${run} --pool 8)
	list(APPEND gpu_tests bench_gpu_${way} bench_gpu_${way}_pieces)
	list(APPEND gpu_tcp_tests bench_gpu_${way}_tcp)
endforeach()
kvrail_add_test(gpu_life COMMAND gpu_life --gpu 3 --decode 3 --connects 50 --kills 1)
kvrail_add_test(gpu_life_pieces COMMAND gpu_life --gpu 3 --decode 3 --connects 50 --kills 1 --pieces)
kvrail_add_test(gpu_life_tcp COMMAND gpu_life --gpu 3 --decode 3 --connects 50 --kills 1)
list(APPEND gpu_tcp_tests gpu_life_tcp)
set_property(TEST ${gpu_tcp_tests} APPEND PROPERTY ENVIRONMENT KVCACHE_TRANSPORT=tcp)
set_property(TEST ${gpu_tests} ${gpu_tcp_tests} gpu_life gpu_life_pieces APPEND PROPERTY
	ENVIRONMENT "LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/tests/fake/cuda")

# Each loss is noticed, and names what it leaves undone; how soon is for an idle machine.
kvrail_add_test(bench_detect COMMAND kv_detect --kills 20 --restarts 5 --stops 1)
kvrail_add_test(bench_detect_long COMMAND kv_detect --bars LABELS long TIMEOUT 600)
set_property(TEST bench_detect_long PROPERTY RUN_SERIAL TRUE) # its bars are those of a machine that does nothing else

if(TARGET kv_pd_bench)
	set(bench $<TARGET_FILE:kv_pd_bench>)
	set(tiny -b 1K -e 16K -f 4 -n 200 --pool 16M -i 6 -w 2)
	kvrail_add_test(bench_memory_of_a_gpu COMMAND ${expect} 0 "^ +16384 +200 " "Out of bounds values : 0 OK" --
		${bench} --local 1+1 --memory cuda:3 ${tiny})
	set_property(TEST bench_memory_of_a_gpu APPEND PROPERTY
		ENVIRONMENT "LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/tests/fake/cuda;KVCACHE_TRANSPORT=shm")
	kvrail_add_test(bench_memory_without_a_gpu COMMAND ${expect} 1 "there is no GPU 63 here" --
		${bench} --local 1+1 --memory cuda:63 ${tiny})
	kvrail_add_test(bench_one_sided COMMAND ${expect} 0 "^ +16384 +200 " "Out of bounds values : 0 OK" --
		${bench} --local 1+1 ${tiny})
	kvrail_add_test(bench_groups COMMAND ${expect} 0 "^ +16384 +200 " "Out of bounds values : 0 OK" --
		${bench} --local 2+2 --layers 2 --tensors 2 ${tiny})
	kvrail_add_test(bench_two_sided COMMAND ${expect} 0 "^ +16384 +200 " "Out of bounds values : 0 OK" --
		${bench} --local 2+2 --two-sided ${tiny})
	kvrail_add_test(bench_hot COMMAND ${expect} 0 "pools: hot" "Out of bounds values : 0 OK" --
		${bench} --local 1+1 --hot ${tiny})
	set(said_cma "path: process_vm_writev")
	set(said_ring "path: ring")
	foreach(path cma ring)
		kvrail_add_test(bench_${path} COMMAND ${CMAKE_COMMAND} -E env KVCACHE_SHM_PATH=${path}
			${expect} 0 -s UNREACHABLE ${said_${path}} "Out of bounds values : 0 OK" -- ${bench} --local 1+1 ${tiny})
	endforeach()
	kvrail_add_test(bench_corrupt COMMAND ${expect} 1 "Out of bounds values : 3 FAILED" "1 wrong bytes in block" --
		${bench} --local 2+2 --corrupt ${tiny})
	kvrail_add_test(bench_bad_option COMMAND ${expect} 2 "-b: '1X' is not a number" -- ${bench} -b 1X)
	if(KVRAIL_MPI)
		find_package(MPI QUIET COMPONENTS C)
		find_program(MPIRUN mpirun)
	endif()
	if(MPI_C_FOUND AND MPIRUN AND NOT KVRAIL_SANITIZE) # the replay under MPI shows the same
		kvrail_add_test(bench_mpi COMMAND ${expect} 0 "under MPI" "Out of bounds values : 0 OK" --
			${MPIRUN} -np 4 ${bench} --prefill 2 --decode 2 ${tiny})
	endif()
endif()

if(TARGET kv_pd_bench AND NOT KVRAIL_SANITIZE) # the scripts
	find_package(Python3 COMPONENTS Interpreter REQUIRED)
	if(MPI_C_FOUND AND MPIRUN)
		set(ranks mpi)
	else()
		set(ranks local)
	endif()
	kvrail_add_test(bench_test COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/bench_test.py
		${PROJECT_BINARY_DIR} ${ranks})
endif()
if(TARGET kv_floor)
	kvrail_add_test(floor_smoke COMMAND kv_floor --quick)
endif()
set(cost "") # of memory, where no sanitizer has its share: below 100 kB
if(NOT KVRAIL_SANITIZE)
	set(cost ": +[0-9]{1,2}\\.[0-9] kB")
endif()
kvrail_add_test(peer_cost_runs COMMAND ${expect} 0 "16 peers over shm${cost}.* 2\\.00 descriptors" -- $<TARGET_FILE:peer_cost> 16)
kvrail_add_test(peer_cost_tcp COMMAND ${expect} 0 "16 peers over tcp${cost}.* 2\\.00 descriptors" -- $<TARGET_FILE:peer_cost> 16)
set_property(TEST peer_cost_tcp APPEND PROPERTY ENVIRONMENT KVCACHE_TRANSPORT=tcp)
foreach(pages auto huge populate lazy)
	kvrail_add_test(pool_pass_${pages} COMMAND ${CMAKE_COMMAND} -E env KVCACHE_POOL_PAGES=${pages}
		${expect} 0 -s UNSUPPORTED "memfd pool" -- $<TARGET_FILE:pool_pass> 32 4096)
endforeach()
kvrail_add_test(net_perf_runs COMMAND net_perf -b 2048 -e 65536 $<TARGET_FILE:kvrail_net>)
set_property(TEST net_perf_runs APPEND PROPERTY ENVIRONMENT ${net_env})

kvrail_add_test(tcp_call_runs COMMAND tcp_call -n 50 -r 1)

# They leave the cleaning up to their process's end.
kvrail_add_test(kv_cost_runs COMMAND kv_cost 1024 16 2 1)
kvrail_add_test(kv_cost_floor COMMAND ${expect} 0 "^[0-9.]+ [0-9.]+\n" -- $<TARGET_FILE:kv_cost> 1024 16 2 1 2 2 1 0 0 0 1)
if(NOT KVRAIL_SANITIZE)
	kvrail_add_test(curves_run COMMAND Python3::Interpreter -B ${CMAKE_CURRENT_SOURCE_DIR}/curves.py ${PROJECT_BINARY_DIR}
		--transports shm --curves tensors --blocks 16 --rounds 1)
endif()
kvrail_add_test(net_cost_runs COMMAND net_cost $<TARGET_FILE:kvrail_net> 4096 4 1)
set_property(TEST kv_cost_runs kv_cost_floor net_cost_runs APPEND PROPERTY ENVIRONMENT ASAN_OPTIONS=detect_leaks=0)
set_property(TEST net_cost_runs APPEND PROPERTY ENVIRONMENT ${net_env} KVCACHE_TRANSPORT=shm)
