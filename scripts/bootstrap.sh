#!/usr/bin/env bash
# Sets up what the build, the demo and the tests need: Debian's packages and a virtual environment
# in .venv. Quick when there is nothing to do; goes on with what is there when it can't install.
set -euo pipefail
cd "$(dirname "$0")/.."

# The one list of Debian's packages.
PACKAGES=(
	clang llvm # the steering program
	gcc libc6-dev linux-libc-dev pkg-config python3-dev # the C modules
	libbpf-dev libxdp-dev libelf-dev zlib1g-dev
	python3-venv
	iproute2 ethtool # namespaces and virtual links of the demo and the tests
	libclang-rt-14-dev # sanitizers in the tests
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

# What the environment was made from: another place or another list makes it anew.
environment_key() {
	{ pwd; "$1" -VV; cat pyproject.toml scripts/bootstrap.sh; } | sha256sum | cut -c1-16
}

make_environment() {
	local python key
	python=$(find_python)
	key=$(environment_key "$python")
	[ -e ".venv/$key.made" ] && return 0
	say "making a virtual environment in .venv ($("$python" -V))"
	rm -rf .venv
	"$python" -m venv .venv || {
		say "no virtual environment could be made: ask an administrator for python3-venv"
		exit 1
	}
	say "installing Python packages"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check \
		"setuptools>=68" wheel "cffi>=1.16" &&
		.venv/bin/python -m pip install --quiet --disable-pip-version-check \
			--no-build-isolation --editable '.[test]' || {
		say "pip failed: is there a package index? It needs what pyproject.toml lists"
		exit 1
	}
	touch ".venv/$key.made"
}

install_packages
make_environment
