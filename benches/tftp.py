"""The measurements of benches/tftp.sh: every server in every case, round by round, so that
what else the machine does meets all alike. A figure is the median of all rounds.
"""

import json
import os
import re
import subprocess
import sys
import time

import doors
from doors import ROUNDS, SECONDS, said, start

DLS, LOADER, ASYNC, ATFTPD = sys.argv[1:5]
SIZE = 16 * 1000 * 1000
BLKSIZE = 1428
# Name, clients, window.
CASES = [
    ("1 client, lock-step", 1, 1),
    ("1 client, window 16", 1, 16),
    ("64 clients, lock-step", 64, 1),
    ("64 clients, window 16", 64, 16),
]
PEERS = ["dnsmasq", "tftpd-hpa", "atftpd"]


def load(number, path, clients, window, seconds):
    done = subprocess.run(
        [LOADER, f"127.0.0.1:{number}", "boot.img", path, str(clients), str(seconds),
         str(BLKSIZE), str(window)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds + 120)
    if not done.stdout:
        sys.exit(f"tftp_load: {done.stderr}")
    return json.loads(done.stdout)


def servers(folder, root):
    """Name -> port and process; all serve the same file."""
    dls = doors.Dls(DLS, folder, root)
    running = {"dls": (dls.tftp, dls.process)}
    running["dnsmasq"] = (69, start(
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--enable-tftp",
        f"--tftp-root={root}", "--tftp-max=200", "--listen-address=127.0.0.1",
        "--bind-interfaces", "--user=root", "--pid-file=", "--log-facility=/dev/null"))
    port = doors.free_port()
    running["tftpd-hpa"] = (port, start(
        "in.tftpd", "--foreground", "--ipv4", "--address", f"127.0.0.1:{port}", "--secure", "--user", "root",
        root))
    port = doors.free_port()
    running["atftpd"] = (port, start(
        ATFTPD, "--daemon", "--no-fork", "--port", str(port), "--bind-address", "127.0.0.1",
        "--maxthread", "200", "--user", "root", "--group", "root", "--logfile", "/dev/null", root))
    port = doors.free_port()
    running["async-tftp"] = (port, start(ASYNC, str(port), root))
    time.sleep(1)
    for name, (_, process) in running.items():
        if process.poll() is not None:
            sys.exit(f"{name} does not run: {process.args}")
    return running


def measure(folder):
    root = os.path.join(folder, "boot")
    os.mkdir(root)
    path = os.path.join(root, "boot.img")
    doors.file_of(path, SIZE)
    running = servers(folder, root)
    figures, first, processor, bad = {}, {}, {}, []
    for round_ in range(ROUNDS):
        for case, clients, window in CASES:
            for name, (number, process) in running.items():
                before = doors.processor_time(process)
                got = load(number, path, clients, window, SECONDS)
                spent = doors.processor_time(process) - before
                if got["failed"]:
                    bad.append(f"{name}, {case}: {got['failed']} of "
                               f"{got['transfers'] + got['failed']} transfers failed")
                figures.setdefault(case, {}).setdefault(name, []).append(got["mb_s"] or 0.01)
                first.setdefault(case, {}).setdefault(name, []).append(got["first_data_ms"][1])
                gigabytes = max(got["bytes"], BLKSIZE) / 1e9
                processor.setdefault(case, {}).setdefault(name, []).append(
                    max(spent, 0.001) / gigabytes * 1000)
        print(f"TFTP: round {round_ + 1} of {ROUNDS}", flush=True)
    lock = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "Cargo.lock")).read()
    version = re.search(r'name = "async-tftp"\nversion = "(.*)"', lock).group(1)
    lines = doors.head(
        "TFTP: figures of `benches/tftp.sh`",
        f"`dls serve` and its peers on loopback, one file of {SIZE // 1000000} MB in the page cache, "
        f"blksize {BLKSIZE}, "
        "clients that compare every byte (`benches/tftp_load.rs`), all servers in turn within each "
        f"round; medians of {ROUNDS} rounds of {SECONDS} s, ratios are medians of each round's own. "
        "dnsmasq and tftpd-hpa know no windows (RFC 7440) and send one block at a time in every case.",
        [f"{doors.package('dnsmasq-base')}; {doors.package('tftpd-hpa')}; "
         f"{said(ATFTPD, '--version')}; async-tftp {version} with its own directory handler"])
    lines += ["## MB a second", ""] + doors.table(figures, "dls", PEERS, best=True)
    lines += ["## Processor time of the server, ms a GB", ""]
    lines += doors.table(processor, "dls", PEERS)
    if bad:
        lines += ["## Transfers that failed", ""] + [f"- {line}" for line in bad] + [""]
    text = "\n".join(lines)
    print(text)
    with open("benches/RESULTS-tftp.md", "w") as results:
        results.write(text)


doors.within(measure)
