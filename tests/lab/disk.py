"""Writes to disks over NBD and knows what must be on them.

disk.py write URI LEDGER SEED SECONDS   random writes, each in the ledger before it is sent
                                        (I) and once it is durable (A): FUA, or a flush after
                                        it. Reconnects for as long as it lives.
                                        Goes on in a ledger that is there; ends before its
                                        time once there is a file LEDGER.stop.
disk.py verify URI LEDGER               each sector holds what was acknowledged last, or what
                                        was on its way after that
disk.py apart BASE SEED WRITES URI...   the same image under many names: random writes to
                                        all, then every byte of each is compared
disk.py fence URI_OLD URI_NEW SEED      the newer login shuts the older one out
disk.py full URI                        writes until there is no space, says FULL, then tries
                                        on and says SPACE when a write succeeds again

URI is nbd://HOST:PORT/EXPORT, or nbd+unix:///NAME?socket=PATH of a bridge to iSCSI.
"""

import errno
import hashlib
import os
import random
import sys
import time

import nbd

BLOCK = 4096
SECTOR = 512
PATIENCE = 120


def connect(uri, limit=PATIENCE):
    deadline = time.time() + limit
    while True:
        disk = nbd.NBD()
        try:
            disk.set_uri_allow_local_file(False)
            disk.connect_uri(uri)
            return disk
        except nbd.Error as e:
            if time.time() > deadline:
                sys.exit(f"no connection to {uri.split('/')[2]} in {limit} s: {e}")
            time.sleep(0.1)


def sector(number, seed, at):
    """What write `number` puts into the sector at byte `at`."""
    word = f"{number:016d} {at:016d} {seed:016d} ".encode()
    digest = hashlib.blake2b(word).digest()
    return (word + digest * 8)[:SECTOR]


def block(number, seed, at):
    return b"".join(sector(number, seed, at + i) for i in range(0, BLOCK, SECTOR))


def write(uri, ledger, seed, seconds):
    number = 0
    if os.path.exists(ledger):
        for line in open(ledger):
            number = max(number, int(line.split()[1]))
    dice = random.Random(f"{seed} {number}")
    book = open(ledger, "a", buffering=1)
    until = time.time() + seconds
    breaks = 0
    disk = connect(uri)
    size = disk.get_size() // BLOCK
    longest = 0
    began = time.time()
    while time.time() < until and not os.path.exists(ledger + ".stop"):
        fua = dice.random() < 0.5
        batch = []
        for at in dice.sample(range(size), dice.randint(1, 16)):
            number += 1
            batch.append((number, at * BLOCK))
            book.write(f"I {number} {at * BLOCK}\n")
        start = time.time()
        try:
            done = []
            flags = nbd.CMD_FLAG_FUA if fua else 0
            for n, at in batch:
                def completed(error, n=n, at=at):
                    if error == 0 and fua:
                        book.write(f"A {n} {at}\n")
                    done.append(error)
                    return 1
                data = nbd.Buffer.from_bytearray(bytearray(block(n, seed, at)))
                disk.aio_pwrite(data, at, completed, flags)
            while len(done) < len(batch):
                if disk.aio_is_dead() or disk.aio_is_closed():
                    raise nbd.Error("connection lost", errno.ECONNRESET)
                disk.poll(1000)
            if any(done):
                raise nbd.Error(f"errors {done}", errno.EIO)
            if not fua:
                disk.flush()
                for n, at in batch:
                    book.write(f"A {n} {at}\n")
        except nbd.Error:
            breaks += 1
            try:
                disk.close()
            except Exception:
                pass
            disk = connect(uri)
        longest = max(longest, time.time() - start)
    print(f"WROTE {number} in {time.time() - began:.0f} s, connections lost {breaks}, longest pause {longest:.1f} s", flush=True)


def verify(uri, ledger, disk=None):
    seed = int(open(ledger + ".seed").read())
    last, pending = {}, {}
    for line in open(ledger):
        what, number, at = line.split()
        number, at = int(number), int(at)
        if what == "A":
            # An acknowledgement is for that write; others sent later may be there too.
            if last.get(at, 0) < number:
                last[at] = number
        else:
            pending.setdefault(at, []).append(number)
    disk = disk or connect(uri)
    wrong = 0
    for at, numbers in sorted(pending.items()):
        known = last.get(at)
        allowed = [n for n in numbers if known is None or n >= known]
        data = bytes(disk.pread(BLOCK, at))
        for i in range(0, BLOCK, SECTOR):
            got = data[i : i + SECTOR]
            if any(got == sector(n, seed, at + i) for n in allowed):
                continue
            if known is None and not got.startswith(b"0000"):
                continue  # never acknowledged: what was there before
            wrong += 1
            if wrong < 10:
                print(f"WRONG at {at + i}: acknowledged {known}, allowed {allowed}, found {got[:52]}")
    print(f"VERIFIED {len(last)} acknowledged blocks, {wrong} wrong sectors", flush=True)
    sys.exit(1 if wrong else 0)


def apart(base, seed, writes, uris):
    dice = random.Random(seed)
    base = open(base, "rb").read()
    disks = [connect(uri) for uri in uris]
    models = [bytearray(base) for _ in uris]
    for _ in range(writes):
        who = dice.randrange(len(uris))
        length = dice.choice([512, 4096, 12288, 65536])
        at = dice.randrange((len(base) - length) // 512) * 512
        what = dice.random()
        if what < 0.8:
            data = dice.randbytes(length)
            disks[who].pwrite(data, at)
        else:
            data = bytes(length)
            disks[who].zero(length, at)
        models[who][at : at + length] = data
    checked = 0
    for who, (disk, model) in enumerate(zip(disks, models)):
        disk.flush()
        for at in range(0, len(base), 1 << 20):
            length = min(1 << 20, len(base) - at)
            if bytes(disk.pread(length, at)) != model[at : at + length]:
                sys.exit(f"WRONG: disk {who} near {at}")
            checked += length
    print(f"APART {len(uris)} disks, {writes} writes, {checked} bytes compared", flush=True)


def fence(old, new, seed):
    first = connect(old)
    number = 0
    at = 1 << 20

    def step(disk, fill):
        disk.pwrite(bytes([fill]) * BLOCK, at, nbd.CMD_FLAG_FUA)

    for number in range(20):
        step(first, 1)
    # The older one keeps its queue full while the newer one logs in.
    queue = []
    for i in range(64):
        buffer = nbd.Buffer.from_bytearray(bytearray(bytes([2]) * BLOCK))
        first.aio_pwrite(buffer, at, lambda error: queue.append(error) or 1, 0)
    second = connect(new, 20)
    before = bytes(second.pread(BLOCK, at))
    if before not in (bytes([1]) * BLOCK, bytes([2]) * BLOCK):
        sys.exit("WRONG: neither the one nor the other was there")
    step(second, 3)
    refused = 0
    for _ in range(20):
        try:
            step(first, 4)
            sys.exit("WRONG: the older login still writes")
        except nbd.Error:
            refused += 1
    if bytes(second.pread(BLOCK, at)) != bytes([3]) * BLOCK:
        sys.exit("WRONG: a write of the older login came after one of the newer")
    print(f"FENCED after {len(queue)} of 64 under way, {refused} refused", flush=True)


def full(uri):
    disk = connect(uri)
    size = disk.get_size()
    dice = random.Random(1)
    at, said = 0, False
    deadline = time.time() + PATIENCE
    while time.time() < deadline:
        try:
            disk.pwrite(dice.randbytes(1 << 20), at % size)
            disk.flush()
            at += 1 << 20
            if said:
                print("SPACE", flush=True)
                return
        except nbd.Error as e:
            if e.errno != "ENOSPC":
                sys.exit(f"WRONG: {e.errno}: {e}")
            if not said:
                print(f"FULL after {at >> 20} MiB", flush=True)
                said = True
            # What is there can be read all the same.
            disk.pread(BLOCK, 0)
            time.sleep(0.2)
    sys.exit("WRONG: " + ("no space came back" if said else "never full"))


what, arguments = sys.argv[1], sys.argv[2:]
if what == "write":
    open(arguments[1] + ".seed", "w").write(arguments[2])
    write(arguments[0], arguments[1], int(arguments[2]), float(arguments[3]))
elif what == "verify":
    verify(*arguments)
elif what == "apart":
    apart(arguments[0], int(arguments[1]), int(arguments[2]), arguments[3:])
elif what == "fence":
    fence(arguments[0], arguments[1], int(arguments[2]))
elif what == "full":
    full(*arguments)
else:
    sys.exit(__doc__)
