DROP VIEW client_disks;
CREATE VIEW client_disks AS
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
       k.version_name AS version
FROM clones k
LEFT JOIN clients c ON c.id = k.client_id
LEFT JOIN images i ON i.id = k.image_id
LEFT JOIN boot_attempts a ON a.id = k.session_id
LEFT JOIN servers v ON v.id = k.server_id
ORDER BY c.hostname, k.last_attached_at DESC NULLS LAST, k.name;
COMMENT ON VIEW client_disks IS 'Which machine has which copy of an image, how large it is, from where it is attached or since when it is idle';
COMMENT ON COLUMN client_disks.client IS 'Host name of the client';
COMMENT ON COLUMN client_disks.mode IS 'ephemeral: belongs to one boot; persistent: kept';
COMMENT ON COLUMN client_disks.image IS 'The image that it was made from';
COMMENT ON COLUMN client_disks.size IS 'What the machine sees';
COMMENT ON COLUMN client_disks.used IS 'What it takes in the store, without what it shares';
COMMENT ON COLUMN client_disks.attached_from IS 'Address and port of the machine that has it';
COMMENT ON COLUMN client_disks.protocol IS 'iscsi or nbd, while a machine has it';
COMMENT ON COLUMN client_disks.last_attached_at IS 'When a machine last logged in to it';
COMMENT ON COLUMN client_disks.idle_since IS 'When the last connection to it ended';
COMMENT ON COLUMN client_disks.bytes_read IS 'Read by that boot';
COMMENT ON COLUMN client_disks.bytes_written IS 'Written by that boot';
COMMENT ON COLUMN client_disks.session_id IS 'The boot';
COMMENT ON COLUMN client_disks.created_at IS 'When it was first told of';
COMMENT ON COLUMN client_disks.server IS 'The server whose store holds it';
COMMENT ON COLUMN client_disks.name IS 'Its name in that store';
COMMENT ON COLUMN client_disks.version IS 'The version of the image that it was made from';
ALTER TABLE clones DROP COLUMN referenced_bytes, DROP COLUMN own_bytes, DROP COLUMN quota_bytes;
DELETE FROM boot_events WHERE stage = 'disk_quota';
UPDATE boot_attempts SET last_stage = 'disk_written' WHERE last_stage = 'disk_quota';
ALTER TABLE boot_events
    DROP CONSTRAINT boot_events_stage_check,
    ADD CONSTRAINT boot_events_stage_check CHECK (stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'answers', 'restarted', 'error', 'ended'));
ALTER TABLE boot_attempts
    DROP CONSTRAINT boot_attempts_stage_check,
    ADD CONSTRAINT boot_attempts_stage_check CHECK (last_stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'answers', 'restarted', 'error', 'ended'));
DROP TRIGGER clients_quota_notify ON clients;
ALTER TABLE clients DROP COLUMN clone_quota_mb;
ALTER TABLE images DROP COLUMN clone_quota_mb;
