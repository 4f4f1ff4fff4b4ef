"""The measurements of `make bench`: starts servers, loads them in turn, writes RESULTS.md.

Every round measures every server in every case before the next round begins, so that what
else the machine does meets all alike. A figure is the median of all rounds. Each process that
is started here is ended here, by its number.
"""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

OURS = sys.argv[1]
SECONDS = int(os.environ.get("BENCH_SECONDS", "2"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SIZE = 1 << 30

# Name, fio's arguments, unit. First all rounds of what reads a clone that is as it was made
# (what a machine's boot does), then all rounds of what writes it and reads it afterwards.
NBD_READS = [
    ("4 KiB random read, depth 1", ["--rw=randread", "--bs=4k", "--iodepth=1"], "iops"),
    ("4 KiB random read, depth 32", ["--rw=randread", "--bs=4k", "--iodepth=32"], "iops"),
    ("128 KiB sequential read, depth 8", ["--rw=read", "--bs=128k", "--iodepth=8"], "MB/s"),
]
NBD_WRITES = [
    ("4 KiB random write, depth 32", ["--rw=randwrite", "--bs=4k", "--iodepth=32"], "iops"),
    ("128 KiB sequential read, depth 8, after these writes",
     ["--rw=read", "--bs=128k", "--iodepth=8"], "MB/s"),
]
NBD_CASES = NBD_READS + NBD_WRITES
# iscsi-perf: blocks of 512 bytes.
ISCSI_CASES = [
    ("4 KiB random read, depth 1", ["-r", "-b", "8", "-m", "1"], "iops"),
    ("4 KiB random read, depth 32", ["-r", "-b", "8", "-m", "32"], "iops"),
    ("128 KiB sequential read, depth 8", ["-b", "256", "-m", "8"], "MB/s"),
]

processes = []


def start(*command, **more):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, **more)
    processes.append(process)
    return process


def stop(process):
    processes.remove(process)
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(number, process):
    # An import comes first, which a busy disk may make slow.
    for _ in range(6000):
        if process.poll() is not None:
            sys.exit(f"{process.args}: {process.stdout.read().decode()}")
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", number)) == 0:
                return
        time.sleep(0.02)
    sys.exit(f"{process.args} does not listen")


def said(*command):
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "?"


def modes():
    """What serve_disk of this tree can do."""
    done = subprocess.run([OURS, "modes"], capture_output=True, text=True)
    return done.stdout.split()


def fio(number, case, unit, folder):
    done = subprocess.run(
        ["fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd://127.0.0.1:{number}/",
         f"--size={SIZE}", "--time_based", f"--runtime={SECONDS}", "--randrepeat=0",
         "--norandommap", "--output-format=json", *case],
        capture_output=True, text=True, cwd=folder, timeout=SECONDS + 60)
    if done.returncode:
        sys.exit(f"fio: {done.stdout}{done.stderr}")
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    if job["error"]:
        sys.exit(f"fio: error {job['error']}")
    side = job["write"] if job["write"]["total_ios"] else job["read"]
    return side["iops"] if unit == "iops" else side["bw_bytes"] / 1e6


def iscsi_perf(number, target, case, unit):
    url = f"iscsi://127.0.0.1:{number}/{target}"
    # It runs for ever; timeout ends it, and its last line tells the mean.
    done = subprocess.run(["timeout", "--signal=INT", str(SECONDS + 1), "iscsi-perf", *case, url],
                          capture_output=True, text=True)
    found = re.findall(r"iops average (\d+) \((\d+) MB/s\)", done.stdout)
    if not found:
        sys.exit(f"iscsi-perf: {done.stdout}{done.stderr}")
    blocks = int(case[case.index("-b") + 1])
    iops = int(found[-1][0])
    return iops if unit == "iops" else iops * blocks * 512 / 1e6


def nbd_servers(folder, base):
    own = os.path.join(folder, "own.img")
    shutil.copyfile(base, own)
    overlay = os.path.join(folder, "overlay.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay],
                   check=True)
    ours = {}
    if "clone" in modes():
        ours["dls, clone"] = lambda p: [OURS, "nbd", p, base, "clone"]
    else:
        ours["dls, plain file"] = lambda p: [OURS, "nbd", p, own]
    return ours | {
        "nbdkit file": lambda p: ["nbdkit", "-f", "-i", "127.0.0.1", "-p", p, "file", own],
        "nbdkit cow": lambda p: ["nbdkit", "-f", "-i", "127.0.0.1", "-p", p, "--filter=cow",
                                 "file", base],
        "qemu-nbd qcow2": lambda p: ["qemu-nbd", "-t", "-b", "127.0.0.1", "-p", p, "-e", "8",
                                     "-f", "qcow2", overlay],
        # What the load generator can take: no disk, no layers.
        "dls, memory": lambda p: [OURS, "nbd", p, "memory"],
        "nbdkit null": lambda p: ["nbdkit", "-f", "-i", "127.0.0.1", "-p", p, "null",
                                  str(SIZE)],
    }


def measure_nbd(folder, base):
    running = {}
    for name, command in nbd_servers(folder, base).items():
        number = port()
        process = start(*command(str(number)), env=dict(os.environ, TMPDIR=folder))
        wait_for(number, process)
        running[name] = (number, process)
    # Everything in the page cache, and in large pieces: a cold random read would leave pages there
    # one by one, for as long as they stay.
    for number, _ in running.values():
        for _ in range(2):
            fio(number, ["--rw=read", "--bs=1m", "--iodepth=4"], "iops", folder)
    figures = {}
    for part, cases in (("reads", NBD_READS), ("writes", NBD_WRITES)):
        for round_ in range(ROUNDS):
            for case, arguments, unit in cases:
                for name, (number, _) in running.items():
                    value = fio(number, arguments, unit, folder)
                    figures.setdefault(case, {}).setdefault(name, []).append(value)
            print(f"NBD, {part}: round {round_ + 1} of {ROUNDS}", flush=True)
    for _, process in running.values():
        stop(process)
    return figures


def measure_iscsi(folder, base):
    if "iscsi" not in modes() or not shutil.which("tgtd") or not shutil.which("iscsi-perf"):
        return {}
    number, control = port(), 32000
    tgt = start("tgtd", "-f", "-C", str(control), "--iscsi", f"portal=127.0.0.1:{number}")
    wait_for(number, tgt)
    target = "iqn.2026-11.internal.bench:tgt"
    admin = ["tgtadm", "-C", str(control), "--lld", "iscsi"]
    for more in (
        ["--op", "new", "--mode", "target", "--tid", "1", "-T", target],
        ["--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", base],
        ["--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"],
    ):
        subprocess.run(admin + more, check=True)
    ours = port()
    process = start(OURS, "iscsi", str(ours), base, *(["clone"] if "clone" in modes() else []))
    wait_for(ours, process)
    own = "iqn.2026-11.internal.dls:" + "0" * 32
    figures = {}
    for round_ in range(ROUNDS):
        for case, arguments, unit in ISCSI_CASES:
            for name, at, lun in (("dls", ours, own + "/0"), ("tgt", number, target + "/1")):
                value = iscsi_perf(at, lun, arguments, unit)
                figures.setdefault(case, {}).setdefault(name, []).append(value)
        print(f"iSCSI: round {round_ + 1} of {ROUNDS}", flush=True)
    stop(process)
    stop(tgt)
    return figures


def measure_store(folder, base):
    """Clones, and an import beside qemu-img with a sync and one pass of sha256."""
    if "clone" not in modes():
        return []
    env = dict(os.environ, TMPDIR=folder)
    done = subprocess.run([OURS, "clones", base], capture_output=True, text=True, env=env,
                          check=True)
    times = json.loads(done.stdout)
    lines = ["## Clones and imports", "",
             "| | make, ms | open, ms |", "|---|---|---|"]
    for count, (made, opened) in times.items():
        lines.append(f"| a clone, when there are {int(count):,} | {made:.2f} | {opened:.2f} |")
    source, raw = os.path.join(folder, "source.qcow2"), os.path.join(folder, "double.img")
    with open(raw, "wb") as double:
        for _ in range(2):
            with open(base, "rb") as one:
                shutil.copyfileobj(one, double, 1 << 20)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, source], check=True)
    os.unlink(raw)
    os.sync()
    ours, theirs = [], []
    target = os.path.join(folder, "target.img")
    for round_ in range(min(ROUNDS, 3)):
        done = subprocess.run([OURS, "import", source], capture_output=True, text=True, env=env,
                              check=True)
        ours.append(float(done.stdout))
        begin = time.monotonic()
        subprocess.run(["qemu-img", "convert", "-t", "none", "-O", "raw", source, target],
                       check=True)
        subprocess.run(["sync", target], check=True)
        subprocess.run(["sha256sum", source], check=True, stdout=subprocess.DEVNULL)
        theirs.append(time.monotonic() - begin)
        os.unlink(target)
        print(f"import: round {round_ + 1}", flush=True)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    return lines + [
        "",
        f"Import of a qcow2 of 2 GiB (random bytes), hashed, verified and synced: "
        f"{statistics.median(ours):.1f} s; `qemu-img convert -t none`, sync, sha256sum: "
        f"{statistics.median(theirs):.1f} s; **{ratio:.2f}** times as long.", ""]


def table(title, cases, figures, ours, against):
    units = {case: unit for case, _, unit in cases}
    names = list(next(iter(figures.values())))
    lines = [f"## {title}", "", "| | " + " | ".join(names) + " | "
             + " | ".join(f"{ours} / {peer}" for peer in against) + " |",
             "|---" * (1 + len(names) + len(against)) + "|"]
    for case, values in figures.items():
        middle = {name: statistics.median(v) for name, v in values.items()}
        # A ratio is the median of the rounds' own ratios: the pairs ran side by side.
        ratios = [statistics.median(a / b for a, b in zip(values[ours], values[peer]))
                  for peer in against]
        cells = [f"{middle[name]:,.0f}" for name in names]
        cells += [f"**{ratio:.2f}**" for ratio in ratios]
        lines.append(f"| {case}, {units[case]} | " + " | ".join(cells) + " |")
    return lines + [""]


def main():
    folder = tempfile.mkdtemp(prefix="dls-bench-", dir=os.environ.get("BENCH_DIR"))
    try:
        base = os.path.join(folder, "base.img")
        with open("/dev/urandom", "rb") as source, open(base, "wb") as image:
            for _ in range(SIZE >> 20):
                image.write(source.read(1 << 20))
        os.sync()
        os.chmod(base, 0o644)
        nbd = measure_nbd(folder, base)
        iscsi = measure_iscsi(folder, base)
        store = measure_store(folder, base)
        with open("/proc/cpuinfo") as info:
            cpu = re.search(r"model name\s*: (.*)", info.read())
        commit = said("git", "rev-parse", "--short", "HEAD")
        lines = [
            "# Figures of `make bench`",
            "",
            "Servers on loopback, one base image of 1 GiB of random bytes in the page cache; median "
            f"of {ROUNDS} rounds of {SECONDS} s, all servers in turn within each round; ratios are "
            "medians of each round's own.",
            "",
            f"- {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, commit {commit}",
            f"- {cpu.group(1) if cpu else '?'}, {os.cpu_count()} processors, Linux "
            f"{os.uname().release}; load before the run and after it: "
            f"{LOAD:.1f}, {os.getloadavg()[0]:.1f}",
            f"- TCP on loopback: {CONGESTION}",
            f"- {said('fio', '--version')}; {said('nbdkit', '--version')}; "
            f"{said('qemu-nbd', '--version')}; libnbd: {said('nbdinfo', '--version')}",
        ]
        if iscsi:
            lines.append(f"- tgt {said('tgtd', '--version')}; iscsi-perf of libiscsi")
        ours = next(iter(next(iter(nbd.values()))))
        lines += [""] + table("NBD (fio's nbd engine)", NBD_CASES, nbd, ours,
                              ["nbdkit file", "nbdkit cow", "qemu-nbd qcow2"])
        lines += ["`dls, memory` and `nbdkit null` show what the load generator itself can take.",
                  ""]
        if iscsi:
            lines += table("iSCSI (iscsi-perf)", ISCSI_CASES, iscsi, "dls", ["tgt"])
        text = "\n".join(lines + store)
        print(text)
        with open("benches/RESULTS.md", "w") as results:
            results.write(text)
    finally:
        for process in list(processes):
            stop(process)
        shutil.rmtree(folder, ignore_errors=True)


LOAD = os.getloadavg()[0]
CONGESTION = os.environ.get("BENCH_CONGESTION", "the host's congestion control")
main()
