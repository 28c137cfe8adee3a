#!/usr/bin/env bash
# Sets up what the build, the demo and the tests need: Debian's packages and a virtual environment
# in .venv. Quick when there is nothing to do; goes on with what is there when it can't install.
set -euo pipefail
cd "$(dirname "$0")/.."

# The one list of Debian's packages.
PACKAGES=(
	clang llvm # the steering program
	libclang-rt-dev # libFuzzer, for the tests of the C core
	gcc libc6-dev linux-libc-dev pkg-config python3-dev # the C modules; the tests' sanitizers
	libbpf-dev libxdp-dev libelf-dev zlib1g-dev
	python3-venv
	iproute2 ethtool # namespaces and virtual links of the demo and the tests
	vagrant # the tests check vagrant/Vagrantfile
	libgnutls28-dev # TLS of the native engine
	libssl-dev # and its ChaCha20
	python3-bpfcc linux-headers-amd64 # `hoststack trace`
	caddy # the tests' HTTP/3 server by somebody else
)
# The native engine's QUIC, and the tests' peers. Debian 12 has these in bookworm-backports.
NGTCP2_PACKAGES=(libngtcp2-dev libngtcp2-crypto-gnutls-dev ngtcp2-client ngtcp2-server)
NGTCP2_LEAST=1.11

say() { echo "bootstrap: $*"; }

missing_packages() {
	local package
	for package in "${PACKAGES[@]}"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
			echo "$package"
	done
}

missing_ngtcp2() {
	local package version
	for package in "${NGTCP2_PACKAGES[@]}"; do
		# a package that was removed still has a version, if its configuration stayed
		version=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$package" 2>/dev/null) || version=
		dpkg --compare-versions "${version#installed }" ge "$NGTCP2_LEAST" 2>/dev/null ||
			echo "$package"
	done
}

# Sets `as_root`, or says what to ask for and returns 1.
find_privilege() {
	as_root=()
	[ "$(id -u)" != 0 ] || return 0
	if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		as_root=(sudo -n)
		return 0
	fi
	say "not root: ask an administrator for: apt-get install $*"
	say "going on with what is there"
	return 1
}

apt_install() {
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends "$@" </dev/null >/dev/null
}

# Debian's own mirror, as apt has it: the line of bookworm's main.
debian_mirror() {
	apt-cache policy | sed -n "s|^ *[0-9]* \\(.*\\) $1/main .*|\\1|p" | head -n 1
}

# The suite that has ngtcp2; on Debian 12 apt is told of the backports, if it does not know them.
ngtcp2_suite() {
	local codename mirror
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	[ "$codename" = bookworm ] || return 0
	if ! apt-cache policy | grep -q "bookworm-backports/main"; then
		mirror=$(debian_mirror bookworm)
		say "adding bookworm-backports to apt's sources, for ngtcp2" >&2
		"${as_root[@]}" tee /etc/apt/sources.list.d/bookworm-backports.sources >/dev/null <<-END
			Types: deb
			URIs: ${mirror:-http://deb.debian.org/debian}
			Suites: bookworm-backports
			Components: main
			Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
		END
		"${as_root[@]}" apt-get update -qq >&2 || true
	fi
	echo /bookworm-backports
}

install_packages() {
	local missing missing_quic suite as_root
	command -v dpkg-query >/dev/null || {
		say "this is not Debian: install the equivalents of: ${PACKAGES[*]} ${NGTCP2_PACKAGES[*]}"
		return
	}
	mapfile -t missing < <(missing_packages)
	mapfile -t missing_quic < <(missing_ngtcp2)
	[ $((${#missing[@]} + ${#missing_quic[@]})) -gt 0 ] || return 0
	find_privilege "${missing[@]}" "${missing_quic[@]}" || return 0
	say "installing Debian's packages: ${missing[*]} ${missing_quic[*]}"
	"${as_root[@]}" apt-get update -qq ||
		say "no package index could be read; trying with the one that is there"
	if [ ${#missing[@]} -gt 0 ] && ! apt_install "${missing[@]}"; then
		say "apt-get failed: ask an administrator for: ${missing[*]}"
		say "going on with what is there"
	fi
	[ ${#missing_quic[@]} -gt 0 ] || return 0
	suite=$(ngtcp2_suite)
	apt_install "${missing_quic[@]/%/$suite}" || {
		say "ngtcp2 $NGTCP2_LEAST could not be installed: ${missing_quic[*]}"
		say "going on without the native engine; the aioquic engine does the work"
	}
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

# What pip installs from: the tables of pyproject.toml that name packages.
list_key() {
	"$1" -c 'import hashlib, tomllib
table = tomllib.load(open("pyproject.toml", "rb"))
key = repr((table["build-system"], table["project"]))
print(hashlib.sha256(key.encode()).hexdigest()[:16])'
}

make_environment() {
	local python place list
	python=$(find_python)
	# an environment that was made elsewhere, or by another Python, does not work here
	place=$({ pwd; "$python" -VV; } | sha256sum | cut -c1-16)
	list=$(list_key "$python")
	[ -e ".venv/$place-$list.made" ] && return 0
	if [ ! -e ".venv/$place.place" ]; then
		say "making a virtual environment in .venv ($("$python" -V))"
		rm -rf .venv
		"$python" -m venv .venv || {
			say "no virtual environment could be made: ask an administrator for python3-venv"
			exit 1
		}
		touch ".venv/$place.place"
	fi
	say "installing Python packages"
	if .venv/bin/python -m pip install -qq --disable-pip-version-check \
		"setuptools>=77" "cffi>=1.16" &&
		.venv/bin/python -m pip install -qq --disable-pip-version-check \
			--no-build-isolation --editable '.[test]'; then
		touch ".venv/$place-$list.made"
	elif .venv/bin/python -c 'import aioquic, cffi, cryptography, pyroute2, setuptools, trio'; then
		say "pip failed: going on with the Python packages that are there"
	else
		say "pip failed: it needs a compiler and a package index with what pyproject.toml lists"
		exit 1
	fi
}

install_packages
make_environment
