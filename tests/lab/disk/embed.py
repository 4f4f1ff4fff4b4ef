#!/usr/bin/env python3
"""Puts GRUB's boot and core images into a disk image, where grub-bios-setup would: it wants a
block device with partitions, and this disk is only a file.

embed.py DISK BOOT_IMG CORE_IMG FIRST_SECTOR SECTORS
"""
import struct
import sys

disk, boot, core, first, room = sys.argv[1:]
first, room = int(first), int(room)
core = bytearray(open(core, "rb").read())
core += bytes(-len(core) % 512)
sectors = len(core) // 512
if sectors > room:
    sys.exit(f"core image: {sectors} sectors, {room} are there")
# The first sector loads the rest: start, length and segment close it.
struct.pack_into("<QHH", core, 0x1F4, first + 1, sectors - 1, 0x820)
boot = bytearray(open(boot, "rb").read()[:440])
# Where the core is; and "as the firmware says" for the drive.
struct.pack_into("<Q", boot, 0x5C, first)
boot[0x64] = 0xFF
# Hard disks: without the jump that works around firmware which leaves DL wrong.
boot[0x66:0x68] = b"\x90\x90"
with open(disk, "r+b") as out:
    out.write(boot)
    out.seek(first * 512)
    out.write(core)
