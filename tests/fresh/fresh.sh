#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fresh.sh -- the README's commands on a machine that has nothing but Debian 12 and apt; `./dev fresh --help`
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(cd "$here/../.." && pwd)

usage() {
	cat <<'END'
usage: ./dev fresh [--keep] [STEP...]

Makes a minimal Debian 12 (mmdebstrap), clones the committed state of this tree into its /root, and runs there, as
root and with nothing else installed:

  demo      ./dev demo
  test      ./dev test
  install   pip install . in a virtual environment; then pip wheel, and its wheel in a second minimal Debian that has
            python3-venv and no compiler, no RDMA library and no source tree
  deb       ./dev package; then its packages in a second minimal Debian: installed by one command, the README's
            program compiled and run, purged without a rest

The first three by default, in this order. Uncommitted changes are not in the clone. The first two share a machine, and
what `./dev` needs it installs itself. The machine is a folder with namespaces of its own for mounts and processes:
nothing of it is left when the command ends, however it ends. It uses this machine's network, apt sources, proxy and
certificates, its kernel and /dev/kvm.

--keep      leave the folders, and say where they are

It needs root, about 8 GB in TMPDIR (default /var/tmp) and, with the tests, as long as ./dev test and 10 minutes.
Exit status: 0; 1 if a step failed; 77 where it cannot run, with the reason; 2 for a wrong argument. The log of
everything is build-fresh/fresh.log.
END
}

began=$SECONDS
log=$tree/build-fresh/fresh.log
home=/root # in the machine

say() {
	printf 'fresh: %2d:%02d %s\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$*" | tee -a "$log"
}

skip() {
	echo "skipped: $*"
	exit 77
}

# ---------------------------------------------------------------- inside: process 1 of the new namespaces

# Everything mounted here is gone when the last process of the namespace is.
inside() {
	local root=$1 node
	[ $$ = 1 ] || exit 2 # these mounts are for namespaces of their own
	mount --make-rprivate /
	mount -t proc proc "$root/proc"
	mount -t sysfs sysfs "$root/sys" 2>/dev/null || mount --rbind /sys "$root/sys"
	mount -t tmpfs -o mode=755 dev "$root/dev"
	for node in null zero full random urandom tty kvm fuse userfaultfd; do
		[ -e "/dev/$node" ] || continue
		: >"$root/dev/$node"
		mount --bind "/dev/$node" "$root/dev/$node"
	done
	mkdir "$root/dev/pts" "$root/dev/shm"
	mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
	mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
	ln -s pts/ptmx "$root/dev/ptmx"
	ln -s /proc/self/fd "$root/dev/fd"
	ln -s fd/0 "$root/dev/stdin"
	ln -s fd/1 "$root/dev/stdout"
	ln -s fd/2 "$root/dev/stderr"
	# shellcheck disable=SC1091
	. "$root/etc/fresh-environment"
	exec chroot "$root" env -i "${environment[@]}" bash -c "$2" </dev/null
}

# in_machine ROOT COMMAND: as root in the machine; what it says goes to the log
in_machine() {
	unshare --mount --pid --ipc --fork --kill-child -- "$here/fresh.sh" --inside "$@" >>"$log" 2>&1 &
	running=$!
	wait $running || return
	running=
}

# ---------------------------------------------------------------- the machine

# Sources and settings of this machine's apt where it is a Debian 12, so that it works wherever apt does here.
make_base() {
	local base=$1 file sources=() options=()
	if grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release && grep -qs '^ID=debian' /etc/os-release; then
		for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
			# Debian's own: packages of others, or their keys, are no part of a fresh machine
			if grep -qs 'debian\.org' "$file"; then sources+=("$file"); fi
		done
	fi
	[ ${#sources[@]} != 0 ] || sources=("deb http://deb.debian.org/debian bookworm main")
	mkdir "$work/apt"
	for file in /etc/apt/apt.conf /etc/apt/apt.conf.d/*; do
		if grep -qsE '^[[:space:]]*Acquire::(http|https|Retries|Check)' "$file"; then
			cp "$file" "$work/apt/"
			options+=("--aptopt=$file")
		fi
	done
	mmdebstrap --variant=apt --mode=root "${options[@]}" bookworm "$base" "${sources[@]}" >>"$log" 2>&1 </dev/null ||
		{
			tail -n 5 "$log"
			skip "mmdebstrap cannot make a Debian 12 here (no network or mirror?); the log is $log"
		}
	# mmdebstrap keeps them, but under a name of its own.
	find "$work/apt" -type f -exec cp {} "$base/etc/apt/apt.conf.d/" \;
	cp /etc/resolv.conf "$base/etc/resolv.conf"
	echo fresh >"$base/etc/hostname"
	printf '127.0.0.1 localhost fresh\n::1 localhost\n' >"$base/etc/hosts"
	make_environment "$base"
}

# What a person at the machine would have: proxy and certificate of the network, and no more.
make_environment() {
	local name certificates
	environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "HOME=$home" LANG=C.UTF-8 TERM=dumb
		"JOBS=${JOBS:-$(nproc)}")
	for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_INDEX_URL PIP_DEFAULT_TIMEOUT \
		KVRAIL_REQUIRE; do
		[ -z "${!name:-}" ] || environment+=("$name=${!name}")
	done
	certificates=${PIP_CERT:-${REQUESTS_CA_BUNDLE:-${SSL_CERT_FILE:-}}}
	if [ -n "$certificates" ] && [ -f "$certificates" ]; then
		mkdir -p "$1/etc/ssl"
		cp "$certificates" "$1/etc/ssl/fresh-certificates.crt"
		for name in PIP_CERT REQUESTS_CA_BUNDLE SSL_CERT_FILE; do
			environment+=("$name=/etc/ssl/fresh-certificates.crt")
		done
	fi
	declare -p environment >"$1/etc/fresh-environment"
}

# tests/lint/programs.py takes these for granted.
check_base() {
	local absent
	absent=$(python3 -B "$tree/tests/lint/programs.py" --base |
		chroot "$work/base" sh -c 'while read -r name; do command -v "$name" >/dev/null || echo "$name"; done')
	[ -z "$absent" ] || {
		failed=1
		say "FAILED: tests/lint/programs.py says that every Debian has ${absent//$'\n'/ }"
	}
}

machine() {
	cp -a --reflink=auto "$work/base" "$work/$1"
	git clone --quiet --no-hardlinks "$tree" "$work/$1$home/kvrail"
	git -C "$work/$1$home/kvrail" checkout --quiet --detach "$commit"
}

# ---------------------------------------------------------------- the steps

readme() {
	[ -d "$work/first" ] || machine first
	in_machine "$work/first" "cd ~/kvrail && ./dev $1"
}

# Headers and a compiler as docs/python.md names them, on a machine of its own; then the wheel where there is nothing.
install_step() {
	rm -rf "$work/builder" "$work/bare"
	machine builder
	cp -a --reflink=auto "$work/base" "$work/bare"
	cp "$here/installed.py" "$work/bare$home/"
	cp "$here/installed.py" "$work/builder$home/"
	in_machine "$work/builder" "set -e
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -q
		apt-get install -qy --no-install-recommends python3-venv python3-dev gcc libc6-dev libibverbs-dev librdmacm-dev
		python3 -m venv ~/venv
		~/venv/bin/pip install --disable-pip-version-check ~/kvrail
		cd / && ~/venv/bin/python ~/installed.py
		~/venv/bin/pip wheel --disable-pip-version-check --no-deps -w ~/dist ~/kvrail" || return
	cp "$work/builder$home"/dist/kvrail-*.whl "$work/bare$home/"
	in_machine "$work/bare" "set -e
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -q
		apt-get install -qy --no-install-recommends python3-venv
		python3 -m venv ~/venv
		~/venv/bin/pip install --disable-pip-version-check --no-index ~/kvrail-*.whl
		cd / && ~/venv/bin/python ~/installed.py"
}

# Where they are built there is lintian, too, and ./dev package asks it. What is said of them stands last in the log.
deb_step() {
	local there=$work/shop$home/packages
	machine packager
	in_machine "$work/packager" "cd ~/kvrail && ./dev package && ./dev package rpm &&
		rpm -qp --provides dist/kvrail-libs-*.rpm | grep '^libkvrail\.so\..*64bit'" || return
	cp -a --reflink=auto "$work/base" "$work/shop"
	mkdir "$there"
	cp "$work/packager$home"/kvrail/dist/*.deb "$here/packages.sh" "$there"
	python3 -B "$tree/tests/lint/quickstart.py" --write "$tree" "$there"
	in_machine "$work/shop" "$home/packages/packages.sh $home/packages" || return
	grep '^packages: ' "$log"
}

# ---------------------------------------------------------------- from outside

work="" running="" keep=""
clean_up() {
	[ -z "$running" ] || kill -KILL "$running" 2>/dev/null || true # unshare: all in its namespaces dies with it
	wait
	if [ -n "$keep" ]; then
		echo "fresh: kept in $work"
	elif [ -n "$work" ]; then
		rm -rf --one-file-system "$work"
	fi
}

main() {
	local steps=() step what failed=0
	while [ $# -gt 0 ]; do
		case $1 in
		--keep) keep=1 ;;
		demo | test | install | deb) steps+=("$1") ;;
		-h | --help)
			usage
			exit 0
			;;
		*)
			usage >&2
			exit 2
			;;
		esac
		shift
	done
	[ ${#steps[@]} != 0 ] || steps=(demo test install)

	[ "$(id -u)" = 0 ] || skip "./dev fresh needs root: it mounts, and changes its root directory"
	for what in mmdebstrap git; do
		command -v $what >/dev/null || skip "no $what here; as root: apt-get install $what"
	done
	unshare --mount --pid --ipc --fork true 2>/dev/null || skip "this container may make no namespaces (unshare)"
	commit=$(git -C "$tree" rev-parse HEAD 2>/dev/null) || skip "$tree is no git checkout: there is nothing to clone"

	mkdir -p "$tree/build-fresh"
	: >"$log"
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/kvrail-fresh.XXXXXX")
	chmod 755 "$work"
	[ -z "$(git -C "$tree" status --porcelain)" ] || say "note: uncommitted changes are not in the clone"
	say "making a minimal Debian 12"
	make_base "$work/base"
	check_base
	say "it holds $(chroot "$work/base" dpkg-query -W -f '.\n' | wc -l) packages and commit $(git -C "$tree" log -1 --format='%h %s')"
	for step in "${steps[@]}"; do
		what="./dev $step"
		case $step in
		install) what="pip install" ;;
		deb) what="./dev package" ;;
		esac
		say "$what"
		case $step in
		install) install_step ;;
		deb) deb_step ;;
		*) readme "$step" ;;
		esac || {
			failed=1
			tail -n 60 "$log"
			say "$what FAILED"
			continue
		}
		[ "$step" != test ] || sed -n '/^Skipped, not counted\|^Nothing was skipped/,$p' "$log"
		say "$what: passed"
	done
	say "the log is $log"
	exit $failed
}

if [ "${1:-}" = --inside ]; then
	shift
	inside "$@"
fi
main "$@"
