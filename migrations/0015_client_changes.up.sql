-- A change of a few clients says which, so that a server with a hundred thousand of them reads
-- only those again: "clients ID,ID,.." on `dls_configuration`. A change of more, or of what
-- clients are told apart by, says "clients", as before; older servers read all either way.

-- last_boot_at and boot_count change with every boot, updated_at with each of them: nobody waits
-- for those.
CREATE FUNCTION dls_notify_clients() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ids UUID[];
BEGIN
    IF TG_OP = 'UPDATE' THEN
        SELECT array_agg(coalesce(n.id, o.id)) INTO ids FROM new_rows n FULL JOIN old_rows o ON o.id = n.id
            WHERE (to_jsonb(n) - '{last_boot_at,boot_count,updated_at}'::text[])
                IS DISTINCT FROM (to_jsonb(o) - '{last_boot_at,boot_count,updated_at}'::text[]);
    ELSE
        SELECT array_agg(id) INTO ids FROM changed;
    END IF;
    IF cardinality(ids) > 200 THEN
        PERFORM pg_notify('dls_configuration', 'clients');
    ELSIF cardinality(ids) > 0 THEN
        PERFORM pg_notify('dls_configuration', 'clients ' || array_to_string(ids, ','));
    END IF;
    RETURN NULL;
END;
$$;

CREATE FUNCTION dls_notify_client_macs() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ids UUID[];
BEGIN
    IF TG_OP = 'UPDATE' THEN
        SELECT array_agg(client_id) INTO ids FROM (SELECT client_id FROM old_rows UNION SELECT client_id FROM new_rows) AS c;
    ELSE
        SELECT array_agg(DISTINCT client_id) INTO ids FROM changed;
    END IF;
    IF cardinality(ids) > 200 THEN
        PERFORM pg_notify('dls_configuration', 'clients');
    ELSIF cardinality(ids) > 0 THEN
        PERFORM pg_notify('dls_configuration', 'clients ' || array_to_string(ids, ','));
    END IF;
    RETURN NULL;
END;
$$;

DROP TRIGGER clients_notify ON clients;
DROP TRIGGER client_macs_notify ON client_macs;
CREATE TRIGGER clients_notify_insert AFTER INSERT ON clients REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_clients();
CREATE TRIGGER clients_notify_update AFTER UPDATE ON clients REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_clients();
CREATE TRIGGER clients_notify_delete AFTER DELETE ON clients REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_clients();
CREATE TRIGGER clients_notify_truncate AFTER TRUNCATE ON clients
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER client_macs_notify_insert AFTER INSERT ON client_macs REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_client_macs();
CREATE TRIGGER client_macs_notify_update AFTER UPDATE ON client_macs REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_client_macs();
CREATE TRIGGER client_macs_notify_delete AFTER DELETE ON client_macs REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_client_macs();
CREATE TRIGGER client_macs_notify_truncate AFTER TRUNCATE ON client_macs
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
