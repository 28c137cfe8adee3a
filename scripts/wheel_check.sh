#!/usr/bin/env bash
# Usage: wheel_check.sh [SUITE...]
#
# Installs the wheel of dist/ in bare roots of Debian (bookworm and trixie by default: python3 and
# what it needs, no compiler, no library of QUIC, TLS or XDP), and runs quic_echo there: over UDP
# sockets on loopback, and over AF_XDP between two network namespaces. Prints a table; the exit
# status is 0 if every cell is good. Needs root, debootstrap and iproute2.
#
# HOSTSTACK_ROOTS=FOLDER    where the roots are kept between runs (/var/cache/hoststack/roots)
set -euo pipefail
cd "$(dirname "$0")/.."

WHEELS=$PWD/build/wheel/wheelhouse
LOAD=(nclients 2/2 test-bytes:assert)
# inside a root; its own /usr/local/bin is not in everybody's PATH
PROGRAMS=/opt/hoststack/bin
STEM=hswheel-$$

say() { echo "wheel-check: $*" >&2; }

. scripts/roots.sh

# pip has no network in a root: this machine's loads what the wheel depends on, for its Python.
load_dependencies() {
	local version=$1 platform platforms=()
	for platform in manylinux2014 manylinux_2_17 manylinux_2_28 manylinux_2_34 manylinux_2_35; do
		platforms+=(--platform "${platform}_$(uname -m)")
	done
	mkdir -p "$WHEELS"
	.venv/bin/python -m pip download -qq --disable-pip-version-check --only-binary :all: \
		--python-version "$version" "${platforms[@]}" --dest "$WHEELS" "$wheel"
}

# Runs a command in a root, in a mount namespace of its own: nothing stays mounted after it.
# Called as `unshare --mount bash -c "$IN_ROOT" - ROOT COMMAND...`, in a network namespace or not.
IN_ROOT='root=$1; shift
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
mount --rbind /dev "$root/dev"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 "$@"'

in_root() {
	unshare --mount bash -ec "$IN_ROOT" - "$@"
}

install_wheel() {
	local root=$1 packages=/opt/wheels wheels
	rm -rf "$root/opt/hoststack" "$root$packages"
	mkdir -p "$root$packages"
	cp "$WHEELS"/*.whl "$root$packages"
	in_root "$root" python3 -m venv /opt/hoststack
	wheels=("$root$packages"/*.whl)
	in_root "$root" "$PROGRAMS/pip" install -qq --disable-pip-version-check --no-index \
		"${wheels[@]#"$root"}"
	rm -rf "$root$packages"
}

# Runs a server and a client of quic_echo: $1 a name for the log, $2 and $3 commands that run
# something at the server and at the client, $4 the server's URI, the rest both sides' words.
echo_over() {
	local name=$1 server=$2 client=$3 uri=$4 log=$ROOTS/$1.server.log port="" pid
	shift 4
	: >"$log" # tail may start before the server
	$server "$PROGRAMS/quic_echo" server uri "$uri" "$@" "${LOAD[@]}" >"$log" 2>&1 &
	pid=$!
	# tail ends with the server: a server that fails is no endless wait
	port=$(tail -n +1 -f --pid="$pid" "$log" | sed -n 's/.*listening on .* port \([0-9]*\).*/\1/p;T;q')
	if [ -z "$port" ] || ! $client "$PROGRAMS/quic_echo" client uri "${uri%:*}:$port" TX=4M "$@" \
		"${LOAD[@]}" >"$ROOTS/$name.client.log" 2>&1; then
		kill "$pid" 2>/dev/null || true
		wait "$pid" || true
		echo "FAILED (see $ROOTS/$name.*.log)"
		return
	fi
	wait "$pid" || { echo "FAILED at the server (see $log)" && return; }
	echo ok
}

over_udp() {
	echo_over "$1-udp-$2" "in_root $ROOTS/$1" "in_root $ROOTS/$1" quic://127.0.0.1:0 engine "$2"
}

in_namespace() {
	local side=$1
	shift
	ip netns exec "$STEM-$side" unshare --mount bash -ec "$IN_ROOT" - "$@"
}

over_af_xdp() {
	local suite=$1 engine=$2
	echo_over "$suite-af_xdp-$engine" "in_namespace server $ROOTS/$suite" \
		"in_namespace client $ROOTS/$suite" quic://10.98.0.1:4433 interface hswheel link af_xdp \
		engine "$engine"
}

make_namespaces() {
	local side number=1
	for side in server client; do
		ip netns add "$STEM-$side"
		ip -n "$STEM-$side" link set lo up
	done
	ip -n "$STEM-server" link add hswheel type veth peer name hswheel netns "$STEM-client"
	for side in server client; do
		ip -n "$STEM-$side" address add "10.98.0.$number/24" dev hswheel
		ip -n "$STEM-$side" link set hswheel up
		number=$((number + 1))
	done
}

remove_namespaces() {
	local side
	for side in server client; do
		ip netns del "$STEM-$side" 2>/dev/null || true
	done
}

check_tools
wheel=$(echo dist/hoststack-*.whl)
[ -e "$wheel" ] || fail "no wheel in dist/: run make wheel"
[ $# -gt 0 ] || set -- bookworm trixie
trap remove_namespaces EXIT
make_namespaces
is_good=yes
rows=()
for suite; do
	make_root "$suite" "$suite" python3,python3-venv
	rm -rf "$WHEELS"
	load_dependencies "$(chroot "$ROOTS/$suite" python3 -c \
		'import sys; print("%d.%d" % sys.version_info[:2])')"
	install_wheel "$ROOTS/$suite"
	for link in udp af_xdp; do
		for engine in native aioquic; do
			result=$("over_$link" "$suite" "$engine")
			[ "$result" = ok ] || is_good=
			rows+=("| $suite | $(basename "$wheel") | $link | $engine | $result |")
		done
	done
done
printf '| system | installed | link | engine | result |\n|---|---|---|---|---|\n'
printf '%s\n' "${rows[@]}"
[ -n "$is_good" ]
