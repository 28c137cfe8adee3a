#!/usr/bin/env bash
# Usage: libraries.sh
#
# Builds the libraries whose newest version goes into the wheel (`make wheel`), statically, into
# build/libraries. Quick when they are there. Their sources are Debian's, of the versions pinned
# here, from the mirror that apt already uses; a source that is in build/sources is not downloaded.
# What the wheel takes from this machine instead is what scripts/bootstrap.sh installs.
set -euo pipefail
cd "$(dirname "$0")/.."

# The one place of the versions: where in Debian's archive a source is, and its SHA-256.
NGTCP2_SOURCE=pool/main/n/ngtcp2/ngtcp2_1.24.0.orig.tar.xz
NGTCP2_SHA256=7fa5ec2be0f0cbed8bc4ec89c0787dfa9d8ce678f1ed9477c52f30eb1a591207

PREFIX=$PWD/build/libraries
SOURCES=$PWD/build/sources

say() { echo "libraries: $*" >&2; }

debian_mirror() {
	apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' |
		sed -n 's|^Packages Debian [a-z]* main ||p' | head -n 1
}

# Puts a source that is not there yet into build/sources; apt's own tool checks what it loads.
download() {
	local source=$1 sha256=$2 file mirror
	file=$SOURCES/$(basename "$source")
	if ! sha256sum --status --check <<<"$sha256  $file" 2>/dev/null; then
		mirror=$(debian_mirror)
		[ -n "$mirror" ] || {
			say "apt has no mirror of Debian to load $source from: put it into $SOURCES"
			exit 1
		}
		say "loading $(basename "$source")"
		/usr/lib/apt/apt-helper download-file "${mirror%/}/$source" "$file" "SHA256:$sha256" >&2 || {
			say "apt's mirror has no $source with the pinned SHA-256: pin a version that it has in"
			say "scripts/libraries.sh, or put the file into $SOURCES"
			exit 1
		}
	fi
}

# ngtcp2 with its GnuTLS glue: position-independent, for a shared object that links it whole.
build_ngtcp2() {
	local tree
	rm -rf build/libraries-tree
	mkdir -p build/libraries-tree
	python3 -m tarfile -e "$SOURCES/$(basename "$NGTCP2_SOURCE")" build/libraries-tree
	tree=$(echo build/libraries-tree/ngtcp2-*)
	(
		cd "$tree"
		# the flags are named: configure needs no pkg-config then
		GNUTLS_CFLAGS=" " GNUTLS_LIBS=-lgnutls ./configure --quiet --prefix="$PREFIX" \
			--enable-lib-only --with-gnutls --without-openssl --disable-shared --enable-static \
			--with-pic CFLAGS="-O2"
		make -s -j1 install >/dev/null
	)
	mkdir -p "$PREFIX/licenses"
	cp "$tree/COPYING" "$PREFIX/licenses/ngtcp2.txt"
	rm -rf build/libraries-tree
}

versions="$NGTCP2_SHA256"
if [ "$(cat "$PREFIX/versions" 2>/dev/null)" = "$versions" ]; then
	exit 0
fi
rm -rf "$PREFIX"
mkdir -p "$PREFIX" "$SOURCES"
download "$NGTCP2_SOURCE" "$NGTCP2_SHA256"
say "building $(basename "$NGTCP2_SOURCE" .orig.tar.xz)"
build_ngtcp2
echo "$versions" >"$PREFIX/versions"
