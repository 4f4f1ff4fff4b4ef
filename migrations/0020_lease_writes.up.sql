-- A batch of leases costs little more than its rows. PostgreSQL checks a foreign key row by row,
-- each with a query and a row lock of its own: for leases, which come by the hundred and have one
-- range, that was most of the work. The same rule is checked here by statement, with one lock
-- for each range; and one trigger tells of a change, where before two fired for nothing.

ALTER TABLE leases DROP CONSTRAINT leases_range_fkey;
-- Renewals then find room for the new version of a row beside the old one, and write no index.
ALTER TABLE leases SET (fillfactor = 70);

-- KEY SHARE, as a foreign key does: a range that is being removed or given another network waits
-- for the leases that are being written, or they for it.
CREATE FUNCTION dls_leases_written() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    origin TEXT := coalesce(nullif(current_setting('dls.server_id', TRUE), ''), '-');
    addresses INET[];
    wanted RECORD;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        SELECT array_agg(address) INTO addresses FROM (SELECT address FROM old_rows UNION SELECT address FROM new_rows) AS c;
    ELSE
        SELECT array_agg(address) INTO addresses FROM new_rows;
    END IF;
    IF addresses IS NULL THEN
        RETURN NULL;
    END IF;
    FOR wanted IN SELECT DISTINCT range_id, network FROM new_rows LOOP
        PERFORM FROM network_ranges r WHERE r.id = wanted.range_id AND r.network = wanted.network FOR KEY SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there is no network range % with the network %', wanted.range_id, wanted.network
                USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'leases_range_fkey', TABLE = 'leases';
        END IF;
    END LOOP;
    IF cardinality(addresses) > 20000 THEN
        PERFORM pg_notify('dls_leases', origin || ' all');
    ELSIF cardinality(addresses) <= 400 THEN
        PERFORM pg_notify('dls_leases', origin || ' ' || array_to_string(addresses, ','));
    ELSE
        PERFORM pg_notify('dls_leases', origin || ' ' || string_agg(host(a), ','))
            FROM unnest(addresses) WITH ORDINALITY AS u(a, n) GROUP BY (n - 1) / 400;
    END IF;
    RETURN NULL;
END;
$$;
DROP TRIGGER leases_notify_insert ON leases;
DROP TRIGGER leases_notify_update ON leases;
CREATE TRIGGER leases_written_insert AFTER INSERT ON leases REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION dls_leases_written();
CREATE TRIGGER leases_written_update AFTER UPDATE ON leases REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION dls_leases_written();

CREATE FUNCTION dls_range_takes_its_leases() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM leases WHERE range_id = OLD.id;
    ELSE
        UPDATE leases SET range_id = NEW.id, network = NEW.network WHERE range_id = OLD.id;
    END IF;
    RETURN NULL;
END;
$$;
CREATE TRIGGER network_ranges_leases_delete AFTER DELETE ON network_ranges
    FOR EACH ROW EXECUTE FUNCTION dls_range_takes_its_leases();
CREATE TRIGGER network_ranges_leases_update AFTER UPDATE ON network_ranges
    FOR EACH ROW WHEN (OLD.id <> NEW.id OR OLD.network <> NEW.network) EXECUTE FUNCTION dls_range_takes_its_leases();
COMMENT ON COLUMN leases.network IS 'That range''s network, kept equal by triggers, so that an address outside is refused';
