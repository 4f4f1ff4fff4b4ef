#!/bin/bash
# `make demo`: a diskless machine boots Debian from its disk over iSCSI to the login prompt,
# and psql tells how. Everything happens in network namespaces and a temporary folder of its
# own, and is gone at the end.
# FIRMWARE=uefi (default: bios) takes a UEFI machine; KEEP=1 keeps the folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
start=$SECONDS
say() { printf '\n[%3d s] %s\n' $((SECONDS - start)) "$*"; }

[ "$(id -u)" -eq 0 ] || { echo "The demo makes network namespaces: run it as root (sudo make demo)." >&2; exit 1; }

say "Building dls"
cargo build --locked --quiet
dls=${CARGO_TARGET_DIR:-$PWD/target}/debug/dls

say "Making a disk with Debian 12 on it (once; it is kept under ~/.cache/dls)"
system=$(tests/lab/disk/build)

work=$(mktemp -d /tmp/dls-demo.XXXXXX)
chmod 755 "$work"
lan=dlsdemo$$-lan srv=dlsdemo$$-srv
cleanup() {
    trap - EXIT INT TERM
    for ns in $lan $srv; do
        for pid in $(ip netns pids $ns 2>/dev/null); do [ "$pid" = $$ ] || kill -9 "$pid" 2>/dev/null || true; done
        ip netns delete $ns 2>/dev/null || true
    done
    [ "${KEEP:-}" = 1 ] && echo "kept: $work" || rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say "Laying a cable: namespaces $srv (the server, 10.77.0.1) and $lan (the machine)"
ip netns add $lan
ip netns add $srv
ip -n $lan link add br0 type bridge
ip -n $lan link set br0 type bridge stp_state 0 forward_delay 0
ip -n $lan link set br0 up
ip -n $lan link add server type veth peer name lan0 netns $srv
ip -n $lan link set server master br0 up
ip -n $srv addr add 10.77.0.1/24 dev lan0
ip -n $srv link set lan0 up
ip -n $srv link set lo up
ip -n $lan tuntap add machine mode tap
ip -n $lan link set machine master br0 up
cp tests/lab/router.py "$work/"
(cd "$work" && exec ip netns exec $srv python3 router.py) &
disown # its end is no news

say "Starting dls serve with its embedded PostgreSQL"
echo "state_dir = \"$work/state\"" > "$work/dls.toml"
dls() { ip netns exec $srv "$dls" --config "$work/dls.toml" "$@"; }
dls serve 2> "$work/dls.log" &
disown
for _ in $(seq 300); do
    ip netns exec $srv curl -fs -m 1 http://127.0.0.1:8080/readyz >/dev/null && break
    sleep 0.2
done
ip netns exec $srv curl -fs -m 1 http://127.0.0.1:8080/readyz >/dev/null || { tail -n 30 "$work/dls.log"; exit 1; }

say "A range, the disk as an image, and a client, by dls's command line"
mac=52:54:00:77:00:01
shown() { echo "  \$ dls $*" | sed "s|$system/||g"; dls "$@" > /dev/null; }
shown range add --network 10.77.0.0/24 --pool 10.77.0.100-10.77.0.199 --mode full
shown image import debian-12 "$system/disk.img"
shown client add --mac $mac --hostname pc-01 --image debian-12

case ${FIRMWARE:-bios} in
    bios) board=() what="a BIOS machine (SeaBIOS, iPXE in its ROM)" rom= ;;
    *)
        what="a UEFI machine (OVMF)" rom=,romfile=
        cp /usr/share/OVMF/OVMF_VARS_4M.fd "$work/vars.fd"
        board=(-machine q35
            -drive if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd
            -drive if=pflash,unit=1,format=raw,file="$work/vars.fd")
        ;;
esac
say "Power on: $what without a disk; its console:"
touch "$work/console"
ip netns exec $lan qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 512 -display none -vga none -monitor none \
    -serial "file:$work/console" "${board[@]}" \
    -netdev tap,id=n,ifname=machine,script=no,downscript=no \
    -device virtio-net-pci,netdev=n,mac=$mac,bootindex=1$rom < /dev/null &
qemu=$!
tail -f --pid=$qemu -n +1 "$work/console" | sed -u 's/\x1b\[[0-9;?=]*[A-Za-z]//g; s/\r//g' |
    grep --line-buffered -aE 'LAB-GRUB|Linux version|iPXE 1|Start PXE|Logging into|operational now|DLS-|Debian GNU' | sed -u -E 's/^(.{0,110}).*/  | \1/' &
said=$!
for _ in $(seq 600); do
    grep -aq 'login:' "$work/console" && break
    kill -0 $qemu 2>/dev/null || break
    sleep 0.5
done
sleep 1
grep -aq 'login:' "$work/console" || { echo "The machine did not come up. dls says:"; tail -n 30 "$work/dls.log"; exit 1; }
# The prompt is no whole line, so the pipe above can't show it.
printf '  | %s\n' "$(grep -a 'login:' "$work/console" | tail -n 1 | sed 's/\x1b\[[0-9;?=]*[A-Za-z]//g; s/\r//g')"
# It says so itself a moment later.
for _ in $(seq 40); do
    [[ $(dls psql -c "select status from boot_sessions") == *running* ]] && break
    sleep 0.5
done
say "The login prompt: this system runs from its own copy of the disk, made as it logged in"
dls psql -c "select c.hostname, i.name as image, c.disk_mode, s.status, host(s.client_ip) as client_ip from boot_sessions s join clients c on c.id = s.client_id join images i on i.id = s.image_id"

say "Power off; its disk is let go of"
kill $qemu
wait $qemu 2>/dev/null || true
kill $said 2>/dev/null || true
sleep 2

say "What psql tells: select * from boot_timeline"
dls psql -c "select stage, to_char(at, 'HH24:MI:SS.MS') as at, round(since_start_seconds::numeric, 2) as since_start, round(step_seconds::numeric, 2) as step, left(detail::text, 76) as detail from boot_timeline where mac = '$mac' order by boot_timeline.at"
say "Done; the namespaces, the machine and the database are taken away."
