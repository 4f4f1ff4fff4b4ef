DROP TRIGGER clients_notify_insert ON clients;
DROP TRIGGER clients_notify_update ON clients;
DROP TRIGGER clients_notify_delete ON clients;
DROP TRIGGER clients_notify_truncate ON clients;
DROP TRIGGER client_macs_notify_insert ON client_macs;
DROP TRIGGER client_macs_notify_update ON client_macs;
DROP TRIGGER client_macs_notify_delete ON client_macs;
DROP TRIGGER client_macs_notify_truncate ON client_macs;
DROP FUNCTION dls_notify_clients();
DROP FUNCTION dls_notify_client_macs();
CREATE TRIGGER clients_notify AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF id, mac_address, hostname, ip_address,
        assigned_image_id, boot_mode, cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, created_at,
        disk_mode, ring, pinned_version
    ON clients FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER client_macs_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON client_macs
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
