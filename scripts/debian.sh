#!/usr/bin/env bash
# Usage: debian.sh SUITE COMMAND...
#
# Runs a command in a clone of this checkout, as a user of another Debian has it: in a root with
# git, make and Python and nothing else (made with debootstrap), in a folder that only root can
# read. The root is kept, so the next run has what this one installs. What is not committed is not
# in the clone. Needs root, debootstrap and iproute2.
#
# HOSTSTACK_ROOTS=FOLDER    where the roots are kept between runs (/var/cache/hoststack/roots)
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "debian: $*" >&2; }

. scripts/roots.sh

# Inside the root.
CLONE=/root/hoststack
# In a mount namespace of its own: no mount is left. The root becomes its /, and a mount point, without
# which `ip netns` fails: the command can make mounts and namespaces as on a machine.
IN_ROOT='root=$1 clone=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs run "$root/run"
mount --rbind /dev "$root/dev"
cd "$root"
pivot_root . mnt
umount -l mnt
cd "$clone"
exec "$@"'

[ $# -gt 1 ] || fail "usage: debian.sh SUITE COMMAND..."
suite=$1
shift
check_tools
root=$ROOTS/$suite-tests
make_root "$suite-tests" "$suite" ca-certificates,git,make,python3

# The network as this machine has it: names, authorities, and where pip loads from.
cp --dereference /etc/resolv.conf "$root/etc/resolv.conf"
[ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"
cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
mapfile -d '' -t settings < <(env -0 | grep -z '^PIP_' || true)

# A new clone with the environment of the one before it.
rm -rf "$root$CLONE.before"
[ ! -e "$root$CLONE" ] || mv "$root$CLONE" "$root$CLONE.before"
git clone -q . "$root$CLONE"
chmod 0700 "$root/root"
[ ! -e "$root$CLONE.before/.venv" ] || mv "$root$CLONE.before/.venv" "$root$CLONE/.venv"
rm -rf "$root$CLONE.before"
exec unshare --mount bash -ec "$IN_ROOT" - "$root" "$CLONE" \
	/usr/bin/env -i "${settings[@]}" HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	LANG=C.UTF-8 TERM="${TERM:-dumb}" "$@"
