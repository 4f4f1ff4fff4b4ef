"""DHCP of `make bench`: `dls serve` beside Kea and dnsmasq under the same load, in turn.

perfdhcp loads each server over a veth pair between two network namespaces of this run's own.
It speaks as a relay does, to all servers alike. All exchanges of a measurement are of machines
that the server has never seen. Every round measures every server before the next begins, so
that what else the machine does meets all alike; a figure is the median of all rounds. Each
process that is started here is ended here, by its number.
"""

import json
import os
import pathlib
import platform
import pwd
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

DLS = sys.argv[1]
ROUNDS = int(os.environ.get("BENCH_DHCP_ROUNDS", "3"))
SECONDS = int(os.environ.get("BENCH_DHCP_SECONDS", "4"))
# Exchanges a second that a server's search begins at ("dls=6000 kea-files=5000"), and the servers
# that are measured if not all.
FIRST = dict(part.split("=") for part in os.environ.get("BENCH_DHCP_FIRST", "").split() if "=" in part)
ONLY = os.environ.get("BENCH_DHCP_ONLY", "").split()
# A file that is locked while one server is measured, where others measure on the same machine.
LOCK = os.environ.get("BENCH_LOCK")
RESULTS = os.environ.get("BENCH_DHCP_RESULTS", "benches/RESULTS-dhcp.md")
DROPS = 0.01
# One thread of the generator's: on two processors its second one makes it miss more answers, of
# any server (its own receive buffer overflows).
MODE = ["-g", "single"]
PG = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda p: int(p.parent.name))

S, C = f"dlsb{os.getpid()}s", f"dlsb{os.getpid()}c"
NETWORK, POOL = "10.64.0.0/10", "10.65.0.0-10.126.255.255"
work = pathlib.Path(tempfile.mkdtemp(prefix="dls-bench-dhcp."))
work.chmod(0o755)
next_mac = 0x020000000000


def run(*command, **more):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def in_server(*command):
    return ["ip", "netns", "exec", S, *map(str, command)]


def someone():
    """A user for PostgreSQL, which refuses to be root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            pass
    sys.exit("neither a user postgres nor nobody")


class Server:
    """One that is measured: `begin` returns its process once it serves."""
    sync = "no database"

    def __init__(self, keep=True):
        """`keep`: renewals of leases of which no more than a quarter is gone are not written."""
        self.keep = keep
        self.home = pathlib.Path(tempfile.mkdtemp(dir=work))
        self.home.chmod(0o777)
        self.processes = []

    def start(self, *command, ready, user=None):
        log = open(self.home / "log", "ab")
        more = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        command = in_server(*command) if not user else in_server(
            "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *command)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home)
        self.processes.append(process)
        for _ in range(600):
            if process.poll() is not None:
                break
            if ready():
                return
            time.sleep(0.1)
        sys.exit(f"{command}: {(self.home / 'log').read_text()[-3000:]}")

    def notes(self):
        """What there is to say of it after its runs."""
        return ""

    def end(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGINT if "postgres" in str(process.args) else signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in pids():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)


def serves(port):
    """Somebody is bound to that UDP port in the server's namespace."""
    return lambda: f":{port}" in run(*in_server("ss", "-Huln"))


class Dls(Server):
    key, name, first = "dls", "dls", 6000

    def begin(self):
        config = self.home / "dls.toml"
        config.write_text(f'state_dir = "{self.home}/state"\n[dhcp]\ninterfaces = ["bench0"]\n'
                          f'keep_percent = {25 if self.keep else 0}\n[log]\nfilter = "warn"\n')
        dls = in_server(DLS, "--config", config)

        def ready():
            return subprocess.run(in_server("curl", "-fsm1", "http://127.0.0.1:8080/readyz"), capture_output=True,
                                  check=False).returncode == 0
        self.start(DLS, "--config", config, "serve", ready=ready)
        run(*dls, "range", "add", "--network", NETWORK, "--pool", POOL, "--mode", "full")
        self.sync = synced(run(*dls, "psql", "--", "-Atc", SYNCED))

    def notes(self):
        metrics = run(*in_server("curl", "-fsm5", "http://127.0.0.1:8080/metrics"))

        def count(name):
            return int(re.search(rf"^dls_dhcp_{name} (\d+)$", metrics, re.M)[1])
        return (f"{count('leases_kept_total'):,} leases were renewed with nothing to write, {count('leases_owed_total'):,} "
                "were synced to dls's own journal before they were in PostgreSQL "
                f"(which took longer than 150 ms), {count('leases_stored_total'):,} were in PostgreSQL first")


class KeaFiles(Server):
    """Kea as it does best with files, which is as Debian installs it: in one thread."""

    key, name, first = "kea-files", "Kea, file leases", 10000
    threads = 0

    def leases(self):
        return {"type": "memfile", "persist": True, "name": str(self.home / "leases.csv")}

    def begin(self):
        config = {"Dhcp4": {
            "interfaces-config": {"interfaces": ["bench0"], "dhcp-socket-type": "raw"},
            "lease-database": self.leases(),
            "valid-lifetime": 86400,
            # Its own default is to write them all.
            **({"cache-threshold": 0.25} if self.keep else {}),
            "multi-threading": {"enable-multi-threading": self.threads > 0, "thread-pool-size": self.threads,
                                "packet-queue-size": 64},
            "subnet4": [{"id": 1, "subnet": NETWORK, "pools": [{"pool": POOL}]}],
            "loggers": [{"name": "kea-dhcp4", "severity": "ERROR",
                         "output_options": [{"output": str(self.home / "kea.log")}]}],
        }}
        path = self.home / "kea.json"
        path.write_text(json.dumps(config))
        os.environ["KEA_PIDFILE_DIR"] = os.environ["KEA_LOCKFILE_DIR"] = str(self.home)
        self.start("kea-dhcp4", "-c", path, ready=serves(67))


SYNCED = "SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes')"


def synced(row):
    return "fsync {}, synchronous_commit {}, full_page_writes {}".format(*row.strip().split("|"))


class KeaFilesThreads(KeaFiles):
    key, name, first = "kea-threads", "Kea, file leases, a thread per processor", 6000
    threads = os.cpu_count()


class KeaPostgres(KeaFiles):
    """With a thread per processor: in one it does less than half as much."""

    key, name, first = "kea-postgres", "Kea, PostgreSQL", 1500
    threads = os.cpu_count()

    def leases(self):
        return {"type": "postgresql", "host": str(self.home / "run"), "name": "kea", "user": "kea", "password": "kea"}

    def begin(self):
        user = someone()
        data, sockets = self.home / "data", self.home / "run"
        sockets.mkdir()
        os.chown(sockets, user.pw_uid, user.pw_gid)
        run("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
            PG / "initdb", "-D", data, "-A", "trust", "-U", "postgres", cwd="/")
        psql = in_server("psql", "-h", sockets, "-U", "postgres", "-At")
        self.start(PG / "postgres", "-D", data, "-k", sockets, "-c", "listen_addresses=127.0.0.1", user=user,
                   ready=lambda: subprocess.run([*psql, "-c", "SELECT 1"], capture_output=True, check=False).returncode == 0)
        run(*psql, "-c", "CREATE USER kea PASSWORD 'kea'")
        run(*psql, "-c", "CREATE DATABASE kea OWNER kea")
        run(*in_server("kea-admin", "db-init", "pgsql", "-u", "kea", "-p", "kea", "-n", "kea", "-h", "127.0.0.1"))
        self.sync = synced(run(*psql, "-c", SYNCED))
        super().begin()


class Dnsmasq(Server):
    key, name, first = "dnsmasq", "dnsmasq", 300

    def begin(self):
        first, last = POOL.split("-")
        self.start("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=bench0",
                   "--bind-interfaces", f"--dhcp-range={first},{last},255.192.0.0,24h", "--dhcp-lease-max=4000000",
                   "--no-ping", "--quiet-dhcp", "--dhcp-authoritative", f"--dhcp-leasefile={self.home}/leases",
                   "--user=root", "--log-facility=" + str(self.home / "dnsmasq.log"), ready=serves(67))


SERVERS = [Dls, KeaFiles, KeaFilesThreads, KeaPostgres, Dnsmasq]


# ---- load ----

def pids():
    return [int(p) for p in run("ip", "netns", "pids", S).split()]


def processor_seconds():
    """Of all processes of the server: everything in its namespace."""
    ticks = 0
    for pid in pids():
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(int(fields[i]) for i in (11, 12, 13, 14))
    return ticks / os.sysconf("SC_CLK_TCK")


def settle():
    """Waits until the server has done what it still had to do."""
    before = processor_seconds()
    for _ in range(60):
        time.sleep(0.25)
        now = processor_seconds()
        if now - before < 0.02:
            return
        before = now


class Load:
    """What perfdhcp says of one run."""

    def __init__(self, rate, seconds, renewals=False):
        global next_mac
        clients = rate * seconds * 2
        mac = ":".join(f"{next_mac:012x}"[i:i + 2] for i in range(0, 12, 2))
        # perfdhcp counts in the last octets and carries nothing from one to the next.
        next_mac += 1 << 24
        renew = ["-f", str(rate)] if renewals else []
        before = processor_seconds()
        text = subprocess.run(
            ["ip", "netns", "exec", C, "perfdhcp", "-4", "-l", "bench1", "-r", str(rate), "-R", str(clients), *renew,
             "-p", str(seconds), "-W", "800000", "-b", f"mac={mac}", "-s", "1", *MODE, "10.64.0.1"],
            capture_output=True, text=True, check=False).stdout
        self.text = text
        parts = text.split("***Statistics for: ")[1:]
        numbers = {}
        for part in parts:
            name = part.split("***", 1)[0].strip()
            sent = int(re.search(r"sent packets: (\d+)", part)[1])
            received = int(re.search(r"received packets: (\d+)", part)[1])
            numbers[name] = (sent, received)
        self.offers = numbers.get("DISCOVER-OFFER", (0, 0))
        self.acks = numbers.get("REQUEST-ACK", (0, 0))
        self.renewals = numbers.get("REQUEST-ACK (renewal)", (0, 0)) if renewals else None
        self.took = seconds
        settle()
        self.processor = processor_seconds() - before

    @property
    def rate(self):
        """Whole exchanges a second."""
        return self.acks[1] / self.took

    @property
    def renewal_rate(self):
        return self.renewals[1] / self.took

    @property
    def drops(self):
        pairs = [self.offers, self.acks] + ([self.renewals] if self.renewals else [])
        return max(1 - received / sent if sent else 1.0 for sent, received in pairs)


def highest(first, renewals=False):
    """The best run with less than 1 % drops. Doubles or halves, then narrows down to 5 %."""
    good, bad, rate = None, None, first
    while True:
        load = Load(int(rate), SECONDS, renewals)
        if load.drops >= DROPS:
            # Once more: a hiccup of the machine is not the server's.
            load = Load(int(rate), SECONDS, renewals)
        shown = f"    {int(rate)}/s asked: {load.rate:.0f}/s, drops {load.drops:.1%}"
        print(shown + (f", renewals {load.renewal_rate:.0f}/s" if renewals else ""), flush=True)
        # Where the generator falls behind there is nothing more to be had.
        if load.drops < DROPS:
            good = load if good is None or load.rate > good.rate else good
            if load.rate < 0.9 * int(rate):
                return good
            low = rate
        else:
            bad = rate if bad is None else min(bad, rate)
        if bad is None:
            rate = low * 1.3
        elif good is None:
            rate = bad * 0.6
            if rate < 20:
                return load
        elif bad / low <= 1.06:
            return good
        else:
            rate = (bad * low) ** 0.5


def latencies(rate):
    """p99 of DISCOVER to OFFER and of REQUEST to ACK, milliseconds, from a capture at the client's end."""
    file = work / "capture"
    tcpdump = subprocess.Popen(["ip", "netns", "exec", C, "tcpdump", "-i", "bench1", "-Z", "root", "-B", "65536", "-s", "400", "-w", file,
                                "--time-stamp-precision=nano", "udp port 67"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    tcpdump.stderr.readline()
    time.sleep(0.5)
    load = Load(rate, SECONDS)
    tcpdump.send_signal(signal.SIGINT)
    tcpdump.communicate()
    asked, took = {}, {1: [], 3: []}
    data = file.read_bytes()
    at = 24
    while at + 16 <= len(data):
        seconds, nanoseconds, length, _ = struct.unpack_from("<IIII", data, at)
        packet = data[at + 16:at + 16 + length]
        at += 16 + length
        dhcp = packet[14 + 20 + 8:]
        options, kind = dhcp[240:], None
        i = 0
        while i + 2 < len(options) and options[i] != 255:
            if options[i] == 0:
                i += 1
                continue
            if options[i] == 53:
                kind = options[i + 2]
                break
            i += 2 + options[i + 1]
        now = seconds * 1000 + nanoseconds / 1e6
        # By machine: every one does a single exchange.
        key = dhcp[28:34]
        if kind in (1, 3):
            asked.setdefault((key, kind), now)
        elif kind in (2, 5) and (then := asked.get((key, kind - (1 if kind == 2 else 2)))) is not None:
            took[1 if kind == 2 else 3].append(now - then)
    file.unlink()

    def p99(values):
        return sorted(values)[int(len(values) * 0.99)] if values else float("nan")
    return p99(took[1]), p99(took[3]), load


# ---- the run ----

def lay_cable():
    for name in (S, C):
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    run("ip", "-n", S, "link", "add", "bench0", "type", "veth", "peer", "name", "bench1", "netns", C)
    run("ip", "-n", S, "addr", "add", "10.64.0.1/10", "brd", "+", "dev", "bench0")
    run("ip", "-n", C, "addr", "add", "10.64.0.2/10", "brd", "+", "dev", "bench1")
    run("ip", "-n", S, "link", "set", "bench0", "up")
    run("ip", "-n", C, "link", "set", "bench1", "up")


def remove_cable():
    for name in (S, C):
        subprocess.run(["ip", "netns", "delete", name], check=False)


def measured(kind, hints, kea):
    """`kea`: the highest rates of Kea's two ways, at which all are measured in the same round."""
    server = kind()
    try:
        server.begin()
        Load(50, 1)
        best = highest(hints.get("new", 300))
        found = {"new": best.rate, "processor": best.processor / best.acks[1] if best.acks[1] else float("nan")}
        hints["new"] = max(best.rate, 20)
        if kind in kea:
            kea[kind] = best.rate
        renewals(hints, found, "kept", best)
        found["common offer"], found["common ack"], common = latencies(int(kea[KeaPostgres]))
        found["offer"], found["ack"], load = latencies(int(kea[KeaFiles]))
        found["drops"] = load.drops
        found["common"] = common.processor / common.acks[1] if common.acks[1] else float("nan")
        found["sync"] = server.sync
        found["notes"] = server.notes()
    finally:
        server.end()
    server = kind(keep=False)
    try:
        server.begin()
        Load(50, 1)
        renewals(hints, found, "written", best)
        return found
    finally:
        server.end()


def renewals(hints, found, key, best):
    both = highest(hints.get(key, max(best.rate / 2, 20)), renewals=True)
    found[key] = both.renewal_rate
    hints[key] = max(both.renewal_rate, 20)


def locked(function, *arguments):
    if not LOCK:
        return function(*arguments)
    import fcntl
    with open(LOCK, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return function(*arguments)


def version(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "?"


def table(figures):
    def median(kind, key):
        values = [f[key] for f in figures[kind.name] if key in f and f[key] == f[key]]
        return statistics.median(values) if values else float("nan")

    def number(value, digits=0):
        return "-" if value != value else f"{value:,.{digits}f}"
    rows = []
    ours = {key: median(Dls, key) for key in ("new", "kept", "written", "common")}
    for kind in SERVERS:
        if not figures[kind.name]:
            continue
        m = {key: median(kind, key) for key in ("new", "kept", "written", "processor", "common", "common offer", "common ack",
                                                "offer", "ack", "drops")}
        spread = [f["new"] for f in figures[kind.name]]
        rows.append("| " + " | ".join([
            kind.name, f"{number(m['new'])} ({number(min(spread))}-{number(max(spread))})", number(ours["new"] / m["new"], 2),
            *(part for key in ("kept", "written") for part in (number(m[key]), number(ours[key] / m[key], 2))),
            number(m["processor"] * 1e6),
            number(m["common"] * 1e6), number(ours["common"] / m["common"], 2),
            number(m["common offer"], 2), number(m["common ack"], 2), number(m["offer"], 2), number(m["ack"], 2), number(m["drops"] * 100, 2)]) + " |")
    return rows


def main():
    if os.geteuid():
        sys.exit("run as root: network namespaces are made")
    kinds = [kind for kind in SERVERS if not ONLY or kind.key in ONLY]
    figures = {kind.name: [] for kind in SERVERS}
    hints = {kind.name: {"new": float(FIRST.get(kind.key, kind.first))} for kind in SERVERS}
    kea = {kind: hints[kind.name]["new"] for kind in (KeaPostgres, KeaFiles)}
    lay_cable()
    try:
        for round_number in range(ROUNDS):
            # Kea's own rates are known once it was measured; so it goes first.
            for kind in sorted(kinds, key=lambda k: [*kea].index(k) if k in kea else len(kea)):
                print(f"round {round_number + 1}: {kind.name}", flush=True)
                found = locked(measured, kind, hints[kind.name], kea)
                figures[kind.name].append(found)
                print("  " + ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k}: {v}" for k, v in found.items()), flush=True)
    finally:
        remove_cable()
        shutil.rmtree(work, ignore_errors=True)
    processor = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    lines = [
        "# DHCP: figures of `benches/dhcp.sh`", "",
        f"One run, {ROUNDS} rounds; every figure is the median of its rounds (in brackets: lowest and highest). "
        f"{os.cpu_count()} cores ({processor}), Linux {platform.release()}; perfdhcp, the server and its database share them.",
        "", f"dls {version(DLS, '--version')}; Kea {version('kea-dhcp4', '-v')}; {version('dnsmasq', '--version')}; "
        f"{version(str(PG / 'postgres'), '--version')}.", "",
        "As the live servers say: " + "; ".join(f"{name}: {f[-1]['sync']}" for name, f in figures.items() if f) + ". "
        + " ".join(f"{name}, last round: {f[-1]['notes']}." for name, f in figures.items() if f and f[-1]["notes"]), "",
        f"New: whole exchanges (DISCOVER to ACK) of unknown machines a second, the most with under 1 % lost, runs of {SECONDS} s. "
        "Renewals: renewed leases a second, beside as many new exchanges; fresh: of which no more than a quarter is gone, with dls "
        "as it is and Kea's cache-threshold at 0.25, so that both leave out what need not be written; written: dls with "
        "keep_percent = 0 and Kea as it is. dnsmasq has no such choice. Processor: of the server and its PostgreSQL, microseconds "
        "per new exchange, at its own highest rate and at Kea's with PostgreSQL (the same rate). p99: from a packet capture, new "
        "machines, at Kea's highest rate with PostgreSQL and at its highest with file leases, which it does not sync. Ratios: dls "
        "by the other (processor: below 1 is less).", "",
        "| server | new/s | ratio | fresh renewals/s | ratio | written renewals/s | ratio | us, own rate | us, same rate | ratio | p99 OFFER, ms, same rate | p99 ACK | p99 OFFER, ms, rate of Kea with files | p99 ACK | lost there, % |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *table(figures), ""]
    pathlib.Path(RESULTS).write_text("\n".join(lines))
    print("\n".join(lines))


main()
