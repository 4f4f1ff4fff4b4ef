DROP VIEW client_disks;
ALTER TABLE clones DROP COLUMN version_name;
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

DROP VIEW image_versions;
DROP INDEX idx_boot_attempts_version_id;
ALTER TABLE boot_attempts DROP COLUMN version_id, DROP COLUMN version_name;

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

DROP TRIGGER clients_pin ON clients;
DROP FUNCTION dls_clients_pin();
ALTER TABLE clients DROP COLUMN ring, DROP COLUMN pinned_version;

DROP TRIGGER image_snapshots_notify ON image_snapshots;
DROP TRIGGER images_first_version ON images;
DROP FUNCTION dls_image_first_version();
DROP TRIGGER image_snapshots_rules ON image_snapshots;
DROP FUNCTION dls_version_rules();
DROP TRIGGER image_snapshots_in_use ON image_snapshots;
DROP FUNCTION dls_version_in_use();
DROP TRIGGER image_snapshots_kept ON image_snapshots;
DROP FUNCTION dls_version_kept();
DELETE FROM image_snapshots WHERE id = image_id;
ALTER TABLE image_snapshots
    DROP CONSTRAINT image_snapshots_name_check,
    DROP COLUMN stage,
    DROP COLUMN ring,
    DROP COLUMN referenced_bytes,
    DROP COLUMN author,
    DROP COLUMN from_client,
    DROP COLUMN released_at,
    DROP COLUMN returned_at,
    DROP COLUMN reason;

COMMENT ON TABLE image_snapshots IS 'Points in time of an image that can be gone back to';
COMMENT ON COLUMN image_snapshots.id IS 'Primary key';
COMMENT ON COLUMN image_snapshots.name IS 'Unique among the snapshots of the image';
COMMENT ON COLUMN image_snapshots.description IS 'Free text';
COMMENT ON COLUMN image_snapshots.size_bytes IS 'Bytes that only this snapshot holds';
