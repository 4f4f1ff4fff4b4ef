"""The storm of `make bench`: a thousand machines boot in a minute, the server with its database on
one processor and `dls storm` on another, every byte checked. Prints the stages, what the server and
PostgreSQL spent on each boot, and how long the bytes take on a wire; writes
benches/RESULTS-storm.md.
"""

import json
import os
import subprocess
import sys
import time

from stand import MIB, Stand, inside, machine, resident, run, write

MACHINES = int(os.environ.get("BENCH_STORM_MACHINES", "1000"))
RAMP = int(os.environ.get("BENCH_STORM_RAMP", "60"))
RESULTS = os.environ.get("BENCH_STORM_RESULTS", "benches/RESULTS-storm.md")
COUNTED = ("select xact_commit, tup_inserted, tup_updated, tup_deleted, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint "
           "from pg_stat_database where datname = current_database()")


def prepare(site):
    # As docs/storm.md says: each machine speaks from its own address.
    for which in ("all", "lan1"):
        run(*inside(site.client, "sysctl", "-qw", f"net.ipv4.conf.{which}.arp_ignore=1"))
    run("ip", "-n", site.client, "route", "add", "local", "10.77.16.0/20", "dev", "lo")
    run("ip", "-n", site.server, "route", "add", "10.77.16.0/20", "via", "10.77.0.9")
    for name, size in (("kernel", 4), ("initrd", 12), ("disk.raw", 32)):
        (site.work / name).write_bytes(os.urandom(size * MIB))
    site.start()
    site.dls("range", "add", "--network", "10.77.0.0/16", "--pool", "10.77.16.1-10.77.31.250", "--mode", "full")
    for method in ("iscsi", "nbd"):
        site.dls("image", "import", method, site.work / "disk.raw", "--boot-method", method, "--kernel", site.work / "kernel",
                 "--initrd", site.work / "initrd")
    site.psql("insert into clients (mac_address, hostname, assigned_image_id, disk_mode, ip_address) "
              "select '02:d1:50:00:' || substr(h, 1, 2) || ':' || substr(h, 3, 2), 'storm-' || n, "
              "(select id from images where name = (array['iscsi','nbd'])[1 + n % 2]), 'ephemeral', '10.77.16.0'::inet + n + 1 "
              f"from (select n, lpad(to_hex(n), 4, '0') h from generate_series(0, {MACHINES} - 1) n) x")
    time.sleep(3)


def storm(site):
    for pid in site.processes():
        subprocess.run(["taskset", "-a", "-p", "-c", "0", str(pid)], capture_output=True, check=False)
    before, used, memory = list(map(int, site.psql(COUNTED).split("|"))), site.spent(), []
    began = time.monotonic()
    with open(site.work / "report", "wb") as report:
        storm = subprocess.Popen(
            inside(site.client, "taskset", "-c", "1", site.program, "--json", "storm", "--interface", "lan1", "--machines", MACHINES,
                   "--ramp", RAMP, "--timeout", "300", "--addresses", "--bye", "--think", "0", "--disk-read", "16M",
                   "--expect", f"kernel={site.work}/kernel", "--expect", f"initrd0={site.work}/initrd",
                   "--expect", f"disk={site.work}/disk.raw"), stdout=report, stderr=subprocess.DEVNULL)
        pid = site.pid()
        while storm.poll() is None and time.monotonic() < began + 900:
            memory.append(resident(pid))
            time.sleep(1)
        storm.kill()
    used = {name: seconds - used[name] for name, seconds in site.spent().items()}
    time.sleep(3)
    rows = [b - a for a, b in zip(before, map(int, site.psql(COUNTED).split("|")))]
    events = site.psql("select round(count(*)::numeric / greatest(count(distinct session_id), 1), 1) from boot_events")
    return json.loads((site.work / "report").read_text()), used, rows, events, memory


def main():
    with Stand(sys.argv[1]) as site:
        prepare(site)
        told, used, rows, events, memory = storm(site)
    each = max(told["booted"], 1)
    stages = [
        f"| {row['stage']} | {row['n']} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} | {row['p99_ms']:.1f} | {row['sent_again']} |"
        for row in told["stages"] if row.get("p50_ms") is not None]
    write(RESULTS, [
        "# Storm: figures of `benches/storm.sh`", "",
        f"{MACHINES} machines switched on within {RAMP} s, 16 MiB of kernel and initrd and 16 MiB of disk each, every byte checked, "
        "half of them over iSCSI and half over NBD, each with a new copy of its image. The server with its PostgreSQL has one processor, "
        "the simulator another.", "", f"{machine()}; {run(site.program, '--version').strip()}.", "",
        f"**{told['booted']} of {MACHINES} booted**, in {told['seconds']:.0f} s, {told['bytes_per_second'] / MIB:.0f} MiB/s, "
        f"{told['most_in_a_second'] / MIB:.0f} MiB in the busiest second.", "",
        "| stage | n | p50, ms | p95 | p99 | sent again |", "|---|---|---|---|---|---|", *stages, "",
        f"Memory of the server by tenths of the run, MiB: {', '.join(f'{m:.0f}' for m in memory[:: max(len(memory) // 10, 1)])}.", "",
        "| of each boot | |", "|---|---|",
        f"| processor time of dls, ms | {used['dls'] / each * 1e3:.1f} |",
        f"| processor time of PostgreSQL, ms | {used['PostgreSQL'] / each * 1e3:.1f} |",
        f"| rows of the timeline | {events} |",
        f"| transactions | {rows[0] / each:.2f} |",
        f"| rows inserted, updated, deleted | {rows[1] / each:.1f}, {rows[2] / each:.1f}, {rows[3] / each:.1f} |",
        f"| write-ahead log, KiB | {rows[4] / each / 1024:.1f} |", "",
        "The same bytes on a wire take at least: " + ", ".join(
            f"{wire['gigabits']} Gb/s {wire['seconds']:.1f} s" for wire in told["wires"]) + ".", ""])
    if told["booted"] != MACHINES:
        sys.exit(json.dumps(told["failures"], indent=1))


main()
