"""Sends mutated and mad packets to every port of a server, and stops.

Usage: hostile.py SERVER COUNT SEED. COUNT packets to each of UDP 67, 4011 and 69, and
COUNT / 50 connections to TCP 8069. Seeded: the same arguments send the same bytes.
"""

import random
import socket
import struct
import sys

server, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)


def dhcp():
    head = struct.pack(
        "!BBBBIHH4s4s4s4s", 1, 1, 6, 0, rng.getrandbits(32), 0, rng.choice([0, 0x8000]), *[bytes(4)] * 4
    )
    mac = bytes([0x02, 0x66]) + rng.randbytes(4)
    options = b""
    for _ in range(rng.randint(0, 12)):
        code = rng.choice([12, 43, 50, 52, 53, 54, 55, 57, 60, 61, 77, 81, 82, 93, 94, 97, 175, rng.randint(0, 255)])
        body = rng.choice(
            [rng.randbytes(rng.randint(0, 40)), b"PXEClient:Arch:00007", b"iPXE", b"\xff\xfe${x}", b"\0" * 17, b"\x01", b"\x03"]
        )
        length = len(body) if rng.random() < 0.9 else rng.randint(0, 255)
        options += bytes([code, length]) + body
    packet = head + mac.ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63" + options + b"\xff"
    return mutate(packet)


def tftp():
    name = rng.choice(
        [b"../../etc/passwd", b"undionly.kpxe", b"%2e%2e/etc/shadow", b"kernel", b"....//x", b"C:\\boot", b"a" * rng.randint(0, 600), b""]
    )
    options = b"".join(
        rng.choice([b"blksize", b"tsize", b"windowsize", b"timeout", b"x"])
        + b"\0"
        + rng.choice([b"0", b"1", b"65464", b"99999999999999999999", b"-1", b"", b"\xff"])
        + b"\0"
        for _ in range(rng.randint(0, 6))
    )
    packet = struct.pack("!H", rng.choice([1, 1, 1, 2, 3, 4, 5, 6, 0, 65535])) + name + b"\0octet\0" + options
    return mutate(packet)


def mutate(packet):
    packet = bytearray(packet)
    for _ in range(rng.choice([0, 1, 1, 4, 30])):
        if packet:
            packet[rng.randrange(len(packet))] = rng.getrandbits(8)
    if rng.random() < 0.2:
        packet = packet[: rng.randint(0, len(packet))]
    return bytes(packet) or b"\0"


def http():
    path = rng.choice(
        ["/../../etc/passwd", "/loader/..%2f..%2fetc/passwd", "/b/x.y/kernel", "/b/" + "0" * 32 + "." + "0" * 32 + "/boot.ipxe",
         "/loader/" + "a" * 9000, "//", "/%", "/%00", "http://other/"]
    )
    head = rng.choice(["GET", "HEAD", "POST", "PUT", "\x00", "G" * 9000])
    extra = rng.choice(["Range: bytes=5-1", "Range: bytes=" + "0-1," * 200, "Content-Length: 99999999999", "X: " + "y" * 20000, ""])
    return mutate(f"{head} {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n\r\n".encode("latin1"))


udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 0))
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan0")
client.bind(("", 68))
client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for number in range(count):
    client.sendto(dhcp(), (rng.choice([server, "255.255.255.255"]), 67))
    udp.sendto(dhcp(), (server, 4011))
    udp.sendto(tftp(), (server, 69))
    if number % 50 == 0:
        try:
            with socket.create_connection((server, 8069), timeout=2) as tcp:
                tcp.settimeout(0.05)
                tcp.sendall(http())
                tcp.recv(4096)
        except OSError:
            pass
print("sent")
