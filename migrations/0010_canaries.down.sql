DROP VIEW version_boots;
DROP INDEX idx_boot_attempts_version;
DELETE FROM boot_events WHERE stage = 'answers';
UPDATE boot_attempts SET last_stage = 'error' WHERE last_stage = 'answers';
ALTER TABLE boot_events
    DROP CONSTRAINT boot_events_stage_check,
    ADD CONSTRAINT boot_events_stage_check CHECK (stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'restarted', 'error', 'ended'));
ALTER TABLE boot_attempts
    DROP CONSTRAINT boot_attempts_stage_check,
    ADD CONSTRAINT boot_attempts_stage_check CHECK (last_stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'restarted', 'error', 'ended'));
DROP TRIGGER image_snapshots_canary ON image_snapshots;
DROP FUNCTION dls_version_canary();
ALTER TABLE image_snapshots DROP COLUMN canary_at, DROP COLUMN good_boots;
