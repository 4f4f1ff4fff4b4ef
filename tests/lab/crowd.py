"""Many connections to the exports at once, in bytes of our own.

crowd.py half HOST COUNT         COUNT half handshakes on each port, from many addresses: each
                                 stops at another place, at worst one byte before its longest
                                 message ends. Says OPEN, then waits until the server has closed
                                 all of them and says CLOSED and how long that took. Then as
                                 many as one address may have, and some more: says ONE.
crowd.py busy BASE SECONDS       sessions on clones of BASE, each with 32 reads under way, of
                                 4 KiB and then of 128 KiB, each compared with BASE; then 32
                                 answers that nobody takes for a while. Sessions come from
                                 standard input: `nbd HOST EXPORT` or
                                 `iscsi HOST TARGET USER SECRET`. Says IN once all are in.
"""

import hashlib
import selectors
import socket
import struct
import sys
import threading
import time

ISCSI, NBD = 3260, 10809
PER_ADDRESS = 50
DEPTH = 32
# Longest messages of a handshake that either server keeps.
LONGEST = 8192


def pdu(opcode, flags, data=b"", claimed=None, number=1, tag=0, expected=0, cdb=b""):
    length = len(data) if claimed is None else claimed
    head = bytearray(48)
    head[0], head[1] = opcode, flags
    head[5:8] = struct.pack("!I", length)[1:]
    if opcode == 0x43:
        head[13] = 1  # the initiator's port; of other messages it would be the disk's number
    struct.pack_into("!III", head, 16, tag, expected, number)
    head[32 : 32 + len(cdb)] = cdb
    return bytes(head) + data + bytes(-len(data) % 4)


def text(*pairs):
    return b"".join(p.encode() + b"\0" for p in pairs)


def names(target):
    return text(
        "InitiatorName=iqn.2026-11.internal.dls.lab:crowd",
        f"TargetName={target}",
        "SessionType=Normal",
        "AuthMethod=CHAP",
    )


def option(code, data, claimed=None):
    return b"IHAVEOPT" + struct.pack("!II", code, len(data) if claimed is None else claimed) + data


def beginnings(port):
    """What a half handshake may have sent, the costliest among it."""
    if port == NBD:
        flags = struct.pack("!I", 3)
        go = struct.pack("!I", 65) + b"x" * 65 + bytes(2)
        return [
            b"",
            flags + option(99, bytes(LONGEST - 1), LONGEST),
            flags + option(7, go)[:-1],
            flags + option(8, b"") + option(7, bytes(LONGEST - 1), LONGEST),
        ]
    first = pdu(0x43, 0, names("iqn.2026-11.internal.dls:" + "0" * 32))
    return [
        b"",
        pdu(0x43, 0x87, bytes(LONGEST - 4), LONGEST),
        first,
        first + pdu(0x43, 0, bytes(LONGEST - 4), LONGEST),
    ]


def begin(host, port, source, sent):
    line = socket.socket()
    line.bind((source, 0))
    line.connect((host, port))
    line.settimeout(0)
    line.send(sent)
    return line


def half(host, count):
    waiting = selectors.DefaultSelector()
    for n in range(count):
        for port in (ISCSI, NBD):
            choice = beginnings(port)
            source = f"10.77.{200 + n // PER_ADDRESS // 200}.{1 + n // PER_ADDRESS % 200}"
            line = begin(host, port, source, choice[n % len(choice)])
            waiting.register(line, selectors.EVENT_READ, (port, time.time()))
    # What has been closed already was not admitted.
    early = drain(waiting, time.time() + 1)
    if early:
        sys.exit(f"WRONG: {len(early)} of {2 * count} were closed at once")
    print(f"OPEN {2 * count}", flush=True)
    ends = drain(waiting, time.time() + 30)
    left = len(waiting.get_map())
    if left:
        sys.exit(f"WRONG: {left} of {2 * count} are still open")
    print(f"CLOSED {len(ends)} within {max(ends):.2f} s, the first after {min(ends):.2f} s", flush=True)
    for port in (ISCSI, NBD):
        kept = selectors.DefaultSelector()
        for n in range(80):
            try:
                line = begin(host, port, "10.77.210.1", b"")
                kept.register(line, selectors.EVENT_READ, (port, time.time()))
            except ConnectionError:
                pass
        drain(kept, time.time() + 2)
        print(f"ONE {port}: {len(kept.get_map())} of 80", flush=True)


def drain(waiting, deadline):
    """Takes what is closed off the list; how long each of those was open."""
    ends = []
    while waiting.get_map() and time.time() < deadline:
        for key, _ in waiting.select(0.2):
            try:
                while key.fileobj.recv(65536):
                    pass
            except BlockingIOError:
                continue
            except ConnectionError:
                pass
            ends.append(time.time() - key.data[1])
            waiting.unregister(key.fileobj)
            key.fileobj.close()
    return ends


class Session:
    """A disk that is read with a queue."""

    def __init__(self, host, port):
        self.line = socket.create_connection((host, port), timeout=120)
        self.line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def take(self, count):
        parts = bytearray(count)
        view, at = memoryview(parts), 0
        while at < count:
            got = self.line.recv_into(view[at:])
            if not got:
                raise ConnectionError("closed by the server")
            at += got
        return parts


class Nbd(Session):
    def __init__(self, host, export):
        super().__init__(host, NBD)
        self.take(18)
        name = export.encode()
        self.line.sendall(struct.pack("!I", 3) + option(7, struct.pack("!I", len(name)) + name + bytes(2)))
        while True:
            _, _, kind, length = struct.unpack("!QIII", self.take(20))
            said = self.take(length)
            if kind == 1:
                return
            if kind >> 31:
                raise ConnectionError(f"refused: {said.decode()}")

    def ask(self, cookie, at, length):
        self.line.sendall(struct.pack("!IHHQQI", 0x25609513, 0, 0, cookie, at, length))

    def answer(self, lengths):
        magic, error, cookie = struct.unpack("!IIQ", self.take(16))
        if magic != 0x67446698 or error:
            raise ConnectionError(f"answer {magic:x}, error {error}")
        return cookie, self.take(lengths[cookie])


class Iscsi(Session):
    def __init__(self, host, target, user, secret):
        super().__init__(host, ISCSI)
        self.number, self.parts = 1, {}
        self.login(0, names(target))
        said = self.login(0, text("CHAP_A=5"))
        said = dict(p.split("=", 1) for p in said.decode().split("\0") if "=" in p)
        challenge = bytes.fromhex(said["CHAP_C"][2:])
        proof = hashlib.md5(bytes([int(said["CHAP_I"])]) + secret.encode() + challenge).hexdigest()
        self.login(0x81, text(f"CHAP_N={user}", f"CHAP_R=0x{proof}"))
        self.login(0x87, text("MaxRecvDataSegmentLength=262144", "MaxBurstLength=262144"))
        # The unit attention of a new nexus.
        self.send(1, bytes(6), 0, 0)
        self.receive()

    def login(self, flags, data):
        self.line.sendall(pdu(0x43, flags, data, number=self.number))
        head, said = self.receive()
        if head[36:38] != b"\0\0":
            raise ConnectionError(f"login refused: {bytes(head[36:38]).hex()}")
        return said

    def receive(self):
        while True:
            head = self.take(48)
            length = int.from_bytes(head[5:8], "big")
            data = self.take(length + -length % 4)[:length]
            if head[0] & 0x3F != 0x20:
                return head, data
            if head[20:24] != b"\xff" * 4:
                ping = bytearray(pdu(0x40, 0x80, number=self.number))
                ping[16:20], ping[20:24] = b"\xff" * 4, head[20:24]
                self.line.sendall(ping)

    def send(self, tag, cdb, moves, expected):
        bytes_ = pdu(0x01, 0x81 | moves, number=self.number, tag=tag, expected=expected, cdb=cdb)
        self.number += 1
        self.line.sendall(bytes_)

    def ask(self, cookie, at, length):
        cdb = struct.pack("!BBIBHB", 0x28, 0, at // 512, 0, length // 512, 0)
        self.send(cookie, cdb, 0x40, length)

    def answer(self, lengths):
        while True:
            head, data = self.receive()
            cookie = int.from_bytes(head[16:20], "big")
            if head[0] == 0x25:
                self.parts[cookie] = self.parts.get(cookie, b"") + data
                if not head[1] & 1:
                    continue
            if head[3]:
                raise ConnectionError(f"SCSI status {head[3]:02x}")
            return cookie, self.parts.pop(cookie, b"")


def read(session, base, length, seconds, hold):
    """Reads in order, again and again; `hold`: the answers of one queue are left for so long."""
    places = len(base) // length
    number = done = 0
    until = time.time() + seconds
    asked, lengths = {}, {}

    def ask():
        nonlocal number
        number += 1
        asked[number] = number % places * length
        lengths[number] = length
        session.ask(number, asked[number], length)

    for _ in range(DEPTH):
        ask()
    time.sleep(hold)
    slowest = last = 0
    while asked:
        before = time.time()
        cookie, data = session.answer(lengths)
        slowest = max(slowest, time.time() - before)
        at = asked.pop(cookie)
        del lengths[cookie]
        if data != base[at : at + length]:
            raise ConnectionError(f"WRONG: bytes at {at}")
        done += 1
        if time.time() < until:
            ask()
    return done, slowest


def busy(base, seconds):
    base = open(base, "rb").read()
    specs = [line.split() for line in sys.stdin if line.strip()]
    kinds = {"nbd": Nbd, "iscsi": Iscsi}
    sessions = [kinds[spec[0]](*spec[1:]) for spec in specs]
    print(f"IN {len(sessions)}", flush=True)
    done, errors, slowest = [0], [], [0]

    def work(session):
        try:
            for length, hold in ((4096, 0), (131072, 0), (131072, 2)):
                count, slow = read(session, base, length, 0 if hold else seconds / 2, hold)
                done[0] += count
                slowest[0] = max(slowest[0], slow)
        except Exception as e:
            errors.append(repr(e))

    threads = [threading.Thread(target=work, args=[s]) for s in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        sys.exit(f"WRONG: {len(errors)} of {len(sessions)} sessions failed: {errors[:3]}")
    print(f"READ {done[0]} answers on {len(sessions)} disks, all right, longest wait {slowest[0]:.2f} s", flush=True)


what, arguments = sys.argv[1], sys.argv[2:]
if what == "half":
    half(arguments[0], int(arguments[1]))
elif what == "busy":
    busy(arguments[0], float(arguments[1]))
else:
    sys.exit(__doc__)
