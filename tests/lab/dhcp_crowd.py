"""Many DHCP clients at once on lan0, and the history of what they were told.

dhcp_crowd.py COUNT RAMP SEED HISTORY [calm]   COUNT machines come on within RAMP seconds and stay until
                                               standard input says a line or ends. SEED decides what
                                               they do; calm ones do nothing but renew.

Each is a client of RFC 2131 with a MAC of its own: it takes one of the OFFERs, renews at T1 with the
server that it has its lease of, asks all at T2, and stops using its address when the lease has run out,
reckoned from when it first sent the REQUEST that was acknowledged (RFC 2131 section 4.4.1). Some release and come
back, some forget what they had, some start again with the address that they remember, some are replaced
by another machine, with or without a RELEASE. Nobody answers ARP for their addresses, so that a probe hides
nothing. Packets come and go by a packet socket, so the machine's own network has no part in it.

The history has one line for each event, in the order in which it happened, T and SENT in ms of CLOCK_MONOTONIC:

clock    T WALL                                        the same moment by CLOCK_REALTIME
wants    T MAC                                         it has no address and begins to ask for one
acked    T MAC ADDRESS ASKED SECONDS SERVER KIND SENT  KIND: select, renew, rebind, reboot
naked    T MAC ADDRESS SERVER KIND                     ADDRESS: what it had asked for
released T MAC ADDRESS
expired  T MAC ADDRESS                                 it stopped using it
forgot   T MAC ADDRESS                                 it was switched off; nobody was told
stray    T MAC ADDRESS ASKED SERVER                    an ACK that nobody waited for; ASKED: `-` if too old
end      T

At the end it says on standard output what it saw, in numbers.
"""

import collections
import heapq
import os
import random
import select
import socket
import struct
import sys
import time

DISCOVER, OFFER, REQUEST, ACK, NAK, RELEASE = 1, 2, 3, 5, 6, 7
COOKIE = b"\x63\x82\x53\x63"
NOBODY = bytes(4)
ALL = b"\xff" * 4
EVERYBODY = b"\xff" * 6
# Between two DISCOVERs, and between two REQUESTs of one OFFER, seconds; then it begins again.
DISCOVERS = (1, 2, 4, 8)
REQUESTS = (1.5, 3, 3)
# Of a machine that has a lease: how often it does what before the lease would have run out.
LIVES = (("stays", 66), ("returns", 10), ("leaves", 7), ("vanishes", 3), ("forgets", 6), ("reboots", 8))

count, ramp, seed, path = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
dice = random.Random(seed)
if "calm" in sys.argv:
    LIVES = (("stays", 1),)
door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
door.setsockopt(socket.SOL_SOCKET, 33, 128 << 20)  # SO_RCVBUFFORCE
door.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
door.bind(("lan0", 0x0800))
promiscuous = struct.pack("iHH8s", socket.if_nametoindex("lan0"), 1, 0, b"")
door.setsockopt(263, 1, promiscuous)
door.setblocking(False)
history = open(path, "w", buffering=1 << 16)
timers, number = [], 0
clients, stations = {}, {}
seen = collections.Counter()
latest = 0.0
made = 0


def note(what, at, *words):
    history.write(f"{what} {int(at * 1000)} {' '.join(map(str, words))}\n")


def dotted(address):
    return socket.inet_ntoa(address)


def checksum(head):
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Client:
    """A machine; `state` is RFC 2131's (figure 5)."""

    def __init__(self):
        global made
        made += 1
        self.mac = b"\x02\x64\x00" + made.to_bytes(3, "big")
        self.name = self.mac.hex(":")
        self.state, self.token, self.address = "init", 0, None
        self.remembers, self.server, self.xids = None, None, collections.deque(maxlen=4)
        self.broadcast = dice.random() < 0.3
        clients[self.mac] = self

    def at(self, when, what, *words):
        """Does `what` then, unless something else has been decided until then."""
        global number
        number += 1
        self.token += 1
        heapq.heappush(timers, (when, number, self, self.token, what, words))

    def send(self, kind, source, target, station, options, ciaddr):
        seconds = min(0xFFFF, int(time.monotonic() - self.since))
        flags = 0x8000 if self.broadcast and ciaddr == NOBODY else 0
        body = struct.pack("!BBBBIHH4s12x16s192x", 1, 1, 6, 0, self.xid, seconds, flags, ciaddr, self.mac)
        body += COOKIE + bytes((53, 1, kind)) + options + b"\x37\x06\x01\x03\x06\x33\x3a\x3b\xff"
        body = body.ljust(300, b"\0")
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(body), 0, 0, 64, 17, 0, source, target)
        head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
        udp = struct.pack("!HHHH", 68, 67, 8 + len(body), 0)
        seen["sent"] += 1
        try:
            door.send(station + self.mac + b"\x08\x00" + head + udp + body)
        except OSError:
            seen["unsent"] += 1

    def everybody(self, kind, options, ciaddr=NOBODY):
        self.send(kind, ciaddr, ALL, EVERYBODY, options, ciaddr)

    def begin(self, state, asked):
        """A new transaction."""
        self.state, self.asked = state, asked
        self.sent = time.monotonic()
        self.xid = dice.getrandbits(32)
        self.xids.append((self.xid, asked))

    def wants(self, now):
        note("wants", now, self.name)
        self.address = None
        self.since = now
        self.discover(now)

    def discover(self, now):
        self.begin("selecting", None)
        self.offers, self.tries = [], 0
        self.ask(now)

    def ask(self, now):
        wish = b""
        if self.remembers and self.tries == 0:
            wish = b"\x32\x04" + self.remembers
        self.everybody(DISCOVER, wish)
        pause = DISCOVERS[min(self.tries, len(DISCOVERS) - 1)]
        self.tries += 1
        self.at(now + pause * dice.uniform(0.8, 1.2), "ask")

    def offer(self, now, address, server):
        self.offers.append((address, server))
        if len(self.offers) == 1:
            # Some take the first, others look what else there is.
            self.at(now + (0 if dice.random() < 0.3 else dice.uniform(0.05, 0.4)), "choose")

    def choose(self, now):
        address, self.server = dice.choice(self.offers)
        self.begin("requesting", address)
        self.tries = 0
        self.request(now)

    def request(self, now):
        if self.tries == len(REQUESTS):
            seen["offers not kept"] += 1
            self.discover(now)
            return
        self.everybody(REQUEST, b"\x32\x04" + self.asked + b"\x36\x04" + self.server)
        self.at(now + REQUESTS[self.tries] * dice.uniform(0.8, 1.2), "request")
        self.tries += 1

    def ack(self, now, address, server, seconds, t1, t2):
        kind = {"requesting": "select", "renewing": "renew", "rebinding": "rebind"}.get(self.state, "reboot")
        note("acked", now, self.name, dotted(address), dotted(self.asked), seconds, dotted(server), kind, int(self.sent * 1000))
        seen[kind] += 1
        fresh = self.state in ("requesting", "rebooting")
        self.address = self.remembers = address
        self.server = server
        self.until = self.sent + seconds
        self.t1, self.t2 = self.sent + t1 * dice.uniform(0.9, 1), self.sent + t2
        self.bound(now)
        if fresh:
            what = dice.choices([w for w, _ in LIVES], [n for _, n in LIVES])[0]
            self.life = what, now + seconds * dice.uniform(0.05, 1.2)
        elif self.life[0] == "stays" and len(LIVES) > 1 and dice.random() < 0.2:
            what = dice.choice(["returns", "leaves", "forgets", "reboots"])
            self.life = what, now + seconds * dice.uniform(0.05, 1.2)

    def bound(self, now):
        self.state = "bound"
        self.at(max(now, self.t1), "renew")

    def due(self, now):
        """What it does of its own will, once it is time; looked at before each of its timers."""
        what, when = self.life
        if what == "stays" or now < when:
            return False
        self.life = "stays", 0
        if what in ("returns", "leaves"):
            note("released", now, self.name, dotted(self.address))
            self.begin("init", None)
            self.send(RELEASE, self.address, self.server, stations[self.server], b"\x36\x04" + self.server, self.address)
        elif what in ("vanishes", "forgets"):
            note("forgot", now, self.name, dotted(self.address))
        self.state = "init"
        if what in ("leaves", "vanishes"):
            # Another machine comes in its place.
            self.token += 1
            del clients[self.mac]
            Client().at(now + dice.uniform(0.5, 5), "wants")
        elif what == "reboots":
            self.at(now + dice.uniform(0.5, 3), "reboot")
        else:
            if what == "forgets":
                self.remembers = None
            self.at(now + dice.uniform(0.2, 5), "wants")
        return True

    def reboot(self, now):
        self.since = now
        self.begin("rebooting", self.remembers)
        self.tries = 0
        self.verify(now)

    def verify(self, now):
        if now >= self.until:
            self.expire(now)
        elif self.tries == len(REQUESTS):
            # Section 3.2: nobody answers, so it goes on with what it has.
            seen["reboots unanswered"] += 1
            self.life = "stays", 0
            self.bound(now)
        else:
            self.everybody(REQUEST, b"\x32\x04" + self.remembers)
            self.at(min(self.until, now + REQUESTS[self.tries] * dice.uniform(0.8, 1.2)), "verify")
            self.tries += 1

    def renew(self, now):
        """RENEWING, REBINDING and the end, section 4.4.5."""
        if now >= self.until:
            self.expire(now)
            return
        state, edge = ("renewing", self.t2) if now < self.t2 else ("rebinding", self.until)
        if self.state != state:
            self.begin(state, self.address)
            self.since = now
        if state == "renewing":
            self.send(REQUEST, self.address, self.server, stations[self.server], b"", self.address)
        else:
            self.everybody(REQUEST, b"", self.address)
        self.at(min(edge, now + max(2, (edge - now) / 2)), "renew")

    def expire(self, now):
        note("expired", now, self.name, dotted(self.address))
        seen["expired"] += 1
        self.wants(now)

    def nak(self, now, server):
        kind = {"requesting": "select", "renewing": "renew", "rebinding": "rebind"}.get(self.state, "reboot")
        note("naked", now, self.name, dotted(self.asked), dotted(server), kind)
        seen["naks"] += 1
        self.remembers = None
        self.state = "init"
        if kind == "select":
            self.at(now + dice.uniform(0.5, 1.5), "discover")
        else:
            self.address = None
            self.at(now + dice.uniform(0.5, 1.5), "wants")

    def hear(self, now, frame, body):
        xid, yiaddr = frame[body + 4 : body + 8], frame[body + 16 : body + 20]
        options, at = {}, body + 240
        while at + 1 < len(frame) and frame[at] != 255:
            code, length = frame[at], frame[at + 1]
            options[code] = frame[at + 2 : at + 2 + length]
            at += 2 + length
        kind, server = options[53][0], options[54]
        stations[server] = frame[6:12]
        xid = int.from_bytes(xid, "big")
        waits = self.state not in ("init", "bound") and xid == self.xid
        if kind == OFFER:
            seen["offers"] += 1
            if waits and self.state == "selecting":
                self.offer(now, yiaddr, server)
        elif kind == ACK and waits and self.state != "selecting":
            seconds = int.from_bytes(options[51], "big")
            t1 = int.from_bytes(options.get(58, b""), "big") or seconds / 2
            t2 = int.from_bytes(options.get(59, b""), "big") or seconds * 7 / 8
            self.ack(now, yiaddr, server, seconds, t1, t2)
        elif kind == ACK:
            asked = next((asked for known, asked in self.xids if known == xid), None)
            note("stray", now, self.name, dotted(yiaddr), dotted(asked) if asked else "-", dotted(server))
            seen["stray ACKs"] += 1
        elif kind == NAK and waits and self.state != "selecting":
            self.nak(now, server)


def receive(most):
    for _ in range(most):
        try:
            frame = door.recv(2048)
        except BlockingIOError:
            return
        now = time.monotonic()
        if len(frame) < 34 or frame[23] != 17:
            continue
        body = 14 + (frame[14] & 15) * 4 + 8
        if len(frame) < body + 244 or frame[body - 6 : body - 4] != b"\0\x44" or frame[body] != 2:
            continue
        client = clients.get(frame[body + 28 : body + 34])
        if client is None:
            seen["for machines that are gone"] += 1
        else:
            client.hear(now, frame, body)


def act(most):
    """Timers that are due; a machine's own will first."""
    global latest
    for _ in range(most):
        now = time.monotonic()
        if not timers or timers[0][0] > now:
            return
        when, _, client, token, what, words = heapq.heappop(timers)
        if token != client.token:
            continue
        latest = max(latest, now - when)
        getattr(client, what)(now, *words)


def live(now):
    """Those who do something that no packet and no timer of their lease asks for."""
    for client in list(clients.values()):
        if client.state in ("bound", "renewing", "rebinding"):
            client.due(now)


start = time.monotonic()
note("clock", start, int(time.time() * 1000))
for n in range(count):
    Client().at(start + ramp * n / count, "wants")
flush = start
stop = None
while stop is None or time.monotonic() < stop:
    now = time.monotonic()
    if now >= flush:
        flush = now + 0.5
        history.flush()
        if stop is None:
            live(now)
    wait = flush
    if timers and stop is None:
        wait = min(wait, timers[0][0])
    ready, _, _ = select.select([door] + [sys.stdin] * (stop is None), [], [], max(0, wait - now))
    if sys.stdin in ready:
        # What was asked may still be answered.
        stop = now + 1.5
    receive(64)
    if stop is None:
        act(64)
note("end", time.monotonic())
history.close()
packets, dropped = struct.unpack("II", door.getsockopt(263, 6, 8))
seen["lost by the crowd itself"] = dropped
seen["machines"] = made
print(", ".join(f"{what} {seen[what]}" for what in sorted(seen)), f"; late by {latest:.3f} s at most", sep="", flush=True)
os._exit(0)
