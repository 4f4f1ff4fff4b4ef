DROP VIEW replicas;
DROP TABLE image_replicas;
ALTER TABLE image_snapshots DROP CONSTRAINT image_snapshots_of_image;
DROP TRIGGER servers_notify ON servers;
ALTER TABLE servers
    DROP COLUMN replication_addresses,
    DROP COLUMN replication_port,
    DROP COLUMN certificate_sha256,
    DROP COLUMN boot_addresses,
    DROP COLUMN boot_port;
