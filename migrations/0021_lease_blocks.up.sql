-- Which server may give which addresses away by itself. A server that shares this database claims
-- a part of the free addresses of each range, and only in its own part does it make new leases
-- while it can't reach the database; what nobody has claimed is given away through the database.
--
-- A claim has an end. Its owner moves that on with each heartbeat and stops before it by its own
-- clock; somebody else may take the addresses when the end and the longest lease that could have
-- been given until then are over. All that changes claims holds one advisory lock.

ALTER TABLE servers ADD COLUMN claims_until TIMESTAMPTZ;
COMMENT ON COLUMN servers.claims_until IS
    'Until when its lease blocks are its own; NULL: it has stopped in good order and uses none of them';

CREATE TABLE lease_blocks (
    range_id UUID NOT NULL,
    first_address INET NOT NULL,
    last_address INET NOT NULL,
    server_id UUID NOT NULL,
    claimed_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    longest_seconds BIGINT NOT NULL DEFAULT 0,
    span INT8RANGE NOT NULL GENERATED ALWAYS AS
        (int8range(first_address - '0.0.0.0'::inet, last_address - '0.0.0.0'::inet, '[]')) STORED,
    PRIMARY KEY (first_address),
    CONSTRAINT lease_blocks_range_fkey FOREIGN KEY (range_id) REFERENCES network_ranges(id) ON DELETE CASCADE,
    CONSTRAINT lease_blocks_server_fkey FOREIGN KEY (server_id) REFERENCES servers(id) ON DELETE CASCADE,
    CONSTRAINT lease_blocks_first_check CHECK (family(first_address) = 4 AND masklen(first_address) = 32),
    CONSTRAINT lease_blocks_last_check CHECK (family(last_address) = 4 AND masklen(last_address) = 32),
    CONSTRAINT lease_blocks_longest_check CHECK (longest_seconds >= 0),
    CONSTRAINT lease_blocks_apart EXCLUDE USING gist (span WITH &&)
);
CREATE INDEX lease_blocks_server_idx ON lease_blocks (server_id, range_id);
CREATE INDEX lease_blocks_range_idx ON lease_blocks (range_id);
COMMENT ON TABLE lease_blocks IS
    'Addresses that one server may give away while it can''t reach this database; see lease_block_status';
COMMENT ON COLUMN lease_blocks.range_id IS 'The network range';
COMMENT ON COLUMN lease_blocks.first_address IS 'First address of the block';
COMMENT ON COLUMN lease_blocks.last_address IS 'Last address of the block, included';
COMMENT ON COLUMN lease_blocks.server_id IS 'Whose it is';
COMMENT ON COLUMN lease_blocks.claimed_at IS
    'Since when; it is used a little later, when every lease is read that another server had under way';
COMMENT ON COLUMN lease_blocks.longest_seconds IS
    'The longest lease of the range while the block was held, seconds: nobody takes it over before that is over';
COMMENT ON COLUMN lease_blocks.span IS 'The addresses as numbers, so that no two blocks overlap';

-- When somebody else may take a block over. In good order: a while after its server stopped, so
-- that one which only starts anew finds its blocks again.
CREATE FUNCTION dls_block_ends(claims_until TIMESTAMPTZ, heartbeat_at TIMESTAMPTZ, seconds BIGINT) RETURNS TIMESTAMPTZ
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN claims_until IS NULL THEN heartbeat_at + interval '5 minutes'
        ELSE claims_until + make_interval(secs => seconds) END
$$;

CREATE VIEW lease_block_status AS
SELECT s.name AS server, r.name AS range, b.first_address, b.last_address,
    b.last_address - b.first_address + 1 AS addresses,
    (SELECT count(*) FROM leases l WHERE l.address BETWEEN b.first_address AND b.last_address
        AND l.state = 'active' AND dls_lease_end(l.starts_at, l.length_seconds) > now()) AS leased,
    b.claimed_at, s.claims_until AS claimed_until,
    dls_block_ends(s.claims_until, s.heartbeat_at, greatest(b.longest_seconds, r.lease_seconds)) AS free_for_others_at
FROM lease_blocks b JOIN servers s ON s.id = b.server_id JOIN network_ranges r ON r.id = b.range_id
ORDER BY b.first_address;
COMMENT ON VIEW lease_block_status IS
    'Which server may give which addresses away by itself, until when, and when others may take them over';
COMMENT ON COLUMN lease_block_status.server IS 'The server''s name';
COMMENT ON COLUMN lease_block_status.range IS 'The range''s name';
COMMENT ON COLUMN lease_block_status.first_address IS 'First address of the block';
COMMENT ON COLUMN lease_block_status.last_address IS 'Last address of the block, included';
COMMENT ON COLUMN lease_block_status.addresses IS 'How many addresses';
COMMENT ON COLUMN lease_block_status.leased IS 'How many of them are leased now';
COMMENT ON COLUMN lease_block_status.claimed_at IS 'Since when it is the server''s';
COMMENT ON COLUMN lease_block_status.claimed_until IS 'Until when, unless it is kept on; NULL: it has stopped in good order';
COMMENT ON COLUMN lease_block_status.free_for_others_at IS 'From when on another server may take the block over';
