"""The measurements of benches/http.sh: the boot listener and nginx in turn, round by round.

The scripts are those of a real boot: a machine asks by DHCP on a cable of its own, as in the
lab (tests/lab/boot.py), and what it was given is then fetched over and over.
"""

import os
import re
import subprocess
import sys
import time

import doors
from doors import ROUNDS, SECONDS, said, start

DLS = sys.argv[1]
# One address may have 64, and wrk tries the server by one of its own first.
CONNECTIONS = 60
MAC = "52:54:00:77:00:01"
NGINX = """
daemon off; user root; worker_processes {workers}; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    default_type application/octet-stream; open_file_cache max=100;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def wrk(url):
    done = subprocess.run(
        ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", url],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS + 60)
    found = re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)
    if not found or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        sys.exit(f"wrk {url}: {done.stdout}{done.stderr}")
    size = re.search(r"Transfer/sec:\s*([\d.]+)([KMG]?)B", done.stdout)
    scale = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size.group(2)]
    return float(found.group(1)), float(size.group(1)) * scale / 1e6


def script_url(dls):
    """Boots a machine on a cable of its own; returns its script and the path of it."""
    machine = start("unshare", "--net", "sleep", "600")
    outside = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{machine.pid}/ns/net") == outside:
        pass
    inside = ["nsenter", "-t", str(machine.pid), "-n"]
    for command in (
        ["ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns",
         str(machine.pid)],
        ["ip", "address", "add", "10.77.0.1/16", "dev", "lan0"],
        ["ip", "link", "set", "lan0", "up"],
        [*inside, "ip", "link", "set", "lan0", "up"],
    ):
        subprocess.run(command, check=True)
    folder = dls.folder
    kernel = os.path.join(folder, "kernel")
    doors.file_of(kernel, 16 << 20)
    dls.run("range", "add", "--network", "10.77.0.0/16", "--pool", "10.77.1.0-10.77.1.200",
            "--mode", "full")
    dls.run("image", "add-kernel", "bench", "--kernel", kernel, "--cmdline", "console=ttyS0 quiet")
    dls.run("client", "add", "--mac", MAC, "--hostname", "pc-1", "--image", "bench")
    boot = [*inside, sys.executable, "tests/lab/boot.py", MAC]
    done = subprocess.run(boot, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"no boot: {done.stdout}{done.stderr}")
    path = re.search(r"http://[^/]+(/b/[^/\s]+)/", done.stdout)
    return done.stdout, path.group(1)


def measure(folder):
    root = os.path.join(folder, "files")
    os.mkdir(root)
    doors.file_of(os.path.join(root, "small.efi"), 64 << 10)
    doors.file_of(os.path.join(root, "large.efi"), 16 << 20)
    dls = doors.Dls(DLS, folder, root)
    script, boot = script_url(dls)
    ours = f"http://127.0.0.1:{dls.http}"
    served = subprocess.run(["curl", "-fsS", f"{ours}{boot}/boot.ipxe"], capture_output=True)
    with open(os.path.join(root, "boot.ipxe"), "wb") as made:
        made.write(served.stdout)
    os.symlink(os.path.join(folder, "kernel"), os.path.join(root, "kernel"))
    port = doors.free_port()
    with open(os.path.join(folder, "nginx.conf"), "w") as config:
        config.write(NGINX.format(folder=folder, root=root, port=port, workers=os.cpu_count()))
    nginx = start("nginx", "-p", folder, "-c", os.path.join(folder, "nginx.conf"))
    theirs = f"http://127.0.0.1:{port}"
    # Name, our path, nginx's path, unit.
    cases = [
        ("loader of 64 KiB, MB/s", "/loader/small.efi", "/small.efi", 1),
        ("loader of 16 MiB, MB/s", "/loader/large.efi", "/large.efi", 1),
        ("kernel of 16 MiB, MB/s", f"{boot}/kernel", "/kernel", 1),
        (f"boot script, rendered ({len(served.stdout)} bytes), requests/s", f"{boot}/boot.ipxe",
         "/boot.ipxe", 0),
    ]
    for _, mine, other, _ in cases:
        for url in (ours + mine, theirs + other):
            subprocess.run(["curl", "-fsS", "--retry-connrefused", "--retry", "5", "-o",
                            "/dev/null", url], check=True)
    figures, processor = {}, {}
    for round_ in range(ROUNDS):
        for case, mine, other, unit in cases:
            for name, url, process in (("dls", ours + mine, dls.process),
                                       ("nginx", theirs + other, nginx)):
                # Those of the last run must be gone.
                time.sleep(0.5)
                before = doors.processor_time(process)
                got = wrk(url)
                spent = doors.processor_time(process) - before
                figures.setdefault(case, {}).setdefault(name, []).append(got[unit == 1])
                processor.setdefault(case, {}).setdefault(name, []).append(
                    max(spent, 0.001) / (got[0] * SECONDS) * 1e6)
        print(f"HTTP: round {round_ + 1} of {ROUNDS}", flush=True)
    lines = doors.head(
        "HTTP: figures of `benches/http.sh`",
        f"`dls serve` and nginx (sendfile, {os.cpu_count()} workers) on loopback, files in the page "
        f"cache, `wrk -t2 -c{CONNECTIONS}`, in turn within each round; medians of {ROUNDS} rounds of "
        f"{SECONDS} s, ratios are medians of each round's own. The script is rendered for each "
        "request and noted in the boot's timeline; nginx serves a file of the same bytes.",
        [f"{doors.package('nginx-light')}; {doors.package('wrk')}",
         f"TCP on loopback: {os.environ.get('BENCH_CONGESTION', 'the host congestion control')}"])
    lines += doors.table(figures, "dls", ["nginx"])
    lines += ["## Processor time of the server, microseconds a request", ""]
    lines += doors.table(processor, "dls", ["nginx"])
    text = "\n".join(lines)
    print(text)
    with open("benches/RESULTS-http.md", "w") as results:
        results.write(text)


doors.within(measure)
