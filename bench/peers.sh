#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# peers.sh -- other engines' programs beside ours over Soft-RoCE: makes a virtual environment with NIXL and Mooncake in the
# user's cache once, and with this tree's kvrail (or the wheel KVRAIL_WHEEL), then runs peers.py in a guest.
#
# usage: bench/peers.sh [FILE.json [ENGINE...]]
#
# The engines are kvrail, nixl, "nixl over kvrail" and mooncake; all of them take twenty minutes on two cores, NIXL's two three.
here=$(cd "$(dirname "$0")" && pwd)
venv=${XDG_CACHE_HOME:-$HOME/.cache}/kvrail-peers
NIXL=1.5.1 # as tests/nixl/wheels.py

skip() {
	echo "skipped: $*"
	exit 77
}

[ -x "$venv/bin/python" ] || python3 -m venv "$venv" || skip "python3 cannot make a virtual environment (python3-venv)"
# Without what they depend on: NIXL asks for all of torch and CUDA, and uses none of it for host memory.
"$venv/bin/pip" install -q --no-deps numpy "nixl-cu12==$NIXL" mooncake-transfer-engine-non-cuda ||
	skip "pip cannot install NIXL and Mooncake; the lines above say why"
"$venv/bin/pip" install -q --force-reinstall --no-deps "${KVRAIL_WHEEL:-$here/..}" || exit 1
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
COMMIT=${COMMIT:-$(git -C "$here" describe --always --dirty)}
folder=
if [ -n "${1:-}" ]; then # the guest writes into this folder alone
	folder=$(cd "$(dirname "$1")" && pwd) || exit 1
	PEERS_JSON=$folder/$(basename "$1")
	export PEERS_JSON
	shift
fi
export COMMIT
exec "$here/../tests/rxe/rxe" --memory 4096 --timeout 2400 --verbose ${folder:+--writable "$folder"} \
	"$venv/bin/python" -B "$here/peers.py" "$site" "$@"
