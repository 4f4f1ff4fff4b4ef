"""Asks for an address again and again on lan0 and says what each OFFER held.

Usage: discover.py MAC SECONDS. Every 10 ms one DISCOVER of a PXE ROM with its own
transaction id; a line `SENT_AT YIADDR FILE` for each one that was answered, SENT_AT being
the wall-clock time at which that DISCOVER left.
"""

import os
import socket
import struct
import sys
import time

mac = bytes.fromhex(sys.argv[1].replace(":", ""))
deadline = time.time() + float(sys.argv[2])
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan0")
door.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
door.bind(("", 68))
door.settimeout(0.01)
sent = {}
xid = struct.unpack("!I", os.urandom(4))[0]


def discover(xid):
    head = struct.pack("!BBBBIHH4s4s4s4s", 1, 1, 6, 0, xid, 0, 0x8000, *[bytes(4)] * 4)
    options = b"\x35\x01\x01\x3c\x09PXEClient\x5d\x02\x00\x00\xff"
    return head + mac.ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63" + options


while time.time() < deadline:
    xid = (xid + 1) & 0xFFFFFFFF
    sent[xid] = time.time()
    door.sendto(discover(xid), ("255.255.255.255", 67))
    until = time.time() + 0.01
    while time.time() < until:
        try:
            reply = door.recv(2048)
        except TimeoutError:
            break
        number = struct.unpack("!I", reply[4:8])[0]
        if number in sent and reply[0] == 2:
            address = socket.inet_ntoa(reply[16:20])
            name = reply[108:236].split(b"\0")[0].decode() or "-"
            print(f"{sent.pop(number):.6f} {address} {name}", flush=True)
