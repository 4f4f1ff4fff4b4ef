#!/bin/sh
# Puts dls-report into a system's root directory: the script, the systemd unit (enabled), the
# initramfs-tools files; what of it fits that system.
#
#   install.sh ROOT      ROOT: an unpacked or mounted root file system, or an initrd's tree
#   install.sh --here    this very system
#
# Repeatable. Says what it does. Run nothing inside ROOT: it may be of another architecture.

set -eu

here=$(cd "$(dirname "$0")" && pwd)

case ${1:-} in
    --here) root= ;;
    '' | -*)
        echo "usage: install.sh ROOT | --here" >&2
        exit 2
        ;;
    *)
        root=${1%/}
        if [ -z "$root" ]; then
            echo "install.sh: for this very system say --here" >&2
            exit 2
        fi
        [ -d "$root" ] || {
            echo "install.sh: $root is no directory" >&2
            exit 1
        }
        ;;
esac

put() { # MODE FILE TARGET
    mkdir -p "$root$(dirname "$3")"
    cp "$here/$2" "$root$3"
    chmod "$1" "$root$3"
    echo "installed $root$3"
}

# A symbolic link is followed only if it stays inside ROOT: /sbin -> usr/sbin does.
put 0755 dls-report /usr/sbin/dls-report
put 0644 README.md /usr/share/doc/dls-report/README.md

if [ -d "$root/lib/systemd/system" ] || [ -d "$root/usr/lib/systemd/system" ]; then
    put 0644 systemd/dls-report.service /etc/systemd/system/dls-report.service
    wants=/etc/systemd/system/multi-user.target.wants
    mkdir -p "$root$wants"
    ln -sf ../dls-report.service "$root$wants/dls-report.service"
    echo "enabled dls-report.service"
else
    echo "no systemd here: let the system's start script run 'dls-report loop &'," \
        "and 'dls-report bye poweroff' before it stops"
fi

if [ -d "$root/etc" ]; then
    put 0644 sysctl.d/60-dls-panic.conf /etc/sysctl.d/60-dls-panic.conf
fi

if [ -d "$root/etc/initramfs-tools" ] || [ -d "$root/usr/share/initramfs-tools" ]; then
    put 0755 initramfs-tools/hooks/dls-report /etc/initramfs-tools/hooks/dls-report
    put 0755 initramfs-tools/scripts/init-bottom/dls-report \
        /etc/initramfs-tools/scripts/init-bottom/dls-report
    echo "now run 'update-initramfs -u' in that system"
fi

for tool in curl wget busybox; do
    for dir in /usr/bin /bin /usr/sbin /sbin; do
        if [ -e "$root$dir/$tool" ] || [ -L "$root$dir/$tool" ]; then
            exit 0
        fi
    done
done
echo "install.sh: there is no curl, wget or busybox in that system: dls-report needs one" >&2
exit 1
