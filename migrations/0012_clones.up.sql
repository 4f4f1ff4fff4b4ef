-- What clones may take: a limit for what a machine writes to its copy of an image, and what
-- is told of the copies.

ALTER TABLE images
    ADD COLUMN clone_quota_mb INTEGER,
    ADD CONSTRAINT images_clone_quota_mb_check CHECK (clone_quota_mb > 0);
ALTER TABLE clients
    ADD COLUMN clone_quota_mb INTEGER,
    ADD CONSTRAINT clients_clone_quota_mb_check CHECK (clone_quota_mb >= 0);

COMMENT ON COLUMN images.clone_quota_mb IS 'MiB that a machine may write to its copy of this image; NULL: as much as there is room for';
COMMENT ON COLUMN clients.clone_quota_mb IS 'MiB that this client may write to its copy of an image; 0: no limit; NULL: as its image says';

-- images_notify is for all columns, clients_notify for those that it names.
CREATE TRIGGER clients_quota_notify AFTER UPDATE OF clone_quota_mb ON clients
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();

-- ---- what a boot tells -----------------------------------------------------------------------

ALTER TABLE boot_attempts
    DROP CONSTRAINT boot_attempts_stage_check,
    ADD CONSTRAINT boot_attempts_stage_check CHECK (last_stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'disk_quota', 'answers', 'restarted', 'error', 'ended'));
ALTER TABLE boot_events
    DROP CONSTRAINT boot_events_stage_check,
    ADD CONSTRAINT boot_events_stage_check CHECK (stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'disk_quota', 'answers', 'restarted', 'error', 'ended'));

-- ---- clones ----------------------------------------------------------------------------------

ALTER TABLE clones
    ADD COLUMN referenced_bytes BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN own_bytes BIGINT,
    ADD COLUMN quota_bytes BIGINT,
    ADD CONSTRAINT clones_quota_check CHECK (referenced_bytes >= 0 AND own_bytes >= 0 AND quota_bytes >= 0);

COMMENT ON COLUMN clones.referenced_bytes IS 'Bytes that it refers to, those that it shares included';
COMMENT ON COLUMN clones.own_bytes IS 'Bytes of the disk that its machine has written, as its quota counts them; NULL: nobody counts';
COMMENT ON COLUMN clones.quota_bytes IS 'Bytes that its machine may write; NULL: no limit';

CREATE OR REPLACE VIEW client_disks AS
SELECT c.hostname AS client,
       k.mode,
       coalesce(i.name, k.image_name) AS image,
       pg_size_pretty(k.size_bytes) AS size,
       pg_size_pretty(k.used_bytes) AS used,
       k.peer AS attached_from,
       k.protocol,
       k.last_attached_at,
       k.idle_since,
       a.disk_bytes_read AS bytes_read,
       a.disk_bytes_written AS bytes_written,
       k.session_id,
       k.created_at,
       v.name AS server,
       k.name,
       k.version_name AS version,
       pg_size_pretty(k.referenced_bytes) AS referenced,
       pg_size_pretty(k.own_bytes) AS own,
       pg_size_pretty(k.quota_bytes) AS quota,
       EXISTS (SELECT 1 FROM boot_events e WHERE e.session_id = k.session_id AND e.stage = 'disk_quota') AS over_quota
FROM clones k
LEFT JOIN clients c ON c.id = k.client_id
LEFT JOIN images i ON i.id = k.image_id
LEFT JOIN boot_attempts a ON a.id = k.session_id
LEFT JOIN servers v ON v.id = k.server_id
ORDER BY c.hostname, k.last_attached_at DESC NULLS LAST, k.name;
COMMENT ON COLUMN client_disks.referenced IS 'What it refers to, shared with others or not';
COMMENT ON COLUMN client_disks.own IS 'What its machine has written of the disk, as its quota counts it';
COMMENT ON COLUMN client_disks.quota IS 'What its machine may write; NULL: no limit';
COMMENT ON COLUMN client_disks.over_quota IS 'In this boot a write was refused because of that';
