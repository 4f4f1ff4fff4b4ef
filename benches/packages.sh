#!/bin/bash
# Installs what `benches/dhcp.sh` needs and this machine lacks, on Debian 12 (as root, or by sudo).
# No service is started by it. Quiet and quick when nothing is missing.
set -euo pipefail
packages=(kea-dhcp4-server kea-admin dnsmasq-base postgresql python3 iproute2 tcpdump curl util-linux)
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
command -v apt-get >/dev/null || { echo "These are missing: ${missing[*]}" >&2; exit 1; }
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
echo "To be installed from Debian: ${missing[*]}"
# A DHCP server that starts by itself would answer on the machine's own network.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
    "${as_root[@]}" chmod 755 $policy
    trap '"${as_root[@]}" rm -f $policy' EXIT
fi
# Nor at the next start of the machine.
masked=()
for unit in kea-dhcp4-server.service; do
    [ -e /etc/systemd/system/$unit ] || masked+=("$unit")
done
for unit in "${masked[@]}"; do
    "${as_root[@]}" mkdir -p /etc/systemd/system
    "${as_root[@]}" ln -s /dev/null "/etc/systemd/system/$unit"
done
if [[ " ${missing[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    "${as_root[@]}" mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null; }
apt update
apt install -y --no-install-recommends "${missing[@]}" >/dev/null
echo "Installed."
