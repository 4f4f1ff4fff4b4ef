DROP FUNCTION dls_range_takes_its_leases() CASCADE;
DROP FUNCTION dls_leases_written() CASCADE;
CREATE TRIGGER leases_notify_insert AFTER INSERT ON leases REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_leases();
CREATE TRIGGER leases_notify_update AFTER UPDATE ON leases REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_leases();
ALTER TABLE leases RESET (fillfactor);
ALTER TABLE leases ADD CONSTRAINT leases_range_fkey FOREIGN KEY (range_id, network) REFERENCES network_ranges(id, network)
    ON UPDATE CASCADE ON DELETE CASCADE;
COMMENT ON COLUMN leases.network IS 'That range''s network, kept equal by the foreign key, so that an address outside is refused';
