DROP VIEW client_disks;
DROP TABLE clones;

CREATE OR REPLACE VIEW slow_stages AS
SELECT stage,
       count(*) AS times,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY step_seconds) AS p50_seconds,
       percentile_disc(0.95) WITHIN GROUP (ORDER BY step_seconds) AS p95_seconds,
       max(step_seconds) AS max_seconds
FROM boot_timeline
WHERE at > now() - interval '7 days'
GROUP BY stage
ORDER BY p95_seconds DESC NULLS LAST;

DELETE FROM boot_events WHERE stage IN ('disk_attached', 'disk_read', 'disk_written', 'disk_detached');
ALTER TABLE boot_events
    DROP CONSTRAINT boot_events_stage_check,
    ADD CONSTRAINT boot_events_stage_check CHECK (stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'up', 'bye', 'refused', 'transfer_broken', 'foreign_server',
        'restarted', 'error', 'ended'));
UPDATE boot_attempts SET last_stage = 'script' WHERE last_stage IN ('disk_attached', 'disk_read', 'disk_written', 'disk_detached');
ALTER TABLE boot_attempts
    DROP COLUMN disk_bytes_read,
    DROP COLUMN disk_bytes_written,
    DROP CONSTRAINT boot_attempts_stage_check,
    ADD CONSTRAINT boot_attempts_stage_check CHECK (last_stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'up', 'bye', 'refused', 'transfer_broken', 'foreign_server',
        'restarted', 'error', 'ended'));

DROP TRIGGER clients_notify ON clients;
CREATE TRIGGER clients_notify AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF id, mac_address, hostname, ip_address,
        assigned_image_id, boot_mode, cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, created_at
    ON clients FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
DROP TRIGGER update_clients_updated_at ON clients;
CREATE TRIGGER update_clients_updated_at BEFORE UPDATE OF id, mac_address, hostname, ip_address, assigned_image_id, boot_mode,
        cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, created_at ON clients
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
DROP TRIGGER clients_normalise ON clients;
CREATE TRIGGER clients_normalise BEFORE INSERT OR UPDATE OF mac_address, hostname, ip_address, assigned_image_id, boot_mode,
        cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered ON clients
    FOR EACH ROW EXECUTE FUNCTION dls_clients_normalise();
CREATE OR REPLACE FUNCTION dls_clients_normalise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.mac_address := dls_normal_mac(NEW.mac_address);
    IF family(NEW.ip_address) = 4 THEN
        NEW.ip_address := host(NEW.ip_address)::inet;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.auto_registered AND NEW.auto_registered
       AND (NEW.mac_address, NEW.hostname, NEW.ip_address, NEW.assigned_image_id, NEW.boot_mode, NEW.cpu_cores,
            NEW.memory_mb, NEW.network_config, NEW.custom_boot_params, NEW.enabled)
           IS DISTINCT FROM
           (OLD.mac_address, OLD.hostname, OLD.ip_address, OLD.assigned_image_id, OLD.boot_mode, OLD.cpu_cores,
            OLD.memory_mb, OLD.network_config, OLD.custom_boot_params, OLD.enabled) THEN
        NEW.auto_registered := FALSE;
    END IF;
    RETURN NEW;
END;
$$;

ALTER TABLE clients DROP COLUMN disk_mode;
ALTER TABLE images DROP COLUMN boot_method, DROP COLUMN sha256, DROP COLUMN source_format;
