#!/bin/bash
# Installs what benches/tftp.sh and benches/http.sh need beside tests/lab/packages.sh, on Debian
# 12 (as root, or by sudo). No peer is started as a service. Quick when nothing is missing.
# Debian's atftpd and tftpd-hpa exclude each other: atftpd is unpacked below ~/.cache/dls
# (DLS_CACHE moves it), not installed. Its path is the last line that this prints.
set -euo pipefail
packages=(dnsmasq-base iproute2 libwrap0 libpcre2-8-0 nginx-light python3 tftpd-hpa wrk)
cache=${DLS_CACHE:-$HOME/.cache/dls}/peers
unpack() {
    [ -x "$cache/usr/sbin/atftpd" ] && return
    mkdir -p "$cache"
    (cd "$cache" && apt-get -qq download atftpd >&2 && dpkg -x atftpd_*.deb . && rm atftpd_*.deb)
}
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
        missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    unpack
    echo "$cache/usr/sbin/atftpd"
    exit 0
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "Missing: ${missing[*]}. Install them as root." >&2; exit 1; }
    as_root=(sudo)
fi
echo "To be installed from Debian: ${missing[*]}" >&2
if [ "${YES:-}" != 1 ] && [ -t 0 ]; then
    read -r -p "Install them? [Y/n] " answer
    case $answer in '' | [yYjJ]*) ;; *) echo "Nothing was installed." >&2; exit 1 ;; esac
fi
# Debian starts what it installs; these would take the ports of a server that is there.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
    "${as_root[@]}" chmod 755 $policy
    trap '"${as_root[@]}" rm -f $policy' EXIT
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null; }
apt update
apt install -y --no-install-recommends "${missing[@]}" >/dev/null
unpack
echo "$cache/usr/sbin/atftpd"
