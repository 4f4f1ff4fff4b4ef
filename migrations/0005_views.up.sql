-- The operators' questions, each answered in one line of psql.

-- ---- one boot, stage by stage -------------------------------------------------------------

CREATE VIEW boot_timeline AS
SELECT e.session_id AS attempt_id,
       a.mac,
       coalesce(c.hostname, a.client_name) AS client,
       a.image_name AS image,
       e.stage,
       e.at,
       round(extract(epoch FROM e.at - a.started_at), 3) AS since_start_seconds,
       round(extract(epoch FROM e.at - lag(e.at, 1, a.started_at) OVER (PARTITION BY e.session_id, a.mac ORDER BY e.at, e.id)), 3) AS step_seconds,
       e.detail,
       s.status,
       a.outcome,
       a.reason
FROM boot_events e
JOIN boot_attempts a ON a.id = e.session_id
LEFT JOIN boot_sessions s ON s.id = a.id
LEFT JOIN clients c ON c.id = a.client_id
ORDER BY a.started_at, a.id, e.at, e.id;

-- ---- what runs now ------------------------------------------------------------------------

CREATE VIEW active_sessions AS
SELECT s.id AS session_id,
       c.hostname AS client,
       coalesce(a.mac, c.mac_address) AS mac,
       host(coalesce(s.client_ip, a.client_ip)) AS address,
       i.name AS image,
       s.status,
       a.last_stage AS stage,
       s.started_at,
       date_trunc('second', now() - s.started_at) AS age,
       s.boot_time_seconds,
       host(coalesce(s.boot_server_ip, a.boot_server_ip)) AS boot_server,
       v.name AS server
FROM boot_sessions s
JOIN clients c ON c.id = s.client_id
JOIN images i ON i.id = s.image_id
LEFT JOIN boot_attempts a ON a.id = s.id
LEFT JOIN servers v ON v.id = a.server_id
WHERE s.status IN ('starting', 'booting', 'running')
ORDER BY s.started_at, s.id;

-- ---- why did it not come up? --------------------------------------------------------------

CREATE VIEW client_status AS
SELECT c.hostname AS client,
       macs.macs,
       host(coalesce(c.ip_address, l.address)) AS address,
       i.name AS image,
       c.enabled,
       CASE
           WHEN s.status = 'running' THEN 'up since ' || to_char(s.started_at + coalesce(s.boot_time_seconds, 0) * interval '1 second', 'YYYY-MM-DD HH24:MI:SS TZ')
           WHEN a.outcome = 'open' THEN 'booting, at stage ' || a.last_stage || coalesce(': ' || a.reason, '')
           WHEN NOT c.enabled AND c.auto_registered THEN 'registered itself and waits to be enabled'
           WHEN NOT c.enabled THEN 'disabled'
           WHEN a.outcome = 'failed' THEN 'failed at stage ' || a.last_stage || coalesce(': ' || a.reason, '')
           WHEN a.outcome = 'refused' THEN 'refused' || coalesce(': ' || a.reason, ' at stage ' || a.last_stage)
           WHEN a.outcome = 'restarted' THEN 'restarted at stage ' || a.last_stage || coalesce(': ' || a.reason, '')
           WHEN a.outcome = 'completed' THEN 'off since ' || to_char(a.ended_at, 'YYYY-MM-DD HH24:MI:SS TZ')
           WHEN c.assigned_image_id IS NULL THEN 'never seen, no image assigned'
           ELSE 'never seen'
       END AS state,
       a.started_at AS last_boot_at,
       a.outcome AS last_outcome,
       s.status AS last_status,
       a.last_stage,
       coalesce(a.reason, s.error_message) AS last_reason,
       s.boot_time_seconds AS last_boot_seconds,
       c.boot_count,
       a.id AS last_attempt_id,
       c.id AS client_id
FROM clients c
LEFT JOIN images i ON i.id = c.assigned_image_id
LEFT JOIN LATERAL (SELECT array_agg(m.mac::text ORDER BY m.mac <> c.mac_address, m.mac) AS macs
                   FROM client_macs m WHERE m.client_id = c.id) macs ON TRUE
LEFT JOIN LATERAL (SELECT * FROM boot_attempts b WHERE b.client_id = c.id ORDER BY b.started_at DESC, b.id DESC LIMIT 1) a ON TRUE
LEFT JOIN boot_sessions s ON s.id = a.id
LEFT JOIN LATERAL (SELECT le.address FROM leases le JOIN client_macs m ON m.mac = le.mac
                   WHERE m.client_id = c.id AND le.state = 'active' ORDER BY le.starts_at DESC LIMIT 1) l ON TRUE
ORDER BY c.hostname, c.id;

-- ---- how well does it go? -----------------------------------------------------------------

CREATE VIEW boot_stats_daily AS
SELECT a.started_at::date AS day,
       coalesce(a.image_name, '-') AS image,
       count(*) AS attempts,
       count(s.boot_time_seconds) AS came_up,
       count(*) FILTER (WHERE a.outcome = 'failed') AS failed,
       count(*) FILTER (WHERE a.outcome = 'restarted') AS restarted,
       count(*) FILTER (WHERE a.outcome = 'refused') AS refused,
       count(*) FILTER (WHERE a.outcome = 'open') AS open,
       count(DISTINCT a.mac) AS machines,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY s.boot_time_seconds) AS p50_boot_seconds,
       percentile_disc(0.95) WITHIN GROUP (ORDER BY s.boot_time_seconds) AS p95_boot_seconds,
       max(s.boot_time_seconds) AS max_boot_seconds
FROM boot_attempts a
LEFT JOIN boot_sessions s ON s.id = a.id
GROUP BY a.started_at::date, coalesce(a.image_name, '-')
ORDER BY day DESC, image;

CREATE VIEW slow_stages AS
SELECT stage,
       count(*) AS times,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY step_seconds) AS p50_seconds,
       percentile_disc(0.95) WITHIN GROUP (ORDER BY step_seconds) AS p95_seconds,
       max(step_seconds) AS max_seconds
FROM boot_timeline
WHERE at > now() - interval '7 days'
GROUP BY stage
ORDER BY p95_seconds DESC NULLS LAST;

CREATE VIEW failed_boots AS
SELECT a.started_at,
       a.ended_at,
       coalesce(c.hostname, a.client_name) AS client,
       a.mac,
       a.image_name AS image,
       a.last_stage AS stage,
       coalesce(a.reason, s.error_message) AS cause,
       a.arch,
       host(a.client_ip) AS address,
       v.name AS server,
       a.id AS attempt_id
FROM boot_attempts a
LEFT JOIN boot_sessions s ON s.id = a.id
LEFT JOIN clients c ON c.id = a.client_id
LEFT JOIN servers v ON v.id = a.server_id
WHERE a.outcome = 'failed'
ORDER BY a.started_at DESC, a.id DESC;

-- ---- who is not known, who has which address ----------------------------------------------

CREATE VIEW unknown_machines AS
SELECT u.mac,
       c.hostname AS registered_as,
       u.first_seen,
       u.last_seen,
       u.attempts,
       a.arch,
       a.smbios_uuid,
       host(a.client_ip) AS address,
       r.name AS range,
       a.last_stage,
       a.reason
FROM (SELECT mac, min(started_at) AS first_seen, max(started_at) AS last_seen, count(*) AS attempts
      FROM boot_attempts GROUP BY mac) u
JOIN LATERAL (SELECT * FROM boot_attempts b WHERE b.mac = u.mac ORDER BY b.started_at DESC, b.id DESC LIMIT 1) a ON TRUE
LEFT JOIN client_macs m ON m.mac = u.mac
LEFT JOIN clients c ON c.id = m.client_id
LEFT JOIN network_ranges r ON r.id = a.range_id
WHERE c.id IS NULL OR c.auto_registered
ORDER BY u.last_seen DESC, u.mac;

CREATE VIEW current_leases AS
SELECT l.address,
       l.mac,
       coalesce(c.hostname, l.hostname) AS machine,
       r.name AS range,
       l.state,
       l.starts_at,
       dls_lease_end(l.starts_at, l.length_seconds) AS ends_at,
       coalesce(dls_lease_end(l.starts_at, l.length_seconds) > now(), TRUE) AS lasts,
       v.name AS server
FROM leases l
JOIN network_ranges r ON r.id = l.range_id
LEFT JOIN client_macs m ON m.mac = l.mac
LEFT JOIN clients c ON c.id = m.client_id
LEFT JOIN servers v ON v.id = l.server_id
ORDER BY l.address;

-- Addresses as numbers: what the pools hold, less exclusions, gateway, network and broadcast
-- address and reservations.
CREATE VIEW pool_usage AS
WITH pools AS (
    SELECT r.id, r.name, r.network, r.mode,
           coalesce((SELECT range_agg(int8range(p.first - inet '0.0.0.0', p.last - inet '0.0.0.0', '[]'))
                     FROM range_pools p WHERE p.range_id = r.id), '{}'::int8multirange)
         - coalesce((SELECT range_agg(int8range(x.first - inet '0.0.0.0', x.last - inet '0.0.0.0', '[]'))
                     FROM range_exclusions x WHERE x.range_id = r.id), '{}'::int8multirange)
         - coalesce(int8multirange(int8range(r.gateway - inet '0.0.0.0', r.gateway - inet '0.0.0.0', '[]')), '{}'::int8multirange)
         - CASE WHEN masklen(r.network) < 31 THEN int8multirange(
               int8range(network(r.network) - inet '0.0.0.0', network(r.network) - inet '0.0.0.0', '[]'),
               int8range(host(broadcast(r.network))::inet - inet '0.0.0.0', host(broadcast(r.network))::inet - inet '0.0.0.0', '[]'))
           ELSE '{}'::int8multirange END AS addresses
    FROM network_ranges r
), dynamic AS (
    SELECT p.*, p.addresses - coalesce((SELECT range_agg(int8range(c.ip_address - inet '0.0.0.0', c.ip_address - inet '0.0.0.0', '[]'))
                                        FROM clients c WHERE c.ip_address <<= p.network), '{}'::int8multirange) AS free_for_all
    FROM pools p
), counted AS (
    SELECT d.*,
           coalesce((SELECT sum(upper(b) - lower(b)) FROM unnest(d.free_for_all) AS b), 0)::bigint AS size,
           (SELECT count(*) FROM clients c WHERE c.ip_address <<= d.network) AS reserved,
           l.used, l.declined, l.leases
    FROM dynamic d
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE le.state = 'active' AND coalesce(dls_lease_end(le.starts_at, le.length_seconds) > now(), TRUE)
                                  AND d.free_for_all @> (le.address - inet '0.0.0.0')) AS used,
               count(*) FILTER (WHERE le.state = 'declined' AND coalesce(dls_lease_end(le.starts_at, le.length_seconds) > now(), TRUE)
                                  AND d.free_for_all @> (le.address - inet '0.0.0.0')) AS declined,
               count(*) AS leases
        FROM leases le WHERE le.range_id = d.id) l
)
SELECT name AS range, network, mode, size, used, declined, size - used - declined AS free,
       CASE WHEN size > 0 THEN round(100.0 * (used + declined) / size, 1) END AS percent_used,
       reserved, leases
FROM counted
ORDER BY network;
