-- Canaries that are judged by the boots of their machines: released to all after so many good ones,
-- taken back after one that failed.

ALTER TABLE image_snapshots
    ADD COLUMN canary_at TIMESTAMPTZ,
    ADD COLUMN good_boots INTEGER,
    ADD CONSTRAINT image_snapshots_good_boots_check CHECK (good_boots BETWEEN 1 AND 10000);

COMMENT ON COLUMN image_snapshots.canary_at IS 'When it last became the canary of a ring';
COMMENT ON COLUMN image_snapshots.good_boots IS 'A canary that is judged: so many good boots release it to all, a failed one sends its machines back; NULL: people decide';

CREATE FUNCTION dls_version_canary() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.stage <> 'canary' THEN
        NEW.good_boots := NULL;
    ELSIF TG_OP = 'INSERT' OR (OLD.stage, OLD.ring) IS DISTINCT FROM (NEW.stage, NEW.ring) THEN
        NEW.canary_at := clock_timestamp();
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER image_snapshots_canary BEFORE INSERT OR UPDATE OF stage, ring, good_boots ON image_snapshots
    FOR EACH ROW EXECUTE FUNCTION dls_version_canary();

-- ---- what a boot says of its version ----------------------------------------------------------

ALTER TABLE boot_attempts
    DROP CONSTRAINT boot_attempts_stage_check,
    ADD CONSTRAINT boot_attempts_stage_check CHECK (last_stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'answers', 'restarted', 'error', 'ended'));
ALTER TABLE boot_events
    DROP CONSTRAINT boot_events_stage_check,
    ADD CONSTRAINT boot_events_stage_check CHECK (stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'answers', 'restarted', 'error', 'ended'));
CREATE INDEX idx_boot_attempts_version ON boot_attempts(version_id, started_at) WHERE version_id IS NOT NULL;

CREATE VIEW version_boots AS
SELECT i.name AS image,
       v.name AS version,
       b.client_name AS client,
       b.started_at,
       CASE WHEN b.up THEN 'good'
            WHEN b.outcome = 'open' THEN 'open'
            WHEN b.outcome = 'failed' AND b.was_on THEN 'failed'
            ELSE 'unclear' END AS verdict,
       b.reason AS why,
       b.ended_at,
       b.id AS session_id,
       v.id AS version_id
FROM image_snapshots v
JOIN images i ON i.id = v.image_id
JOIN LATERAL (
    SELECT a.*,
           EXISTS (SELECT 1 FROM boot_events e WHERE e.session_id = a.id AND e.stage = 'up') AS up,
           EXISTS (SELECT 1 FROM boot_events e WHERE e.session_id = a.id
                   AND (e.stage = 'answers' OR e.stage = 'error' AND e.detail ->> 'disk' = 'open')) AS was_on
    FROM boot_attempts a
    WHERE a.version_id = v.id
) b ON TRUE
ORDER BY i.name, b.started_at;

COMMENT ON VIEW version_boots IS 'What each boot says of the version that it was of; a canary is judged by those since it became one';
COMMENT ON COLUMN version_boots.image IS 'Name of the image';
COMMENT ON COLUMN version_boots.version IS 'Name of the version';
COMMENT ON COLUMN version_boots.client IS 'The machine, by its client''s host name';
COMMENT ON COLUMN version_boots.started_at IS 'First packet';
COMMENT ON COLUMN version_boots.verdict IS 'good: it came up. failed: it did not, and was on: it had its disk, or answered ARP, when it was given up. unclear: it did not come up, but may have been switched off. open: not over';
COMMENT ON COLUMN version_boots.why IS 'Stage and cause, in a sentence';
COMMENT ON COLUMN version_boots.ended_at IS 'End; NULL while open';
COMMENT ON COLUMN version_boots.session_id IS 'The boot';
COMMENT ON COLUMN version_boots.version_id IS 'The version';
