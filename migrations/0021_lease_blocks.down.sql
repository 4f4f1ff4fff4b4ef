DROP VIEW lease_block_status;
DROP FUNCTION dls_block_ends(TIMESTAMPTZ, TIMESTAMPTZ, BIGINT);
DROP TABLE lease_blocks;
ALTER TABLE servers DROP COLUMN claims_until;
