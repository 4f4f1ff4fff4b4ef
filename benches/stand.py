"""A `dls serve` of its own in a network namespace, for the benchmarks of whole sites. What is started
here is ended here, by its number."""

import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def inside(namespace, *command):
    return ["ip", "netns", "exec", namespace, *map(str, command)]


def resident(pid):
    """MiB."""
    line = next(l for l in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if l.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def machine():
    processor = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    return (f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; {os.cpu_count()} processors ({processor}), "
            f"Linux {platform.release()}, load at the end {os.getloadavg()[0]:.1f}")


class Stand:
    """The server's namespace `server` and the machines' `client`, a veth pair between them."""

    def __init__(self, program):
        if os.geteuid():
            sys.exit("run as root: network namespaces are made")
        self.program = os.path.abspath(program)
        self.server, self.client = f"dlst{os.getpid()}s", f"dlst{os.getpid()}c"
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="dls-bench."))
        self.work.chmod(0o755)
        self.config = self.work / "dls.toml"
        self.config.write_text(f'state_dir = "{self.work}/state"\n[log]\nfilter = "warn"\n')
        self.process = None

    def __enter__(self):
        for name in (self.server, self.client):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", self.server, "link", "add", "lan0", "type", "veth", "peer", "name", "lan1", "netns", self.client)
        for name, device, address in ((self.server, "lan0", "10.77.0.1/16"), (self.client, "lan1", "10.77.0.9/16")):
            run("ip", "-n", name, "addr", "add", address, "brd", "+", "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *_):
        self.stop()
        for name in (self.server, self.client):
            for left in run("ip", "netns", "pids", name).split():
                os.kill(int(left), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], check=False)
        shutil.rmtree(self.work, ignore_errors=True)

    def start(self):
        """Seconds until it is ready."""
        began = time.monotonic()
        self.process = subprocess.Popen(
            inside(self.server, self.program, "--config", self.config, "serve"), stdin=subprocess.DEVNULL,
            stdout=open(self.work / "log", "ab"), stderr=subprocess.STDOUT, cwd=self.work)
        while time.monotonic() < began + 60:
            ready = subprocess.run(inside(self.server, "curl", "-fsm1", "http://127.0.0.1:8080/readyz"), capture_output=True,
                                   text=True, check=False).stdout
            if '"degraded":false' in ready.replace(" ", ""):
                return time.monotonic() - began
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        sys.exit((self.work / "log").read_text()[-3000:])

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def dls(self, *words):
        return run(*inside(self.server, self.program, "--config", self.config, *words))

    def psql(self, sql):
        return self.dls("psql", "--", "-Atc", sql).strip()

    def processes(self):
        """The server's and its database's."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.server).split()]

    def pid(self):
        """The server's own."""
        own = []
        for pid in self.processes():
            try:
                if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "dls":
                    own.append((resident(pid), pid))
            except (FileNotFoundError, StopIteration):
                continue
        return max(own)[1]

    def spent(self):
        """Processor seconds of dls and of PostgreSQL, those of ended children included."""
        seconds = {"dls": 0.0, "PostgreSQL": 0.0}
        for pid in self.processes():
            try:
                name, fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
            except FileNotFoundError:
                continue
            used = sum(map(int, fields.split()[11:15])) / TICKS
            seconds["PostgreSQL" if "postgres" in name else "dls"] += used
        return seconds


def write(path, lines):
    pathlib.Path(path).write_text("\n".join(lines))
    print("\n".join(lines))
