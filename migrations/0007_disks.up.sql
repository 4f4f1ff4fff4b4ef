-- Disks: how an image's disk is booted and what became of its bytes, whether a client keeps
-- what it writes, the stages of a boot that concern its disk, and the clones on each server.

-- ---- images -------------------------------------------------------------------------------

ALTER TABLE images
    ADD COLUMN boot_method VARCHAR(10) NOT NULL DEFAULT 'san',
    ADD COLUMN sha256 CHAR(64),
    ADD COLUMN source_format VARCHAR(20),
    ADD CONSTRAINT images_boot_method_check CHECK (boot_method IN ('san', 'iscsi', 'nbd')),
    ADD CONSTRAINT images_sha256_check CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    ADD CONSTRAINT images_source_format_check CHECK (source_format IN ('raw', 'qcow2', 'vhdx', 'vmdk'));

COMMENT ON COLUMN images.boot_method IS 'How its disk is booted: san (the loader boots it over iSCSI), iscsi or nbd (kernel and initrd, root on it); without meaning for a kernel image';
COMMENT ON COLUMN images.sha256 IS 'SHA-256 of the content of its disk in 64 lower-case hex digits, zeroes included; verified when it was imported';
COMMENT ON COLUMN images.source_format IS 'Format of the file that its disk was imported from: raw, qcow2, vhdx or vmdk';

-- ---- clients ------------------------------------------------------------------------------

ALTER TABLE clients
    ADD COLUMN disk_mode VARCHAR(10) NOT NULL DEFAULT 'ephemeral',
    ADD CONSTRAINT clients_disk_mode_check CHECK (disk_mode IN ('ephemeral', 'persistent'));

COMMENT ON COLUMN clients.disk_mode IS 'ephemeral: its disk is clean at each boot; persistent: it keeps what it writes';

CREATE OR REPLACE FUNCTION dls_clients_normalise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.mac_address := dls_normal_mac(NEW.mac_address);
    IF family(NEW.ip_address) = 4 THEN
        NEW.ip_address := host(NEW.ip_address)::inet;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.auto_registered AND NEW.auto_registered
       AND (NEW.mac_address, NEW.hostname, NEW.ip_address, NEW.assigned_image_id, NEW.boot_mode, NEW.cpu_cores,
            NEW.memory_mb, NEW.network_config, NEW.custom_boot_params, NEW.enabled, NEW.disk_mode)
           IS DISTINCT FROM
           (OLD.mac_address, OLD.hostname, OLD.ip_address, OLD.assigned_image_id, OLD.boot_mode, OLD.cpu_cores,
            OLD.memory_mb, OLD.network_config, OLD.custom_boot_params, OLD.enabled, OLD.disk_mode) THEN
        NEW.auto_registered := FALSE;
    END IF;
    RETURN NEW;
END;
$$;

DROP TRIGGER clients_normalise ON clients;
CREATE TRIGGER clients_normalise BEFORE INSERT OR UPDATE OF mac_address, hostname, ip_address, assigned_image_id, boot_mode,
        cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, disk_mode ON clients
    FOR EACH ROW EXECUTE FUNCTION dls_clients_normalise();

DROP TRIGGER update_clients_updated_at ON clients;
CREATE TRIGGER update_clients_updated_at BEFORE UPDATE OF id, mac_address, hostname, ip_address, assigned_image_id, boot_mode,
        cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, created_at, disk_mode ON clients
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

DROP TRIGGER clients_notify ON clients;
CREATE TRIGGER clients_notify AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF id, mac_address, hostname, ip_address,
        assigned_image_id, boot_mode, cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, created_at,
        disk_mode
    ON clients FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();

-- ---- stages -------------------------------------------------------------------------------

ALTER TABLE boot_attempts
    ADD COLUMN disk_bytes_read BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN disk_bytes_written BIGINT NOT NULL DEFAULT 0,
    ADD CONSTRAINT boot_attempts_disk_bytes_check CHECK (disk_bytes_read >= 0 AND disk_bytes_written >= 0),
    DROP CONSTRAINT boot_attempts_stage_check,
    ADD CONSTRAINT boot_attempts_stage_check CHECK (last_stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'restarted', 'error', 'ended'));

COMMENT ON COLUMN boot_attempts.disk_bytes_read IS 'Bytes read from its disk, kept up to date each minute';
COMMENT ON COLUMN boot_attempts.disk_bytes_written IS 'Bytes written to its disk, kept up to date each minute';

ALTER TABLE boot_events
    DROP CONSTRAINT boot_events_stage_check,
    ADD CONSTRAINT boot_events_stage_check CHECK (stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'disk_attached', 'disk_read', 'disk_written', 'up', 'bye', 'refused',
        'transfer_broken', 'foreign_server', 'disk_detached', 'restarted', 'error', 'ended'));

-- How long a machine ran before it let go of its disk or said goodbye is no slow boot.
CREATE OR REPLACE VIEW slow_stages AS
SELECT stage,
       count(*) AS times,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY step_seconds) AS p50_seconds,
       percentile_disc(0.95) WITHIN GROUP (ORDER BY step_seconds) AS p95_seconds,
       max(step_seconds) AS max_seconds
FROM boot_timeline
WHERE at > now() - interval '7 days' AND stage NOT IN ('disk_detached', 'bye', 'ended') AND NOT detail ? 'late'
GROUP BY stage
ORDER BY p95_seconds DESC NULLS LAST;

-- ---- clones -------------------------------------------------------------------------------

-- What lies in the stores, as each server last told: the stores know, this is for people. A
-- clone outlives client, image and session here until its server has removed it.
CREATE TABLE clones (
    server_id UUID NOT NULL,
    name TEXT NOT NULL,
    mode VARCHAR(10) NOT NULL,
    client_id UUID,
    session_id UUID,
    image_id UUID,
    image_name TEXT,
    size_bytes BIGINT NOT NULL,
    used_bytes BIGINT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    last_attached_at TIMESTAMPTZ,
    idle_since TIMESTAMPTZ,
    protocol VARCHAR(10),
    peer TEXT,
    PRIMARY KEY (server_id, name),
    CONSTRAINT clones_client_fkey FOREIGN KEY (client_id) REFERENCES clients(id) ON DELETE SET NULL,
    CONSTRAINT clones_image_fkey FOREIGN KEY (image_id) REFERENCES images(id) ON DELETE SET NULL,
    CONSTRAINT clones_mode_check CHECK (mode IN ('ephemeral', 'persistent')),
    CONSTRAINT clones_protocol_check CHECK (protocol IN ('iscsi', 'nbd')),
    CONSTRAINT clones_bytes_check CHECK (size_bytes >= 0 AND used_bytes >= 0)
);
CREATE INDEX idx_clones_client_id ON clones(client_id);
CREATE INDEX idx_clones_image_id ON clones(image_id);

COMMENT ON TABLE clones IS 'Copies of images that machines write to, as each server last told of its store';
COMMENT ON COLUMN clones.server_id IS 'The server whose store holds it';
COMMENT ON COLUMN clones.name IS 'Its name there: session/ID or personal/CLIENT/IMAGE';
COMMENT ON COLUMN clones.mode IS 'ephemeral: belongs to one boot; persistent: to a client and an image';
COMMENT ON COLUMN clones.client_id IS 'The client, while its row exists';
COMMENT ON COLUMN clones.session_id IS 'The boot that it belongs to (ephemeral) or that has it now (persistent)';
COMMENT ON COLUMN clones.image_id IS 'The image that it was made from, while its row exists';
COMMENT ON COLUMN clones.image_name IS 'The name of that image, outliving the row';
COMMENT ON COLUMN clones.size_bytes IS 'Bytes that the machine sees';
COMMENT ON COLUMN clones.used_bytes IS 'Bytes that it takes in the store, without what it shares';
COMMENT ON COLUMN clones.created_at IS 'When it was first told of';
COMMENT ON COLUMN clones.last_attached_at IS 'When a machine last logged in to it';
COMMENT ON COLUMN clones.idle_since IS 'When the last connection to it ended; NULL: there is one, or there never was';
COMMENT ON COLUMN clones.protocol IS 'iscsi or nbd, while a machine has it';
COMMENT ON COLUMN clones.peer IS 'Address and port of the machine that has it';

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
       k.name
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
