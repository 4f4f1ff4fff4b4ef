-- The clock of the machine that PostgreSQL runs on was set: leases keep their length.
-- Whoever notices first writes it down here and moves the leases with the clock.
CREATE TABLE clock_jumps (
    noticed_at    TIMESTAMPTZ PRIMARY KEY DEFAULT clock_timestamp(),
    server_id     UUID NOT NULL,
    shift_seconds DOUBLE PRECISION NOT NULL
);
COMMENT ON TABLE clock_jumps IS
    'When this database''s clock was set by more than a minute while servers were at work: leases were moved with it';
COMMENT ON COLUMN clock_jumps.noticed_at IS 'By the new time';
COMMENT ON COLUMN clock_jumps.server_id IS 'Which server noticed it first, and moved the leases';
COMMENT ON COLUMN clock_jumps.shift_seconds IS 'By how much, seconds; positive: forward';
