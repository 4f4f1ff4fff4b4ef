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
