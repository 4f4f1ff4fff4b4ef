#!/bin/bash
# Makes one Debian package of a built program:
#   deploy/package.sh dls|dls-zfs PROGRAM FOLDER     writes FOLDER/NAME_VERSION_ARCH.deb, says its path
# The two packages hold the same files and take one another's place; `dls-zfs` has the program that
# was built with the feature `zfs`, its libraries, udev's rule for the devices and the unit's drop-in.
# Needs dpkg-deb, and no root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -eq 3 ] || { sed -n '2,7s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
name=$1 program=$2 folder=$3
version=$(sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml | head -n1)
arch=$(dpkg --print-architecture)
linked=$(ldd "$program")
depends="libc6 (>= 2.36), adduser"
case $name in
dls)
    other=dls-zfs
    [[ $linked != *libzfs_core* ]] || { echo "package: $program is linked with ZFS: that is dls-zfs" >&2; exit 1; }
    ;;
dls-zfs)
    other=dls
    [[ $linked == *libzfs_core* ]] || { echo "package: $program was built without the feature zfs" >&2; exit 1; }
    # Debian names the library's package by its number; zfsutils-linux brings the one that fits.
    depends+=", zfsutils-linux (>= 2.1), udev"
    ;;
*) echo "package: no such package: $name" >&2; exit 2 ;;
esac

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"
put() { install -D -m "$1" "$2" "$tree/$3"; } # put MODE FILE PLACE
put 755 "$program" usr/bin/dls
strip --strip-unneeded "$tree/usr/bin/dls"
put 644 deploy/dls.toml etc/dls/dls.toml
mkdir -p "$tree/usr/lib/systemd/system"
sed 's,/usr/local/bin/dls,/usr/bin/dls,' deploy/dls.service > "$tree/usr/lib/systemd/system/dls.service"
for file in docs/*.md README.md; do put 644 "$file" "usr/share/doc/$name/$(basename "$file")"; done
# The unit names this folder, whichever package it is.
[ "$name" = dls ] || ln -s "$name" "$tree/usr/share/doc/dls"
if [ "$name" = dls-zfs ]; then
    put 644 deploy/dls-zfs.conf usr/lib/systemd/system/dls.service.d/zfs.conf
    put 644 deploy/udev/90-dls-zvol.rules usr/lib/udev/rules.d/90-dls-zvol.rules
fi
mkdir "$tree/DEBIAN"
cat > "$tree/DEBIAN/control" <<END
Package: $name
Version: $version
Architecture: $arch
Maintainer: DLS
Section: admin
Priority: optional
Depends: $depends$([ "$name" = dls ] || printf '\nProvides: dls')
Recommends: postgresql, ipxe, qemu-utils
Conflicts: $other
Replaces: $other
Description: boot server for diskless machines$([ "$name" = dls ] || echo ', with disks on ZFS')
 DHCP, TFTP, HTTP, disks over iSCSI and NBD, and a timeline of every boot, in one program.
END
echo /etc/dls/dls.toml > "$tree/DEBIAN/conffiles"
cat > "$tree/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    getent passwd dls >/dev/null || adduser --quiet --system --group --home /var/lib/dls --no-create-home dls
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    [ ! -e /usr/lib/udev/rules.d/90-dls-zvol.rules ] || ! command -v udevadm >/dev/null ||
        udevadm control --reload || true
fi
END
chmod 755 "$tree/DEBIAN/postinst"
mkdir -p "$folder"
dpkg-deb --root-owner-group -Zgzip --build "$tree" "$folder/${name}_${version}_$arch.deb" >/dev/null
echo "$folder/${name}_${version}_$arch.deb"
