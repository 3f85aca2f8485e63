# SPDX-License-Identifier: Apache-2.0
# tests.cmake -- short runs of the replay; every one checks every byte
set(expect ${CMAKE_CURRENT_SOURCE_DIR}/expect.sh)
set(trace ${CMAKE_CURRENT_SOURCE_DIR}/traces/conversation-300.jsonl)
set(replay $<TARGET_FILE:kv_pd_replay>)
set(small --requests 40 --scale 32 --layers 3 --pool 32M --check-every 10 --timeout 10)

# Each way of moving bytes between two processes, and what the receiver says of it.
set(said_pool "path: memfd pool")
set(said_cma "path: process_vm_writev")
set(said_ring "path: ring")
foreach(path pool cma ring)
	foreach(ranks 1+1 2+2)
		string(REPLACE "+" "x" name ${ranks})
		kvrail_add_test(replay_${path}_${name} COMMAND ${CMAKE_COMMAND} -E env KVCACHE_SHM_PATH=${path}
			${expect} 0 -s UNREACHABLE ${said_${path}} "^wrong bytes +0$" "^requests +40 of 40" "^verdict +OK" --
			${replay} --local ${ranks} ${small} ${trace})
	endforeach()
endforeach()

# A stand-in for libcuda. On a GPU: tests/gpu/run.sh.
foreach(ranks 1+1 2+2)
	string(REPLACE "+" "x" name ${ranks})
	kvrail_add_test(replay_gpu_${name} COMMAND ${CMAKE_COMMAND} -E env KVCACHE_TRANSPORT=shm
		LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/tests/fake/cuda
		${expect} 0 "a rank, on a GPU" "^wrong bytes +0$" "^requests +40 of 40" "^verdict +OK" --
		${replay} --local ${ranks} --memory cuda:3 ${small} ${trace})
endforeach()
kvrail_add_test(replay_gpu_corrupt COMMAND ${CMAKE_COMMAND} -E env KVCACHE_TRANSPORT=shm
	LD_LIBRARY_PATH=${CMAKE_BINARY_DIR}/tests/fake/cuda
	${expect} 1 "^wrong bytes +1 in 1 places" "^verdict +FAIL" -- ${replay} --local 1+1 --memory cuda:3 --corrupt byte ${small} ${trace})

kvrail_add_test(replay_with_a_key COMMAND ${CMAKE_COMMAND} -E env KVCACHE_PSK_FILE=${KVRAIL_TEST_KEY}
	${expect} 0 -s UNREACHABLE "^wrong bytes +0$" "^verdict +OK" -- ${replay} --local 2+2 ${small} ${trace})

# Each geometry; a pool that makes it evict and stream.
foreach(model llama3-8b llama3-70b-tp8 qwen3-235b-tp4 deepseek-v3-mla)
	kvrail_add_test(replay_${model} COMMAND ${expect} 0 "^wrong bytes +0$" "^verdict +OK" --
		${replay} --local 2+1 --model ${model} ${small} ${trace})
endforeach()
kvrail_add_test(replay_all_layers COMMAND ${expect} 0 "^wrong bytes +0$" "94 of 94 layers" "^verdict +OK" --
	${replay} --local 1+1 --model qwen3-235b-tp4 --requests 20 --scale 32 --pool 64M ${trace})
kvrail_add_test(replay_evicts_and_streams COMMAND ${expect} 0 "^evictions +[1-9][0-9]* blocks; [1-9][0-9]* requests streamed"
	"^prefix hits +[1-9]" "^verdict +OK" --
	${replay} --local 2+2 --model llama3-70b-tp8 --requests 120 --scale 4 --layers 2 --pool 4M --source 1M ${trace})

# Deaths: of either kind of rank, with and without a replacement.
foreach(rank 0 3)
	kvrail_add_test(replay_kill_${rank} COMMAND ${expect} 0 "[1-9][0-9]* operations ended with KV_ERR_PEER_LOST"
		"0 succeeded wrongly" "^wrong bytes +0$" "^verdict +OK" --
		${replay} --local 2+2 ${small} --kill ${rank}@10 ${trace})
	kvrail_add_test(replay_kill_${rank}_restart COMMAND ${expect} 0 "[1-9][0-9]* operations ended with KV_ERR_PEER_LOST"
		"0 succeeded wrongly" "^wrong bytes +0$" "^requests +40 of 40" "^verdict +OK" --
		${replay} --local 2+2 ${small} --kill ${rank}@10 --restart ${trace})
endforeach()
kvrail_add_test(replay_kill_on_the_ring COMMAND ${CMAKE_COMMAND} -E env KVCACHE_SHM_PATH=ring
	${expect} 0 "0 succeeded wrongly" "^verdict +OK" --
	${replay} --local 2+2 ${small} --kill 1@10 --restart ${trace})

# The check that can fail: it must find exactly the damage that was done.
kvrail_add_test(replay_corrupt_byte COMMAND ${expect} 1 "^wrong bytes +1 in 1 places" "the rest is right"
	"^verdict +FAILED: bytes are wrong" -- ${replay} --local 1+1 ${small} --corrupt byte ${trace})
kvrail_add_test(replay_corrupt_swap COMMAND ${expect} 1 "^wrong bytes +65536 in 2 places" "it holds block 1 of the same"
	"it holds block 0 of the same" -- ${replay} --local 1+1 ${small} --corrupt swap ${trace})
kvrail_add_test(replay_corrupt_free COMMAND ${expect} 1 "^wrong bytes +1 in 1 places" "a free block" --
	${replay} --local 1+1 ${small} --corrupt free ${trace})

# What a stranger types wrongly.
kvrail_add_test(replay_bad_trace COMMAND ${expect} 2 "README.md:1: not JSON" --
	${replay} --local 1+1 ${CMAKE_CURRENT_SOURCE_DIR}/traces/README.md)
kvrail_add_test(replay_bad_option COMMAND ${expect} 2 "'llama' is not known; --model list prints all" --
	${replay} --model llama ${trace})
kvrail_add_test(replay_small_pool COMMAND ${expect} 2 "the pool must hold 16" --
	${replay} --local 1+1 --pool 1M ${trace})
kvrail_add_test(replay_json COMMAND ${expect} 0 "\"wrong_bytes\": 0" "\"exit_code\": 0" "\"p999_us\"" --
	${replay} --local 1+1 ${small} -J /dev/stdout ${trace})

# The whole excerpt on eight ranks, and deaths at many moments.
foreach(path pool cma ring)
	kvrail_add_test(replay_long_${path} COMMAND ${CMAKE_COMMAND} -E env KVCACHE_SHM_PATH=${path}
		${expect} 0 -s UNREACHABLE "^wrong bytes +0$" "^requests +300 of 300" "^verdict +OK" --
		${replay} --local 4+4 --scale 16 --layers 4 --pool 128M ${trace} LABELS long TIMEOUT 300)
	kvrail_add_test(replay_long_kills_${path} COMMAND ${CMAKE_COMMAND} -E env KVCACHE_SHM_PATH=${path}
		${CMAKE_CURRENT_SOURCE_DIR}/many_kills.sh ${replay} ${trace} LABELS long TIMEOUT 600)
endforeach()

# The same under mpirun. Open MPI leaks, and LeakSanitizer cannot stop its threads: the runs above look for leaks.
find_program(MPIRUN mpirun)
if(MPI_C_FOUND AND MPIRUN)
	set(expect ${CMAKE_COMMAND} -E env ASAN_OPTIONS=detect_leaks=0 ${expect})
	kvrail_add_test(replay_mpi COMMAND ${expect} 0 "under MPI" "^wrong bytes +0$" "^requests +40 of 40" "^verdict +OK" --
		${MPIRUN} -np 4 ${replay} --prefill 2 --decode 2 ${small} ${trace})
	kvrail_add_test(replay_mpi_kill COMMAND ${expect} 0 "0 succeeded wrongly" "^verdict +OK" --
		${MPIRUN} -np 4 ${replay} --prefill 2 --decode 2 ${small} --kill 2@10 ${trace})
	kvrail_add_test(replay_mpi_kill_restart COMMAND ${expect} 0 "0 succeeded wrongly" "^requests +40 of 40"
		"^verdict +OK" --
		${MPIRUN} -np 4 ${replay} --prefill 2 --decode 2 ${small} --kill 1@10 --restart ${trace})
	kvrail_add_test(replay_mpi_wrong_np COMMAND ${expect} 3 "4 ranks were asked for, but 2 were started" --
		${MPIRUN} -np 2 ${replay} --prefill 2 --decode 2 ${small} ${trace})
else()
	kvrail_add_test(replay_launched_without_mpi COMMAND ${CMAKE_COMMAND} -E env OMPI_COMM_WORLD_SIZE=2
		${expect} 3 "this build has no MPI" -- ${replay} ${small} ${trace})
	kvrail_add_test(replay_mpi COMMAND sh -c "echo 'skipped: built without MPI' && exit 77")
endif()
