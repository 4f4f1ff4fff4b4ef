"""A large site: 100,000 registered machines and a million past boots. How long a start takes, with
PostgreSQL and from the picture on disk, what the server takes of memory, how soon a change holds and
what a look-up costs. Writes benches/RESULTS-large.md.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from stand import Stand, inside, machine, resident, run, write

CLIENTS = int(os.environ.get("BENCH_LARGE_CLIENTS", "100000"))
SESSIONS = int(os.environ.get("BENCH_LARGE_SESSIONS", "1000000"))
RESULTS = os.environ.get("BENCH_LARGE_RESULTS", "benches/RESULTS-large.md")
CHANGES = 50


def fill(site):
    site.dls("range", "add", "--network", "10.76.0.0/14", "--pool", "10.78.0.0-10.79.255.250", "--mode", "full")
    site.psql("insert into images (name, path, format, size_bytes) values ('debian', '/nowhere', 'raw', 1048576) on conflict do nothing")
    site.psql("insert into clients (mac_address, hostname, assigned_image_id) select '02:00:' || substr(h, 1, 2) || ':' || substr(h, 3, 2) "
              "|| ':' || substr(h, 5, 2) || ':' || substr(h, 7, 2), 'pc-' || n, (select id from images limit 1) "
              f"from (select n, lpad(to_hex(n), 8, '0') h from generate_series(0, {CLIENTS} - 1) n) x")
    site.psql("insert into boot_attempts (id, mac, client_id, client_name, image_name, server_id, started_at, ended_at, last_stage, outcome) "
              "select gen_random_uuid(), c.mac_address, c.id, c.hostname, 'debian', gen_random_uuid(), now() - n * interval '1 s', "
              "now() - n * interval '1 s' + interval '40 s', 'up', 'completed' "
              f"from generate_series(1, {SESSIONS // CLIENTS}) k, (select *, row_number() over () n from clients) c")
    site.psql("insert into boot_sessions (id, client_id, image_id, status, started_at, ended_at, boot_time_seconds) "
              "select a.id, a.client_id, (select id from images limit 1), 'shutdown', a.started_at, a.ended_at, 40 from boot_attempts a")
    site.psql("analyze")


def changes(site):
    """Milliseconds from the request of a change until a read by the API shows it, which comes from memory, the next one's included."""
    token = (site.work / "state" / "admin.token").read_text().strip()
    took = []
    for n in range(CHANGES):
        began = time.monotonic()
        body = json.dumps({"ring": f"r{n}"})
        subprocess.run(inside(site.server, "curl", "-fsS", "-X", "PATCH", "-H", f"Authorization: Bearer {token}", "-H",
                              "Content-Type: application/json", "-d", body, f"http://127.0.0.1:8080/api/v1/clients/pc-{n * 7}"),
                       capture_output=True, check=True)
        took.append((time.monotonic() - began) * 1e3)
    return took


def main():
    with Stand(sys.argv[1]) as site:
        first = site.start()
        fill(site)
        time.sleep(5)
        rows = site.psql("select (select count(*) from clients) || ' clients, ' || (select count(*) from boot_sessions) || ' sessions'")
        grown = resident(site.pid())
        site.stop()
        starts = []
        for _ in range(3):
            starts.append(site.start())
            time.sleep(8)
            memory = resident(site.pid())
            took = changes(site)
            site.stop()
    write(RESULTS, [
        "# A large site: figures of `benches/large.sh`", "",
        f"{rows}. {machine()}; {run(site.program, '--version').strip()}.", "",
        "| | |", "|---|---|",
        f"| start until it serves, PostgreSQL's own start included, s (with an empty catalog {first:.1f}) | {statistics.median(starts):.1f} |",
        f"| resident memory of dls after a start, without PostgreSQL, MiB | {memory:.0f} |",
        f"| the same after all were inserted at once | {grown:.0f} |",
        f"| a change by the API, until it is answered, ms: median, 99th of {CHANGES} | {statistics.median(took):.0f}, {max(took):.0f} |", ""])


main()
