-- Whoever changes the catalog, the program or a person in psql, every server hears of it.
--
-- `dls_configuration`: the payload is the table's name. `dls_leases`: "ORIGIN ADDRESS,ADDRESS,.."
-- or "ORIGIN all", where ORIGIN is the id of the server that wrote, or "-". Triggers are by
-- statement: one notification for one statement, however many rows.

CREATE FUNCTION dls_notify_configuration() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('dls_configuration', TG_TABLE_NAME);
    RETURN NULL;
END;
$$;

-- clients: not for last_boot_at and boot_count, which every boot changes.
CREATE TRIGGER clients_notify AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF id, mac_address, hostname, ip_address,
        assigned_image_id, boot_mode, cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, created_at
    ON clients FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER client_macs_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON client_macs
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER images_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON images
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER image_files_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON image_files
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER network_ranges_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON network_ranges
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER range_pools_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON range_pools
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER range_exclusions_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON range_exclusions
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER site_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON site
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();

-- A payload holds fewer than 8000 bytes: 400 addresses fit into one, a change of more than
-- 20,000 leases says "all".
CREATE FUNCTION dls_notify_leases() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    origin TEXT := coalesce(nullif(current_setting('dls.server_id', TRUE), ''), '-');
    addresses INET[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify('dls_leases', origin || ' all');
        RETURN NULL;
    ELSIF TG_OP = 'UPDATE' THEN
        SELECT array_agg(address) INTO addresses FROM (SELECT address FROM old_rows UNION SELECT address FROM new_rows) AS c;
    ELSE
        SELECT array_agg(address) INTO addresses FROM changed;
    END IF;
    IF cardinality(addresses) > 20000 THEN
        PERFORM pg_notify('dls_leases', origin || ' all');
    ELSE
        PERFORM pg_notify('dls_leases', origin || ' ' || string_agg(host(a), ','))
            FROM unnest(addresses) WITH ORDINALITY AS u(a, n) GROUP BY (n - 1) / 400;
    END IF;
    RETURN NULL;
END;
$$;
CREATE TRIGGER leases_notify_insert AFTER INSERT ON leases REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_leases();
CREATE TRIGGER leases_notify_update AFTER UPDATE ON leases REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_leases();
CREATE TRIGGER leases_notify_delete AFTER DELETE ON leases REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_leases();
CREATE TRIGGER leases_notify_truncate AFTER TRUNCATE ON leases
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_leases();
