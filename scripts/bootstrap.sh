#!/usr/bin/env bash
# Sets up what the build, the demo and the tests need: Debian's packages and a virtual environment
# in .venv. Quick when there is nothing to do; goes on with what is there when it can't install.
set -euo pipefail
cd "$(dirname "$0")/.."

# The one list of Debian's packages.
PACKAGES=(
	clang llvm # the steering program
	gcc libc6-dev linux-libc-dev pkg-config python3-dev # the C modules; the tests' sanitizers
	libbpf-dev libxdp-dev libelf-dev zlib1g-dev
	python3-venv
	iproute2 ethtool # namespaces and virtual links of the demo and the tests
	vagrant # the tests check vagrant/Vagrantfile
)

say() { echo "bootstrap: $*"; }

missing_packages() {
	local package
	for package in "${PACKAGES[@]}"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
			echo "$package"
	done
}

install_packages() {
	local missing as_root=()
	command -v dpkg-query >/dev/null || {
		say "this is not Debian: install the equivalents of: ${PACKAGES[*]}"
		return
	}
	mapfile -t missing < <(missing_packages)
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ]; then
		if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
			as_root=(sudo -n)
		else
			say "not root: ask an administrator for: apt-get install ${missing[*]}"
			say "going on with what is there"
			return
		fi
	fi
	say "installing Debian's packages: ${missing[*]}"
	"${as_root[@]}" apt-get update -qq ||
		say "no package index could be read; trying with the one that is there"
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends "${missing[@]}" </dev/null >/dev/null || {
		say "apt-get failed: ask an administrator for: ${missing[*]}"
		say "going on with what is there"
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
