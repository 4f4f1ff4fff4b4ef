-- Versions of images: which of them machines boot, who decided so, and what each boot was given.
--
-- A version is a volume of the stores with the id of its row, and the snapshot `base` of that. The
-- first version's id is that of its image. Going back changes stages; no volume is ever put back.

-- ---- versions -----------------------------------------------------------------------------

UPDATE image_snapshots SET name = left(name, 200) || '-' || id WHERE name = 'base';

-- What is there already was named by other rules.
ALTER TABLE image_snapshots
    ADD COLUMN stage VARCHAR(10) NOT NULL DEFAULT 'draft',
    ADD COLUMN ring VARCHAR(32),
    ADD COLUMN referenced_bytes BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN author VARCHAR(128),
    ADD COLUMN from_client VARCHAR(255),
    ADD COLUMN released_at TIMESTAMPTZ,
    ADD COLUMN returned_at TIMESTAMPTZ,
    ADD COLUMN reason TEXT,
    ADD CONSTRAINT image_snapshots_stage_check CHECK (stage IN ('draft', 'canary', 'production', 'retired')),
    ADD CONSTRAINT image_snapshots_ring_check CHECK (ring ~ '^[a-z0-9][a-z0-9._-]{0,31}$'),
    ADD CONSTRAINT image_snapshots_canary_check CHECK ((stage = 'canary') = (ring IS NOT NULL)),
    ADD CONSTRAINT image_snapshots_referenced_check CHECK (referenced_bytes >= 0),
    ADD CONSTRAINT image_snapshots_name_check CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,63}$') NOT VALID;

COMMENT ON TABLE image_snapshots IS 'Versions of images: what their machines boot, booted, or may boot one day';
COMMENT ON COLUMN image_snapshots.id IS 'Primary key; also the name of its volume in the stores. The first version has the id of its image';
COMMENT ON COLUMN image_snapshots.name IS 'Unique among the versions of the image; base is the first one';
COMMENT ON COLUMN image_snapshots.description IS 'Why it was made, free text';
COMMENT ON COLUMN image_snapshots.size_bytes IS 'Bytes that only this version holds, when it was made';
COMMENT ON COLUMN image_snapshots.stage IS 'draft: for machines that are pinned to it; canary: for those of its ring; production: for all others; retired: was one of these. Setting it releases: the one before is retired by itself';
COMMENT ON COLUMN image_snapshots.ring IS 'Whose canary it is: clients with this ring boot it';
COMMENT ON COLUMN image_snapshots.referenced_bytes IS 'Bytes that it refers to, those that it shares included, when it was made';
COMMENT ON COLUMN image_snapshots.author IS 'Who made it, as they said';
COMMENT ON COLUMN image_snapshots.from_client IS 'Host name of the client whose disk it was made from';
COMMENT ON COLUMN image_snapshots.released_at IS 'When it last became production other than by going back to it';
COMMENT ON COLUMN image_snapshots.returned_at IS 'When machines were sent back from it; NULL: never, or it was released again since';
COMMENT ON COLUMN image_snapshots.reason IS 'Why machines were sent back from it';

CREATE UNIQUE INDEX image_snapshots_one_production ON image_snapshots(image_id) WHERE stage = 'production';
CREATE UNIQUE INDEX image_snapshots_one_canary ON image_snapshots(image_id, ring) WHERE stage = 'canary';

-- Each disk has its first version, whoever made its row.
CREATE FUNCTION dls_image_first_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO image_snapshots (id, image_id, name, stage, released_at)
    VALUES (NEW.id, NEW.id, 'base', 'production', clock_timestamp()) ON CONFLICT DO NOTHING;
    RETURN NULL;
END;
$$;
CREATE TRIGGER images_first_version AFTER INSERT OR UPDATE OF kind ON images
    FOR EACH ROW WHEN (NEW.kind = 'disk') EXECUTE FUNCTION dls_image_first_version();

INSERT INTO image_snapshots (id, image_id, name, stage, created_at, released_at)
SELECT id, id, 'base', 'production', created_at, created_at FROM images WHERE kind = 'disk';

-- Stages change as the table of model/version.rs says. Becoming production retires the version
-- that was it; where that one was released later, this is going back, and it is marked so.
CREATE FUNCTION dls_version_rules() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    former image_snapshots;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.stage <> 'draft' AND NEW.id <> NEW.image_id THEN
            RAISE EXCEPTION 'version "%" must begin as a draft', NEW.name
                USING ERRCODE = 'check_violation', CONSTRAINT = 'image_snapshots_stage_steps', TABLE = 'image_snapshots';
        END IF;
        RETURN NEW;
    END IF;
    IF (NEW.id, NEW.image_id) IS DISTINCT FROM (OLD.id, OLD.image_id) THEN
        RAISE EXCEPTION 'version "%" belongs to its image and its volume', OLD.name
            USING ERRCODE = 'check_violation', CONSTRAINT = 'image_snapshots_fixed', TABLE = 'image_snapshots';
    END IF;
    IF NEW.stage IS DISTINCT FROM OLD.stage AND (OLD.stage, NEW.stage) NOT IN (('draft', 'canary'), ('draft', 'production'),
            ('draft', 'retired'), ('canary', 'production'), ('canary', 'retired'), ('production', 'retired'),
            ('retired', 'canary'), ('retired', 'production')) THEN
        RAISE EXCEPTION 'version "%" can not go from % to %', OLD.name, OLD.stage, NEW.stage
            USING ERRCODE = 'check_violation', CONSTRAINT = 'image_snapshots_stage_steps', TABLE = 'image_snapshots';
    END IF;
    IF NEW.stage <> 'canary' THEN
        NEW.ring := NULL;
    ELSIF (NEW.stage, NEW.ring) IS DISTINCT FROM (OLD.stage, OLD.ring) THEN
        NEW.returned_at := NULL;
        NEW.reason := NULL;
        UPDATE image_snapshots SET stage = 'retired'
            WHERE image_id = NEW.image_id AND stage = 'canary' AND ring = NEW.ring AND id <> NEW.id;
    END IF;
    IF NEW.stage = 'production' AND OLD.stage <> 'production' THEN
        SELECT * INTO former FROM image_snapshots WHERE image_id = NEW.image_id AND stage = 'production' FOR UPDATE;
        IF former.released_at > OLD.released_at THEN
            UPDATE image_snapshots SET stage = 'retired', returned_at = clock_timestamp() WHERE id = former.id;
        ELSE
            UPDATE image_snapshots SET stage = 'retired' WHERE id = former.id;
            NEW.released_at := clock_timestamp();
        END IF;
        NEW.returned_at := NULL;
        NEW.reason := NULL;
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER image_snapshots_rules BEFORE INSERT OR UPDATE OF id, image_id, stage, ring ON image_snapshots
    FOR EACH ROW EXECUTE FUNCTION dls_version_rules();

-- At the end of a transaction each disk has its one version for all: the index sees to "not
-- two", this to "not none".
CREATE FUNCTION dls_version_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM images WHERE id = OLD.image_id AND kind = 'disk')
       AND NOT EXISTS (SELECT 1 FROM image_snapshots WHERE image_id = OLD.image_id AND stage = 'production') THEN
        RAISE EXCEPTION 'the image of version "%" would have no version in production', OLD.name
            USING ERRCODE = 'check_violation', CONSTRAINT = 'image_snapshots_no_production', TABLE = 'image_snapshots';
    END IF;
    RETURN NULL;
END;
$$;
CREATE CONSTRAINT TRIGGER image_snapshots_kept AFTER UPDATE OR DELETE ON image_snapshots DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.stage = 'production') EXECUTE FUNCTION dls_version_kept();

-- ---- clients ------------------------------------------------------------------------------

ALTER TABLE clients
    ADD COLUMN ring VARCHAR(32),
    ADD COLUMN pinned_version UUID,
    ADD CONSTRAINT clients_ring_check CHECK (ring ~ '^[a-z0-9][a-z0-9._-]{0,31}$'),
    ADD CONSTRAINT clients_pinned_version_fkey FOREIGN KEY (pinned_version) REFERENCES image_snapshots(id) ON DELETE SET NULL;
CREATE INDEX idx_clients_pinned_version ON clients(pinned_version) WHERE pinned_version IS NOT NULL;

COMMENT ON COLUMN clients.ring IS 'Boots the canary of this ring, where its image has one';
COMMENT ON COLUMN clients.pinned_version IS 'The version of its image that it boots whatever is released; another image unpins it';

CREATE FUNCTION dls_clients_pin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.pinned_version IS NULL
       OR EXISTS (SELECT 1 FROM image_snapshots WHERE id = NEW.pinned_version AND image_id = NEW.assigned_image_id) THEN
        RETURN NEW;
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.pinned_version = OLD.pinned_version THEN
        NEW.pinned_version := NULL;
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'client "%" can be pinned to a version of its own image only', NEW.hostname
        USING ERRCODE = 'check_violation', CONSTRAINT = 'clients_pinned_version_own', TABLE = 'clients', COLUMN = 'pinned_version';
END;
$$;
CREATE TRIGGER clients_pin BEFORE INSERT OR UPDATE OF assigned_image_id, pinned_version ON clients
    FOR EACH ROW EXECUTE FUNCTION dls_clients_pin();

-- What machines are to boot, what the image began with and what somebody is pinned to is not
-- removed; with the image everything goes.
CREATE FUNCTION dls_version_in_use() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    pinned TEXT;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM images WHERE id = OLD.image_id) THEN
        RETURN OLD;
    END IF;
    IF OLD.id = OLD.image_id THEN
        RAISE EXCEPTION 'version "%" is the first one: it goes with its image', OLD.name
            USING ERRCODE = 'check_violation', CONSTRAINT = 'image_snapshots_first', TABLE = 'image_snapshots';
    END IF;
    IF OLD.stage IN ('canary', 'production') THEN
        RAISE EXCEPTION 'version "%" is released', OLD.name
            USING ERRCODE = 'check_violation', CONSTRAINT = 'image_snapshots_released', TABLE = 'image_snapshots';
    END IF;
    SELECT string_agg(hostname, ', ' ORDER BY hostname) INTO pinned FROM clients WHERE pinned_version = OLD.id;
    IF pinned IS NOT NULL THEN
        RAISE EXCEPTION 'version "%" has clients pinned to it: %', OLD.name, pinned
            USING ERRCODE = 'check_violation', CONSTRAINT = 'image_snapshots_pinned', TABLE = 'image_snapshots';
    END IF;
    RETURN OLD;
END;
$$;
CREATE TRIGGER image_snapshots_in_use BEFORE DELETE ON image_snapshots
    FOR EACH ROW EXECUTE FUNCTION dls_version_in_use();

CREATE OR REPLACE FUNCTION dls_clients_normalise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.mac_address := dls_normal_mac(NEW.mac_address);
    IF family(NEW.ip_address) = 4 THEN
        NEW.ip_address := host(NEW.ip_address)::inet;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.auto_registered AND NEW.auto_registered
       AND (NEW.mac_address, NEW.hostname, NEW.ip_address, NEW.assigned_image_id, NEW.boot_mode, NEW.cpu_cores,
            NEW.memory_mb, NEW.network_config, NEW.custom_boot_params, NEW.enabled, NEW.disk_mode, NEW.ring, NEW.pinned_version)
           IS DISTINCT FROM
           (OLD.mac_address, OLD.hostname, OLD.ip_address, OLD.assigned_image_id, OLD.boot_mode, OLD.cpu_cores,
            OLD.memory_mb, OLD.network_config, OLD.custom_boot_params, OLD.enabled, OLD.disk_mode, OLD.ring, OLD.pinned_version) THEN
        NEW.auto_registered := FALSE;
    END IF;
    RETURN NEW;
END;
$$;

DROP TRIGGER clients_normalise ON clients;
CREATE TRIGGER clients_normalise BEFORE INSERT OR UPDATE OF mac_address, hostname, ip_address, assigned_image_id, boot_mode,
        cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, disk_mode, ring, pinned_version ON clients
    FOR EACH ROW EXECUTE FUNCTION dls_clients_normalise();

DROP TRIGGER update_clients_updated_at ON clients;
CREATE TRIGGER update_clients_updated_at BEFORE UPDATE OF id, mac_address, hostname, ip_address, assigned_image_id, boot_mode,
        cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, created_at, disk_mode, ring,
        pinned_version ON clients
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

-- ---- what every server hears of -----------------------------------------------------------

DROP TRIGGER clients_notify ON clients;
CREATE TRIGGER clients_notify AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF id, mac_address, hostname, ip_address,
        assigned_image_id, boot_mode, cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, created_at,
        disk_mode, ring, pinned_version
    ON clients FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
CREATE TRIGGER image_snapshots_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON image_snapshots
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();

-- ---- what boots were given ----------------------------------------------------------------

-- They refer to no row on purpose, as the rest of the trace: a boot outlives its version.
ALTER TABLE boot_attempts
    ADD COLUMN version_id UUID,
    ADD COLUMN version_name TEXT;
CREATE INDEX idx_boot_attempts_version_id ON boot_attempts(version_id) WHERE ended_at IS NULL;

COMMENT ON COLUMN boot_attempts.version_id IS 'The version of the image that its disk was made from (image_snapshots), told at its first login';
COMMENT ON COLUMN boot_attempts.version_name IS 'The name of that version, outliving the row';

CREATE VIEW image_versions AS
SELECT i.name AS image,
       v.name AS version,
       v.stage,
       v.ring,
       (SELECT count(*) FROM boot_attempts a WHERE a.version_id = v.id AND a.ended_at IS NULL) AS running,
       (SELECT count(*) FROM clients c WHERE c.pinned_version = v.id) AS pinned,
       pg_size_pretty(v.size_bytes) AS used,
       pg_size_pretty(v.referenced_bytes) AS referenced,
       v.author,
       v.from_client,
       v.description,
       v.created_at,
       v.released_at,
       v.returned_at,
       v.reason
FROM image_snapshots v
JOIN images i ON i.id = v.image_id
ORDER BY i.name, v.created_at, v.name;

COMMENT ON VIEW image_versions IS 'The versions of each image: who boots them, where they come from, and why machines were sent back from them';
COMMENT ON COLUMN image_versions.image IS 'Name of the image';
COMMENT ON COLUMN image_versions.version IS 'Name of the version';
COMMENT ON COLUMN image_versions.stage IS 'draft, canary, production or retired';
COMMENT ON COLUMN image_versions.ring IS 'Whose canary it is';
COMMENT ON COLUMN image_versions.running IS 'Boots of it that are open';
COMMENT ON COLUMN image_versions.pinned IS 'Clients that are pinned to it';
COMMENT ON COLUMN image_versions.used IS 'What only it held when it was made';
COMMENT ON COLUMN image_versions.referenced IS 'What it referred to when it was made, shared with others or not';
COMMENT ON COLUMN image_versions.author IS 'Who made it';
COMMENT ON COLUMN image_versions.from_client IS 'The client whose disk it was made from';
COMMENT ON COLUMN image_versions.description IS 'Why it was made';
COMMENT ON COLUMN image_versions.created_at IS 'When it was made';
COMMENT ON COLUMN image_versions.released_at IS 'When it last became production other than by going back to it';
COMMENT ON COLUMN image_versions.returned_at IS 'When machines were sent back from it';
COMMENT ON COLUMN image_versions.reason IS 'Why';

ALTER TABLE clones ADD COLUMN version_name TEXT;
COMMENT ON COLUMN clones.version_name IS 'The version of the image that it was made from';

CREATE OR REPLACE VIEW client_disks AS
SELECT c.hostname AS client,
       k.mode,
       coalesce(i.name, k.image_name) AS image,
       pg_size_pretty(k.size_bytes) AS size,
       pg_size_pretty(k.used_bytes) AS used,
       k.peer AS attached_from,
       k.protocol,
       k.last_attached_at,
       k.idle_since,
       a.disk_bytes_read AS bytes_read,
       a.disk_bytes_written AS bytes_written,
       k.session_id,
       k.created_at,
       v.name AS server,
       k.name,
       k.version_name AS version
FROM clones k
LEFT JOIN clients c ON c.id = k.client_id
LEFT JOIN images i ON i.id = k.image_id
LEFT JOIN boot_attempts a ON a.id = k.session_id
LEFT JOIN servers v ON v.id = k.server_id
ORDER BY c.hostname, k.last_attached_at DESC NULLS LAST, k.name;
COMMENT ON COLUMN client_disks.version IS 'The version of the image that it was made from';
