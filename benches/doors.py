"""What the benchmarks of TFTP and HTTP share: processes, the real `dls serve`, tables.

Each process that is started here is ended here, by its number. Everything runs in the network
namespace that the caller's script made.
"""

import http.client
import os
import pwd
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

SECONDS = int(os.environ.get("BENCH_SECONDS", "2"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
LOAD = os.getloadavg()[0]

processes = []


def start(*command, **more):
    more.setdefault("stdout", subprocess.DEVNULL)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, **more)
    processes.append(process)
    return process


def stop(process):
    processes.remove(process)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def said(*command):
    """The first line that a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "?"


def package(name):
    """The version that Debian has installed."""
    version = said("dpkg-query", "-W", "-f=${Version}", name)
    return f"{name} {version}"


def file_of(path, size):
    """A file of random bytes that every server may read."""
    with open(path, "wb") as made:
        for at in range(0, size, 1 << 20):
            made.write(os.urandom(min(1 << 20, size - at)))
    os.chmod(path, 0o644)


class Dls:
    """`dls serve` with a database of its own, ready to serve."""

    def __init__(self, program, folder, loaders):
        self.program, self.folder = program, folder
        self.config = os.path.join(folder, "dls.toml")
        self.state = os.path.join(folder, "state")
        user = next(u for u in ("dls", "postgres", "nobody") if known(u))
        ports = [free_port() for _ in range(6)]
        self.tftp, self.http, self.admin = ports[:3]
        with open(self.config, "w") as config:
            config.write(f'''state_dir = "{self.state}"
user = "{user}"
[tftp]
listen = "0.0.0.0:{ports[0]}"
[http]
listen = "0.0.0.0:{ports[1]}"
[admin]
listen = "127.0.0.1:{ports[2]}"
[iscsi]
listen = "127.0.0.1:{ports[3]}"
[nbd]
listen = "127.0.0.1:{ports[4]}"
[boot]
loader_dir = "{loaders}"
''')
        self.log = open(os.path.join(folder, "dls.log"), "w+")
        self.process = start(program, "serve", "--config", self.config, stdout=self.log)
        deadline = time.monotonic() + 120
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                sys.exit(f"dls does not come up: {self.log.read()}")
            time.sleep(0.1)

    def answers(self):
        try:
            asked = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=2)
            asked.request("GET", "/readyz")
            return asked.getresponse().status == 200
        except OSError:
            return False

    def run(self, *arguments):
        done = subprocess.run([self.program, "--config", self.config, *arguments],
                              capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"dls {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout


def known(user):
    try:
        return pwd.getpwnam(user)
    except KeyError:
        return None


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def processor_time(process):
    """Seconds of processor time that a process and its children have taken so far."""
    ticks = 0
    family = [process.pid]
    while family:
        pid = family.pop()
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            with open(f"/proc/{pid}/task/{pid}/children") as children:
                family += [int(c) for c in children.read().split()]
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def ratio(values, ours, peer):
    """The median of the rounds' own ratios: the pairs ran side by side."""
    return statistics.median(a / b for a, b in zip(values[ours], values[peer]))


def table(figures, ours, peers, best=False):
    """One line a case: medians, then ratios. `figures`: case -> server -> list of rounds."""
    names = list(next(iter(figures.values())))
    heads = [f"{ours} / {peer}" for peer in peers] + (["against the best of these"] if best else [])
    lines = ["| | " + " | ".join(names) + " | " + " | ".join(heads) + " |",
             "|---" * (1 + len(names) + len(heads)) + "|"]
    for case, values in figures.items():
        middle = {name: statistics.median(v) for name, v in values.items()}
        cells = [f"{middle[name]:,.0f}" for name in names]
        cells += [f"{ratio(values, ours, peer):.2f}" for peer in peers]
        if best:
            first = max(peers, key=lambda peer: middle[peer])
            cells.append(f"**{ratio(values, ours, first):.2f}** ({first})")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return lines + [""]


def head(title, words, versions):
    """How a file of results begins."""
    with open("/proc/cpuinfo") as info:
        cpu = re.search(r"model name\s*: (.*)", info.read())
    changed = "" if said("git", "status", "--porcelain", "src") == "?" else ", with changes"
    return [
        f"# {title}", "", words, "",
        f"- {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, commit "
        f"{said('git', 'rev-parse', '--short', 'HEAD')}{changed}",
        f"- {cpu.group(1) if cpu else '?'}, {os.cpu_count()} processors, Linux "
        f"{os.uname().release}; load before the run and after it: {LOAD:.1f}, "
        f"{os.getloadavg()[0]:.1f}",
        *[f"- {version}" for version in versions], "",
    ]


def within(measure):
    """Runs a measurement in a folder that every server may enter, and cleans up after it."""
    folder = tempfile.mkdtemp(prefix="dls-bench-", dir=os.environ.get("BENCH_DIR"))
    os.chmod(folder, 0o755)
    try:
        measure(folder)
    finally:
        for process in list(processes):
            stop(process)
        shutil.rmtree(folder, ignore_errors=True)
