#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# containers.sh -- deploy/Dockerfile and compose.yml with docker: two containers that share a network and nothing else
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

why="compose.yml was not run by compose: deploy_podman builds deploy/Dockerfile and runs the two containers"
docker info >/dev/null 2>&1 || {
	echo "skipped: no docker daemon here: $why"
	exit 77
}
docker compose version >/dev/null 2>&1 || {
	echo "skipped: docker has no compose here: $why"
	exit 77
}
compose() {
	docker compose -p "kvrail-test-$$" -f deploy/compose.yml "$@"
}
trap 'compose down --volumes --remove-orphans' EXIT
said=$(compose up --build --exit-code-from prefill 2>&1) || {
	printf '%s\n' "$said"
	exit 1
}
printf '%s\n' "$said" | tail -n 40
grep -q 'transport tcp' <<<"$said" # nothing of one host is shared
docker run --rm kvrail doctor
