"""Answers IPv6 router solicitations on lan0: there is no router, no prefix, no DHCPv6.

A stand-in for the router that most LANs have. iPXE waits for its word before it goes on.
"""

import socket
import struct

NAME = "lan0"
index = socket.if_nametoindex(NAME)
door = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
door.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, NAME.encode())
all_routers = socket.inet_pton(socket.AF_INET6, "ff02::2") + struct.pack("@I", index)
door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, all_routers)
door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
while True:
    packet, _ = door.recvfrom(2048)
    if packet[:1] == b"\x85":  # router solicitation
        advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 0, 0, 0)
        try:
            door.sendto(advertisement, ("ff02::1", 0, 0, index))
        except OSError:
            pass  # its own address is not ready yet: the next one is answered
