-- What happens at run time: the servers, the leases, every power-on and its stages.

CREATE TABLE servers (
    id UUID PRIMARY KEY,
    name VARCHAR(255) NOT NULL,
    addresses INET[] NOT NULL DEFAULT '{}',
    version VARCHAR(100) NOT NULL,
    started_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    heartbeat_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    CONSTRAINT servers_addresses_check CHECK (dls_all_ipv4(addresses))
);

-- An attempt outlives its client, its range and its server: names are kept as text, and
-- server_id refers to no row on purpose.
CREATE TABLE boot_attempts (
    id UUID PRIMARY KEY,
    mac VARCHAR(17) NOT NULL,
    smbios_uuid UUID,
    client_id UUID,
    client_name TEXT,
    image_name TEXT,
    server_id UUID NOT NULL,
    range_id UUID,
    arch VARCHAR(20),
    client_ip INET,
    boot_server_ip INET,
    started_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    ended_at TIMESTAMPTZ,
    last_stage VARCHAR(30) NOT NULL DEFAULT 'discover',
    outcome VARCHAR(20) NOT NULL DEFAULT 'open',
    reason TEXT,
    CONSTRAINT boot_attempts_client_fkey FOREIGN KEY (client_id) REFERENCES clients(id) ON DELETE SET NULL,
    CONSTRAINT boot_attempts_range_fkey FOREIGN KEY (range_id) REFERENCES network_ranges(id) ON DELETE SET NULL,
    CONSTRAINT boot_attempts_mac_check CHECK (mac ~ '^([0-9a-f]{2}:){5}[0-9a-f]{2}$'),
    CONSTRAINT boot_attempts_arch_check CHECK (arch IN ('bios', 'efi-ia32', 'efi-x64', 'efi-arm64', 'http-ia32', 'http-x64', 'http-arm64', 'other')),
    CONSTRAINT boot_attempts_stage_check CHECK (last_stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'up', 'bye', 'refused', 'transfer_broken', 'foreign_server',
        'restarted', 'error', 'ended')),
    CONSTRAINT boot_attempts_outcome_check CHECK (outcome IN ('open', 'completed', 'failed', 'restarted', 'refused')),
    CONSTRAINT boot_attempts_open_check CHECK ((outcome = 'open') = (ended_at IS NULL))
);
CREATE INDEX idx_boot_attempts_started_at ON boot_attempts(started_at);
CREATE INDEX idx_boot_attempts_client_id ON boot_attempts(client_id, started_at);
CREATE INDEX idx_boot_attempts_mac ON boot_attempts(mac, started_at);
CREATE INDEX idx_boot_attempts_range_id ON boot_attempts(range_id);
-- Small however long the history: what leases ask for.
CREATE INDEX idx_boot_attempts_open ON boot_attempts(mac) WHERE ended_at IS NULL;
CREATE INDEX idx_boot_attempts_failed ON boot_attempts(started_at) WHERE outcome = 'failed';

CREATE TABLE boot_events (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id UUID NOT NULL,
    at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    stage VARCHAR(30) NOT NULL,
    detail JSONB NOT NULL DEFAULT '{}',
    CONSTRAINT boot_events_session_fkey FOREIGN KEY (session_id) REFERENCES boot_attempts(id) ON DELETE CASCADE,
    CONSTRAINT boot_events_stage_check CHECK (stage IN ('discover', 'offer', 'lease', 'loader_offered', 'loader_requested',
        'loader_sent', 'loader_running', 'loader_lease', 'script', 'waiting', 'local_boot', 'kernel_requested', 'kernel_sent',
        'initrd_requested', 'initrd_sent', 'os_network', 'up', 'bye', 'refused', 'transfer_broken', 'foreign_server',
        'restarted', 'error', 'ended'))
);
-- A batch that is sent again because its answer was lost adds nothing.
CREATE UNIQUE INDEX boot_events_once ON boot_events(session_id, at, stage, md5(detail::text));

-- Start and length, never an end: a clock that jumps ends nothing. A lease carries its range's
-- network for the same reason as a pool does.
CREATE TABLE leases (
    address INET PRIMARY KEY,
    range_id UUID NOT NULL,
    network CIDR NOT NULL,
    mac VARCHAR(17) NOT NULL,
    client_identifier BYTEA,
    hostname VARCHAR(255),
    state VARCHAR(10) NOT NULL DEFAULT 'active',
    starts_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    length_seconds BIGINT NOT NULL,
    relay_information BYTEA,
    server_id UUID NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    CONSTRAINT leases_range_fkey FOREIGN KEY (range_id, network) REFERENCES network_ranges(id, network)
        ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT leases_address_check CHECK (family(address) = 4 AND masklen(address) = 32),
    CONSTRAINT leases_inside_check CHECK (address <<= network),
    CONSTRAINT leases_mac_check CHECK (mac ~ '^([0-9a-f]{2}:){5}[0-9a-f]{2}$'),
    CONSTRAINT leases_state_check CHECK (state IN ('active', 'released', 'declined')),
    CONSTRAINT leases_length_check CHECK (length_seconds BETWEEN 0 AND 4294967295),
    CONSTRAINT leases_hostname_check CHECK (dls_name_ok(hostname)),
    -- Checked at commit, so that one statement can give a machine its new address first and
    -- take the old one only once the new one is its own.
    CONSTRAINT leases_one_per_mac EXCLUDE USING btree (range_id WITH =, mac WITH =) WHERE (state <> 'declined')
        DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX idx_leases_mac ON leases(mac);
CREATE TRIGGER leases_fill BEFORE INSERT ON leases
    FOR EACH ROW WHEN (NEW.network IS NULL) EXECUTE FUNCTION dls_fill_network();

-- When a lease ends; NULL: never.
CREATE FUNCTION dls_lease_end(starts_at TIMESTAMPTZ, length_seconds BIGINT) RETURNS TIMESTAMPTZ LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN length_seconds < 4294967295 THEN starts_at + length_seconds * interval '1 second' END
$$;
