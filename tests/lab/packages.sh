#!/bin/bash
# Installs what `make test`, `make demo` and `make torture` need and this machine lacks, on
# Debian 12 (as root, or by sudo). Says what, and asks first unless YES=1 is set or there is
# no terminal. Quiet and quick when nothing is missing.
set -euo pipefail

# QEMU comes from backports: Debian 12's own is slow to emulate what these tests run. Its
# tools and its iSCSI initiator are of the same source and must be of the same version.
backports=(qemu-system-x86 qemu-utils qemu-block-extra)
# ZFS too, of Debian's section contrib: the `zfs` backend is built with this library, and the
# lab's ZFS machine gets module and programs of the same version (tests/lab/zfs/build).
backports+=(libzfslinux-dev)
packages=(
    # to build and to run
    gcc libc6-dev make git ca-certificates postgresql ipxe
    # the lab: firmware, test system, network
    ovmf ipxe-qemu seabios busybox-static cpio dpkg zstd e2fsprogs
    iproute2 nftables procps tcpdump python3 curl libc-bin
    # the Debian disk
    debootstrap debian-archive-keyring fdisk dosfstools mtools grub-common grub-pc-bin grub-efi-amd64-bin util-linux
    # Windows' disks for the image check: NTFS, files put in without mounting, hives
    ntfs-3g wimtools libwin-hivex-perl
    # disks: initiators, servers to compare with, load
    libiscsi-bin libnbd-bin python3-libnbd nbdkit fio tgt
    # peers
    dnsmasq-base isc-dhcp-client isc-dhcp-relay udhcpc kea-admin tftp-hpa atftp wget python3-scapy
    # clocks that are set while programs run
    libfaketime
    # to check docker-compose.yml
    docker-compose
)

present() { # present PACKAGE: installed, whatever its version
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

if ! command -v cargo >/dev/null; then
    echo "A Rust toolchain is needed (1.95 or later): cargo is not in PATH." >&2
    exit 1
fi
need=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$(dirname "$0")/../../Cargo.toml")
have=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n%s\n' "$need" "$have" | sort -V | head -n1)" != "$need" ]; then
    echo "Rust $need or later is needed; rustc here is $have." >&2
    exit 1
fi
for tool in rustfmt cargo-clippy; do
    command -v $tool >/dev/null || { echo "$tool is missing: rustup component add rustfmt clippy" >&2; exit 1; }
done

missing=() late=()
for package in "${packages[@]}"; do present "$package" || missing+=("$package"); done
for package in "${backports[@]}"; do present "$package" || late+=("$package"); done
[ ${#missing[@]} -eq 0 ] && [ ${#late[@]} -eq 0 ] && exit 0

. /etc/os-release
if [ "${ID:-}" != debian ] || ! command -v apt-get >/dev/null; then
    echo "These are missing, and this script knows only Debian's names: ${missing[*]} ${late[*]}" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "Missing: ${missing[*]} ${late[*]}. Install them as root." >&2; exit 1; }
    as_root=(sudo)
fi

echo "To be installed from Debian: ${missing[*]} ${late[*]}"
if [ "${YES:-}" != 1 ] && [ -t 0 ]; then
    read -r -p "Install them? [Y/n] " answer
    case $answer in '' | [yYjJ]*) ;; *) echo "Nothing was installed." >&2; exit 1 ;; esac
fi

# PostgreSQL's package would start a cluster of its own. The tests need only the programs.
if [[ " ${missing[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    "${as_root[@]}" mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
    echo "  (no PostgreSQL cluster will be made: /etc/postgresql-common/createcluster.conf)"
fi

suite=()
if [ ${#late[@]} -gt 0 ] && [ "$VERSION_CODENAME" = bookworm ]; then
    if ! grep -rqs "^[^#]*bookworm-backports" /etc/apt/sources.list /etc/apt/sources.list.d; then
        # The same mirror that this machine takes Debian from already.
        base=$(sed -n 's/^URIs: *\([^ ]*\/debian\/\{0,1\}\)$/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n1)
        [ -n "$base" ] || base=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\/debian\/\{0,1\}\) bookworm .*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | head -n1)
        [ -n "$base" ] || { echo "No Debian mirror in apt's sources: can't add bookworm-backports." >&2; exit 1; }
        file=/etc/apt/sources.list.d/dls-backports.list
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $base bookworm-backports main" | "${as_root[@]}" tee "$file" >/dev/null
        echo "  (bookworm-backports added: $file)"
    fi
    # contrib is a source of its own where the first names main alone.
    if ! grep -rqsE "^[^#]*bookworm-backports.* contrib|^Components:.* contrib" /etc/apt/sources.list /etc/apt/sources.list.d; then
        base=$(apt-get indextargets --format '$(SITE)|$(RELEASE)' 'Identifier: Packages' | sed -n 's/|bookworm$//p' | head -n1)
        [ -n "$base" ] || { echo "No Debian mirror in apt's sources: can't add contrib." >&2; exit 1; }
        file=/etc/apt/sources.list.d/dls-zfs.list
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $base bookworm-backports contrib" | "${as_root[@]}" tee "$file" >/dev/null
        echo "  (contrib of bookworm-backports added: $file)"
    fi
    suite=(-t bookworm-backports)
fi

export DEBIAN_FRONTEND=noninteractive
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null; }
apt update
[ ${#late[@]} -eq 0 ] || apt install -y --no-install-recommends "${suite[@]}" "${late[@]}" >/dev/null
[ ${#missing[@]} -eq 0 ] || apt install -y --no-install-recommends "${missing[@]}" >/dev/null
for package in "${missing[@]}" "${late[@]}"; do
    present "$package" || { echo "$package could not be installed" >&2; exit 1; }
done
echo "Installed."
