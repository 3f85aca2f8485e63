#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# sbatch.sh -- a job of Slurm: blocks from its last node to its first one, each compared there; `kvrail doctor` on every node before
#
#     sbatch deploy/sbatch.sh [option of kvrail bench]...
#SBATCH --job-name=kvrail
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=00:10:00
set -euo pipefail
ulimit -l unlimited 2>/dev/null || echo "memory for the adapter is limited to $(ulimit -l) KiB; PropagateResourceLimits in slurm.conf" >&2

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
decode=${nodes[0]}
prefill=${nodes[-1]}
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node

srun --label kvrail doctor
srun --nodes=1 --ntasks=1 --overlap --nodelist="$decode" kvrail bench --listen "0.0.0.0:$port" --wait 60 &
until (: <"/dev/tcp/$decode/$port") 2>/dev/null; do sleep 0.2; done # the job's time limits it
srun --nodes=1 --ntasks=1 --overlap --nodelist="$prefill" kvrail bench "$decode:$port" "$@"
wait $!
