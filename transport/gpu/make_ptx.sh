#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make_ptx.sh NVCC [OUT]: copy.ptx from copy.cu, for GPUs of compute capability 8.0 and later; the driver compiles it for the
# one that it finds. The version line is lowered, as a driver refuses any that is newer than itself and nothing here needs it.
set -euo pipefail
out=$(realpath "${2:-$(dirname "$0")/copy.ptx}")
cd "$(dirname "$0")"
"${1:?the path of nvcc}" -ptx -arch=compute_80 -O3 -o "$out" copy.cu
sed -i -e '/^\/\//d' -e 's/^\.version .*/.version 7.0/' "$out"
