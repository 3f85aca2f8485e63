#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# package.sh -- packages of a distribution; `./dev package --help`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
	cat <<'END'
usage: ./dev package [deb|rpm]

Builds this tree as a distribution does, and writes its packages into dist/. With deb, which is the default:

  libkvrail0.1         the shared library
  libkvrail-dev        headers, files for pkg-config and CMake, man pages of the functions
  kvrail-tools         the command kvrail and its man pages, alert rules, a script for bpftrace
  libnccl-net-kvrail   NCCL's plugin
  nixl-plugin-kvrail   NIXL's backend, where there is a g++

They depend on what the system has; nothing of it is linked in. Where lintian is installed, it has to find no error and no
warning. With rpm (needs the package rpm): the same split under Fedora's names, for a system with this one's glibc or a later one.

DEBFULLNAME and DEBEMAIL name who makes the packages.
END
}

flags() {
	DEB_BUILD_MAINT_OPTIONS="hardening=+all reproducible=+fixfilepath" dpkg-buildflags --get "$1"
}

build() {
	local kind=$1 folder=build-package libdir=()
	command -v dpkg-buildflags >/dev/null || {
		echo "dev: packages are made on Debian or Ubuntu, with dpkg-dev" >&2
		exit 1
	}
	umask 022
	SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
	export SOURCE_DATE_EPOCH
	[ "$kind" = deb ] || libdir=(-DCMAKE_INSTALL_LIBDIR=lib64)
	rm -rf "$folder/packages" "$folder/control" "$folder/CMakeCache.txt" # flags, and the place of libraries, are asked again
	echo "dev: building preset package in $folder"
	cmake --preset package --log-level=WARNING "${libdir[@]}" \
		-DKVRAIL_PACKAGER="${DEBFULLNAME:-kvrail developers} <${DEBEMAIL:-kvrail@localhost.localdomain}>" \
		-DCMAKE_C_FLAGS="$(flags CPPFLAGS) $(flags CFLAGS)" -DCMAKE_CXX_FLAGS="$(flags CPPFLAGS) $(flags CXXFLAGS)" \
		-DCMAKE_EXE_LINKER_FLAGS="$(flags LDFLAGS)" -DCMAKE_SHARED_LINKER_FLAGS="$(flags LDFLAGS)" \
		-DCMAKE_MODULE_LINKER_FLAGS="$(flags LDFLAGS)" >/dev/null
	cmake --build "$folder" -j "${JOBS:-$(nproc)}" --target kvrail_packages -- --quiet
	cpack --config "$folder/CPackConfig.cmake" -G "${kind^^}" -B "$folder/packages" >"$folder/cpack.log" 2>&1 || {
		cat "$folder/cpack.log"
		exit 1
	}
	mkdir -p dist
	rm -f dist/*kvrail*."$kind"
	mv "$folder"/packages/*."$kind" dist/
}

case ${1:-deb} in
deb | rpm) build "${1:-deb}" ;;
-h | --help)
	usage
	exit
	;;
*)
	usage >&2
	exit 2
	;;
esac
if [ "${1:-deb}" = deb ] && command -v lintian >/dev/null; then
	lintian --allow-root --fail-on error,warning dist/*.deb
fi
ls -l dist/*."${1:-deb}"
