DROP FUNCTION dls_lease_end(TIMESTAMPTZ, BIGINT);
DROP TABLE leases;
DROP TABLE boot_events;
DROP TABLE boot_attempts;
DROP TABLE servers;
