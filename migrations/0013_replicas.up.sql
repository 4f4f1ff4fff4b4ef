-- Replicas: which server has which version of an image, how servers reach each other, and by
-- which certificate they know each other.

-- ---- servers ------------------------------------------------------------------------------

ALTER TABLE servers
    ADD COLUMN replication_addresses INET[] NOT NULL DEFAULT '{}',
    ADD COLUMN replication_port INTEGER,
    ADD COLUMN certificate_sha256 CHAR(64),
    ADD COLUMN boot_addresses INET[] NOT NULL DEFAULT '{}',
    ADD COLUMN boot_port INTEGER,
    ADD CONSTRAINT servers_replication_addresses_check CHECK (dls_all_ipv4(replication_addresses)),
    ADD CONSTRAINT servers_replication_port_check CHECK (replication_port BETWEEN 1 AND 65535),
    ADD CONSTRAINT servers_certificate_check CHECK (certificate_sha256 ~ '^[0-9a-f]{64}$'),
    ADD CONSTRAINT servers_boot_addresses_check CHECK (dls_all_ipv4(boot_addresses)),
    ADD CONSTRAINT servers_boot_port_check CHECK (boot_port BETWEEN 1 AND 65535);

COMMENT ON COLUMN servers.replication_addresses IS 'Addresses by which other servers send it versions of images';
COMMENT ON COLUMN servers.replication_port IS 'Port of that';
COMMENT ON COLUMN servers.certificate_sha256 IS 'SHA-256 of the certificate that it shows to other servers, and they accept no other; 64 lower-case hex digits';
COMMENT ON COLUMN servers.boot_addresses IS 'Addresses by which machines load from it by HTTP';
COMMENT ON COLUMN servers.boot_port IS 'Port of that';

-- Not for heartbeats, which come every ten seconds, nor for a new row: that says nothing yet of
-- how its server is reached.
CREATE TRIGGER servers_notify AFTER DELETE OR TRUNCATE OR UPDATE OF id, replication_addresses, replication_port,
        certificate_sha256, boot_addresses, boot_port
    ON servers FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();

-- ---- replicas -----------------------------------------------------------------------------

ALTER TABLE image_snapshots ADD CONSTRAINT image_snapshots_of_image UNIQUE (id, image_id);

CREATE TABLE image_replicas (
    version_id UUID NOT NULL,
    server_id UUID NOT NULL,
    image_id UUID NOT NULL,
    state VARCHAR(10) NOT NULL,
    from_server UUID,
    bytes_done BIGINT NOT NULL DEFAULT 0,
    bytes_total BIGINT NOT NULL DEFAULT 0,
    sha256 CHAR(64),
    reason TEXT,
    begun_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    changed_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (version_id, server_id),
    CONSTRAINT image_replicas_version_fkey FOREIGN KEY (version_id, image_id) REFERENCES image_snapshots(id, image_id) ON DELETE CASCADE,
    CONSTRAINT image_replicas_server_fkey FOREIGN KEY (server_id) REFERENCES servers(id) ON DELETE CASCADE,
    CONSTRAINT image_replicas_state_check CHECK (state IN ('copying', 'verified', 'failed')),
    CONSTRAINT image_replicas_bytes_check CHECK (bytes_done >= 0 AND bytes_total >= 0),
    CONSTRAINT image_replicas_sha256_check CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    CONSTRAINT image_replicas_from_check CHECK (state <> 'copying' OR from_server IS NOT NULL),
    CONSTRAINT image_replicas_reason_check CHECK (state <> 'failed' OR reason IS NOT NULL)
);
CREATE INDEX idx_image_replicas_image_id ON image_replicas(image_id, version_id);
CREATE INDEX idx_image_replicas_server_id ON image_replicas(server_id);

COMMENT ON TABLE image_replicas IS 'Which server has which version of an image; the server that made a version has a verified one';
COMMENT ON COLUMN image_replicas.version_id IS 'The version (image_snapshots)';
COMMENT ON COLUMN image_replicas.server_id IS 'The server that has it, or gets it';
COMMENT ON COLUMN image_replicas.image_id IS 'The image of the version';
COMMENT ON COLUMN image_replicas.state IS 'copying: under way, also across restarts; verified: its content is complete, machines boot it there; failed: it came to nothing, see reason';
COMMENT ON COLUMN image_replicas.from_server IS 'The server that sends it; NULL where the version was made. It refers to no row on purpose';
COMMENT ON COLUMN image_replicas.bytes_done IS 'Bytes that the server has safely';
COMMENT ON COLUMN image_replicas.bytes_total IS 'Bytes that are to be sent: what differs from a version that the server had before';
COMMENT ON COLUMN image_replicas.sha256 IS 'SHA-256 of the whole content as read back from that server''s store; NULL where the version was made and never sent';
COMMENT ON COLUMN image_replicas.reason IS 'Why it failed, or what it waits for';
COMMENT ON COLUMN image_replicas.begun_at IS 'When it was first asked for, or first told of';
COMMENT ON COLUMN image_replicas.changed_at IS 'When its state last changed';

-- Not for the bytes on their way, which change every second.
CREATE TRIGGER image_replicas_notify AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF version_id, server_id, image_id, state, sha256, from_server
    ON image_replicas FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();

CREATE VIEW replicas AS
SELECT i.name AS image,
       v.name AS version,
       v.stage,
       s.name AS server,
       s.heartbeat_at > now() - interval '35 seconds' AS server_alive,
       r.state,
       CASE WHEN r.state = 'copying' AND r.bytes_total > 0 THEN round(100.0 * r.bytes_done / r.bytes_total, 1) END AS percent,
       pg_size_pretty(r.bytes_total) AS sent,
       f.name AS from_server,
       r.sha256,
       r.reason,
       r.begun_at,
       r.changed_at
FROM image_replicas r
JOIN images i ON i.id = r.image_id
JOIN image_snapshots v ON v.id = r.version_id
JOIN servers s ON s.id = r.server_id
LEFT JOIN servers f ON f.id = r.from_server
ORDER BY i.name, v.created_at, v.name, s.name;

COMMENT ON VIEW replicas IS 'Which server has which version of each image, what is being copied to where, and what failed';
COMMENT ON COLUMN replicas.image IS 'Name of the image';
COMMENT ON COLUMN replicas.version IS 'Name of the version';
COMMENT ON COLUMN replicas.stage IS 'draft, canary, production or retired';
COMMENT ON COLUMN replicas.server IS 'Name of the server that has it or gets it';
COMMENT ON COLUMN replicas.server_alive IS 'False if the server has given no sign of life for 35 seconds: machines are not sent there';
COMMENT ON COLUMN replicas.state IS 'copying, verified or failed';
COMMENT ON COLUMN replicas.percent IS 'How much of it is there, while it is copied';
COMMENT ON COLUMN replicas.sent IS 'What is or was to be sent';
COMMENT ON COLUMN replicas.from_server IS 'Name of the server that sends it';
COMMENT ON COLUMN replicas.sha256 IS 'SHA-256 of its content as read back there';
COMMENT ON COLUMN replicas.reason IS 'Why it failed, or what it waits for';
COMMENT ON COLUMN replicas.begun_at IS 'When it was first asked for, or first told of';
COMMENT ON COLUMN replicas.changed_at IS 'When its state last changed';
