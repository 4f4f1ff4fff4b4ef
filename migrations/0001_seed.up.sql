-- The five tables that the catalog began with: images, clients, boot_sessions, image_snapshots,
-- network_ranges. What they gained later is in later migrations.

CREATE EXTENSION IF NOT EXISTS "uuid-ossp";

CREATE TABLE images (
    id UUID PRIMARY KEY DEFAULT uuid_generate_v4(),
    name VARCHAR(255) NOT NULL UNIQUE,
    description TEXT,
    os_type VARCHAR(100),
    size_bytes BIGINT NOT NULL CHECK (size_bytes > 0),
    format VARCHAR(20) NOT NULL CHECK (format IN ('raw', 'qcow2', 'vhdx')),
    path TEXT NOT NULL,
    zfs_dataset VARCHAR(255),
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    created_by UUID,
    tags JSONB,
    is_template BOOLEAN NOT NULL DEFAULT FALSE,
    parent_image_id UUID REFERENCES images(id) ON DELETE SET NULL
);

CREATE TABLE clients (
    id UUID PRIMARY KEY DEFAULT uuid_generate_v4(),
    mac_address VARCHAR(17) NOT NULL UNIQUE,
    hostname VARCHAR(255) NOT NULL,
    ip_address INET,
    assigned_image_id UUID REFERENCES images(id) ON DELETE SET NULL,
    boot_mode VARCHAR(10) NOT NULL DEFAULT 'pxe' CHECK (boot_mode IN ('pxe', 'uefi', 'legacy')),
    cpu_cores INTEGER NOT NULL DEFAULT 2 CHECK (cpu_cores > 0),
    memory_mb INTEGER NOT NULL DEFAULT 2048 CHECK (memory_mb > 0),
    network_config JSONB,
    custom_boot_params TEXT,
    enabled BOOLEAN NOT NULL DEFAULT TRUE,
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    last_boot_at TIMESTAMPTZ,
    boot_count BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE boot_sessions (
    id UUID PRIMARY KEY DEFAULT uuid_generate_v4(),
    client_id UUID NOT NULL REFERENCES clients(id) ON DELETE CASCADE,
    image_id UUID NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    started_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    ended_at TIMESTAMPTZ,
    status VARCHAR(10) NOT NULL DEFAULT 'starting' CHECK (status IN ('starting', 'booting', 'running', 'shutdown', 'error')),
    boot_time_seconds INTEGER CHECK (boot_time_seconds >= 0),
    error_message TEXT,
    client_ip INET,
    boot_server_ip INET
);

CREATE TABLE image_snapshots (
    id UUID PRIMARY KEY DEFAULT uuid_generate_v4(),
    image_id UUID NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    name VARCHAR(255) NOT NULL,
    description TEXT,
    zfs_snapshot VARCHAR(511),
    size_bytes BIGINT NOT NULL DEFAULT 0 CHECK (size_bytes >= 0),
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    created_by UUID,
    CONSTRAINT image_snapshots_name_key UNIQUE (image_id, name)
);

CREATE TABLE network_ranges (
    id UUID PRIMARY KEY DEFAULT uuid_generate_v4(),
    name VARCHAR(255) NOT NULL DEFAULT '',
    network CIDR NOT NULL,
    mode VARCHAR(10) NOT NULL DEFAULT 'full',
    serve VARCHAR(10) NOT NULL DEFAULT 'all',
    unready VARCHAR(10) NOT NULL DEFAULT 'wait',
    always_chainload BOOLEAN NOT NULL DEFAULT FALSE,
    gateway INET,
    dns INET[] NOT NULL DEFAULT '{}',
    domain VARCHAR(253),
    search TEXT[] NOT NULL DEFAULT '{}',
    ntp INET[] NOT NULL DEFAULT '{}',
    mtu INTEGER,
    routes JSONB NOT NULL DEFAULT '[]',
    lease_seconds BIGINT NOT NULL DEFAULT 3600,
    options JSONB NOT NULL DEFAULT '{}',
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    CONSTRAINT network_ranges_name_key UNIQUE (name)
);

CREATE INDEX idx_images_name ON images(name);
CREATE INDEX idx_clients_mac_address ON clients(mac_address);
CREATE INDEX idx_boot_sessions_client_id ON boot_sessions(client_id);

CREATE INDEX idx_images_os_type ON images(os_type);
CREATE INDEX idx_images_is_template ON images(is_template);
CREATE INDEX idx_clients_enabled ON clients(enabled);
CREATE INDEX idx_boot_sessions_started_at ON boot_sessions(started_at);
CREATE INDEX idx_boot_sessions_status ON boot_sessions(status);

CREATE INDEX idx_clients_assigned_image_id ON clients(assigned_image_id);
CREATE INDEX idx_boot_sessions_image_id ON boot_sessions(image_id);
CREATE INDEX idx_image_snapshots_image_id ON image_snapshots(image_id);

CREATE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = NOW();
    RETURN NEW;
END;
$$;

CREATE TRIGGER update_images_updated_at BEFORE UPDATE ON images
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_clients_updated_at BEFORE UPDATE ON clients
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_network_ranges_updated_at BEFORE UPDATE ON network_ranges
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
