# Roots of Debian suites, made with debootstrap and kept between runs. Sourced by wheel_check.sh and
# debian.sh, which define `say`. Needs root.
#
# HOSTSTACK_ROOTS=FOLDER    where they are kept (/var/cache/hoststack/roots)

ROOTS=${HOSTSTACK_ROOTS:-/var/cache/hoststack/roots}

fail() {
	say "$*"
	exit 1
}

debian_mirror() {
	apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' |
		sed -n 's|^Packages Debian [a-z]* main ||p' | head -n 1
}

# Makes the root $1 of a suite with these packages, unless it is there; one that was not finished is
# made anew.
make_root() {
	local name=$1 suite=$2 packages=$3
	[ ! -e "$ROOTS/$name/made" ] || return 0
	say "making $ROOTS/$name"
	rm -rf "${ROOTS:?}/$name"
	mkdir -p "$ROOTS"
	debootstrap --variant=minbase "--include=$packages" "$suite" "$ROOTS/$name" \
		"$(debian_mirror)" >"$ROOTS/$name.log" 2>&1 || fail "debootstrap failed: see $ROOTS/$name.log"
	touch "$ROOTS/$name/made"
}

check_tools() {
	local tool
	[ "$(id -u)" = 0 ] || fail "it makes roots and namespaces: run it as root"
	for tool in debootstrap ip; do
		command -v "$tool" >/dev/null || fail "no $tool: install debootstrap and iproute2"
	done
}
