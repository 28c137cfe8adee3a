#!/usr/bin/env bash
# Usage: bootstrap.sh [run|test]
#
# Sets up what building and running take (run), and with "test" also what only the tests take:
# Debian's packages, and a virtual environment in .venv. Quick when there is nothing to do.
#
# HOSTSTACK_WITHOUT=native,xdp     build without the native engine and HTTP/3 in C, without AF_XDP;
#                                  their packages are not installed
# HOSTSTACK_NO_APT_SOURCE=1        never add a source to apt
#
# What can't be installed is left out of the build, and said: .venv/without has the parts.
set -euo pipefail
cd "$(dirname "$0")/.."

# The one list of Debian's packages. To compile the C core, and for the virtual environment:
CORE_PACKAGES=(gcc libc6-dev linux-libc-dev python3-dev python3-venv)
# AF_XDP, and namespaces and virtual links for the demo.
XDP_PACKAGES=(clang libbpf-dev libxdp-dev iproute2 ethtool)
# The native engine: TLS, ChaCha20, QUIC. Debian 12 has ngtcp2 in bookworm-backports.
NATIVE_PACKAGES=(libgnutls28-dev libssl-dev)
NGTCP2_PACKAGES=(libngtcp2-dev libngtcp2-crypto-gnutls-dev)
# HTTP/3 in C; from where ngtcp2 comes.
NGHTTP3_PACKAGES=(libnghttp3-dev)
# What only the tests take.
TEST_PACKAGES=(
	libclang-rt-dev llvm # libFuzzer, and readable reports of the sanitizers
	pkg-config libelf-dev zlib1g-dev
	python3-bpfcc "linux-headers-$(dpkg --print-architecture 2>/dev/null || true)" # `hoststack trace`
	vagrant # vagrant/Vagrantfile
	caddy # an HTTP/3 server by somebody else
	chromium-headless-shell libnss3-tools # a browser, and a CA for it
	iproute2 ethtool
	procps # `kill`, which reloads a unit
	debootstrap # roots of other Debians
)
# QUIC programs by somebody else.
NGTCP2_TEST_PACKAGES=(ngtcp2-client ngtcp2-server)
NGTCP2_LEAST=1.11
NGHTTP3_LEAST=1.8

say() { echo "bootstrap: $*"; }

is_left_out() { [[ ",${HOSTSTACK_WITHOUT:-}," == *",$1,"* ]]; }

# Of the given packages those that are not installed, or older than $1; empty for any version.
missing() {
	local least=$1 package status version
	shift
	local -A installed=()
	while IFS=$'\t' read -r package status version; do
		# a package that was removed still has a version, if its configuration stayed
		if [ "$status" = installed ]; then installed[$package]=$version; fi
	done < <(dpkg-query -W -f '${Package}\t${db:Status-Status}\t${Version}\n' "$@" 2>/dev/null)
	for package in "$@"; do
		dpkg --compare-versions "${installed[$package]:-}" ge "${least:-0}" || echo "$package"
	done
}

# Sets `as_root`; returns 1 for a user who can't become root.
find_privilege() {
	as_root=()
	[ "$(id -u)" != 0 ] || return 0
	command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
	as_root=(sudo -n)
}

apt_install() {
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends "$@" </dev/null >/dev/null
}

# The mirror that apt has Debian's own packages of a suite from, as apt's configuration names it.
debian_mirror() {
	apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' |
		sed -n "s|^Packages Debian $1 main ||p" | head -n 1
}

# Whether apt has a version of ngtcp2 that will do; where it has, `suite` says which one.
find_ngtcp2() {
	local version from
	while IFS='|' read -r _ version from; do
		if dpkg --compare-versions "${version// /}" ge "$NGTCP2_LEAST"; then
			suite=/$(sed -n 's|.* \([^ ]*\)/[^/ ]* [^ ]* Packages$|\1|p' <<<"$from")
			return 0
		fi
	done < <(apt-cache madison libngtcp2-dev)
	return 1
}

# Debian 12's own ngtcp2 is too old: tell apt of the backports. Returns 1 where that can't be.
add_backports() {
	local codename mirror file=/etc/apt/sources.list.d/bookworm-backports.sources
	local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	[ "$codename" = bookworm ] || {
		say "apt has no ngtcp2 $NGTCP2_LEAST or newer"
		return 1
	}
	[ -z "${HOSTSTACK_NO_APT_SOURCE:-}" ] || {
		say "ngtcp2 $NGTCP2_LEAST is in bookworm-backports, which apt does not know, and"
		say "HOSTSTACK_NO_APT_SOURCE forbids to add it"
		return 1
	}
	mirror=$(debian_mirror bookworm)
	[ -n "$mirror" ] || {
		say "ngtcp2 $NGTCP2_LEAST is in bookworm-backports, and apt has no mirror of Debian 12 to"
		say "take it from: add one to apt's sources"
		return 1
	}
	say "adding bookworm-backports at $mirror to apt's sources, for ngtcp2: $file"
	say "(HOSTSTACK_NO_APT_SOURCE=1 forbids this)"
	{
		printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\n' "$mirror"
		[ ! -e "$keyring" ] || echo "Signed-By: $keyring"
	} | "${as_root[@]}" tee "$file" >/dev/null
	"${as_root[@]}" apt-get update -qq -o Dir::Etc::SourceParts=/dev/null \
		-o "Dir::Etc::SourceList=$file" -o APT::Get::List-Cleanup=0 >/dev/null && find_ngtcp2 || {
		say "it is not there: taking it out of apt's sources again"
		"${as_root[@]}" rm -f "$file"
		return 1
	}
}

# Installs packages of one kind, or says what is missing; goes on either way.
install_kind() {
	local what=$1
	shift
	[ $# -gt 0 ] || return 0
	say "installing $what: $*"
	apt_install "$@" || say "apt-get failed: ask an administrator for: $*"
}

install_packages() {
	local core xdp=() native=() ngtcp2=() tests=() as_root suite=""
	command -v dpkg-query >/dev/null || {
		say "this is not Debian: what is missing has to be installed by hand; Debian's names are"
		say "${CORE_PACKAGES[*]} ${XDP_PACKAGES[*]} ${NATIVE_PACKAGES[*]} ${NGTCP2_PACKAGES[*]} \
			${NGHTTP3_PACKAGES[*]}"
		return 0
	}
	mapfile -t core < <(missing "" "${CORE_PACKAGES[@]}")
	is_left_out xdp || mapfile -t xdp < <(missing "" "${XDP_PACKAGES[@]}")
	if ! is_left_out native; then
		mapfile -t native < <(missing "" "${NATIVE_PACKAGES[@]}")
		mapfile -t ngtcp2 < <(
			missing "$NGTCP2_LEAST" "${NGTCP2_PACKAGES[@]}"
			missing "$NGHTTP3_LEAST" "${NGHTTP3_PACKAGES[@]}"
		)
	fi
	if [ "$purpose" = test ]; then
		mapfile -t tests < <(missing "" "${TEST_PACKAGES[@]}")
		is_left_out native || mapfile -t -O ${#ngtcp2[@]} ngtcp2 < <(
			missing "$NGTCP2_LEAST" "${NGTCP2_TEST_PACKAGES[@]}"
		)
	fi
	local all=("${core[@]}" "${xdp[@]}" "${native[@]}" "${ngtcp2[@]}" "${tests[@]}")
	[ ${#all[@]} -gt 0 ] || return 0
	is_complete=
	find_privilege || {
		say "not root: ask an administrator for: apt-get install --no-install-recommends ${all[*]}"
		[ ${#ngtcp2[@]} -eq 0 ] || say "(ngtcp2 has to be $NGTCP2_LEAST or newer, nghttp3 $NGHTTP3_LEAST)"
		say "going on with what is there"
		return 0
	}
	"${as_root[@]}" apt-get update -qq ||
		say "no package index could be read; trying with the one that is there"
	install_kind "what compiling takes" "${core[@]}"
	install_kind "what AF_XDP takes" "${xdp[@]}"
	install_kind "what the native engine takes" "${native[@]}"
	if [ ${#ngtcp2[@]} -gt 0 ] && { find_ngtcp2 || add_backports; }; then
		install_kind "QUIC and HTTP/3" "${ngtcp2[@]/%/$suite}"
	fi
	install_kind "what the tests take" "${tests[@]}"
}

find_python() {
	local candidate
	# Debian's own first: its headers are what python3-dev installs.
	for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
		if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			echo "$candidate"
			return
		fi
	done
	say "no Python 3.11 or newer was found: install python3" >&2
	exit 1
}

# The parts that are left out of the build: what HOSTSTACK_WITHOUT names, else what can't be built.
choose_parts() {
	local why
	why=$(mktemp)
	if [ -n "${HOSTSTACK_WITHOUT+set}" ]; then
		.venv/bin/python setup.py --quiet missing_parts >/dev/null 2>"$why" || {
			cat "$why"
			exit 1
		}
	elif [ -n "$is_complete" ]; then
		HOSTSTACK_WITHOUT=
	else
		HOSTSTACK_WITHOUT=$(.venv/bin/python setup.py --quiet missing_parts 2>"$why")
	fi
	export HOSTSTACK_WITHOUT
	if [ -n "$HOSTSTACK_WITHOUT" ]; then
		say "BUILDING WITHOUT ${HOSTSTACK_WITHOUT} (HOSTSTACK_WITHOUT=$HOSTSTACK_WITHOUT)"
		sed 's/^/bootstrap:   /' "$why"
		! is_left_out native || say "aioquic does the work of the native engine, and of nghttp3"
		! is_left_out xdp || say "UDP sockets do the work of AF_XDP"
	fi
	rm -f "$why"
	echo "$HOSTSTACK_WITHOUT" >.venv/without
}

# What pip installs from: the tables of pyproject.toml that name packages.
list_key() {
	"$1" -c 'import hashlib, tomllib
table = tomllib.load(open("pyproject.toml", "rb"))
key = repr((table["build-system"], table["project"]))
print(hashlib.sha256(key.encode()).hexdigest()[:16])'
}

make_environment() {
	local place
	python=$(find_python)
	# an environment that was made elsewhere, or by another Python, does not work here
	place=.venv/$({ pwd; "$python" -VV; } | sha256sum | cut -c1-16).place
	[ ! -e "$place" ] || return 0
	say "making a virtual environment in .venv ($("$python" -V))"
	rm -rf .venv
	"$python" -m venv .venv || {
		rm -rf .venv
		say "no virtual environment could be made: ask an administrator for python3-venv"
		exit 1
	}
	pip_install "setuptools>=77" "cffi>=1.16" || {
		rm -rf .venv
		say "pip failed: it needs a package index with setuptools and cffi"
		exit 1
	}
	touch "$place"
}

pip_install() {
	.venv/bin/python -m pip install -qq --disable-pip-version-check "$@"
}

install_python_packages() {
	local made what=.
	[ "$purpose" = run ] || what='.[test]'
	made=.venv/$(list_key "$python")
	if [ -e "$made.test" ] || [ -e "$made.$purpose" ]; then
		return 0
	fi
	say "installing Python packages"
	if pip_install --no-build-isolation --editable "$what"; then
		touch "$made.$purpose"
	elif .venv/bin/python -c 'import aioquic, cffi, cryptography, msgspec, pyroute2, trio'; then
		say "pip failed: going on with the Python packages that are there"
	else
		say "pip failed: it needs a compiler, and a package index with what pyproject.toml lists"
		exit 1
	fi
}

purpose=${1:-run}
case $purpose in
run | test) ;;
*)
	say "usage: bootstrap.sh [run|test]" >&2
	exit 2
	;;
esac
is_complete=yes
command -v dpkg-query >/dev/null || is_complete=
install_packages
make_environment
choose_parts
install_python_packages
