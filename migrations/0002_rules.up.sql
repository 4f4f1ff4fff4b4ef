-- What the configuration gained: kernel images and their files, all MACs of a client, pools and
-- exclusions of a network range; and every rule of it that PostgreSQL can hold by itself. The
-- names of constraints are part of the interface: the program turns them into sentences.
--
-- Functions used by CHECK constraints call built-in functions only, so that a dump can be
-- restored with an empty search path.

-- ---- small checks -------------------------------------------------------------------------

CREATE FUNCTION dls_all_ipv4(addresses INET[]) RETURNS BOOLEAN LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(bool_and(a IS NOT NULL AND family(a) = 4 AND masklen(a) = 32), TRUE) FROM unnest(addresses) AS a
$$;

-- A value that goes into a boot script or onto a kernel command line. The loader's scripts know
-- no quoting: line ends, ${, &&, || and ; can't be made harmless, so they are refused.
CREATE FUNCTION dls_script_safe(value TEXT) RETURNS BOOLEAN LANGUAGE sql IMMUTABLE AS $$
    SELECT value !~ '[\x01-\x1f\x7f]' AND position('${' IN value) = 0 AND position('&&' IN value) = 0
       AND position('||' IN value) = 0 AND position(';' IN value) = 0
$$;

CREATE FUNCTION dls_name_ok(name TEXT) RETURNS BOOLEAN LANGUAGE sql IMMUTABLE AS $$
    SELECT length(name) <= 253
       AND name ~ '^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$'
$$;

CREATE FUNCTION dls_all_names_ok(names TEXT[]) RETURNS BOOLEAN LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(bool_and(n IS NOT NULL AND length(n) <= 253
       AND n ~ '^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$'), TRUE)
    FROM unnest(names) AS n
$$;

-- The keys that clients.network_config may have, each with its form.
CREATE FUNCTION dls_network_config_ok(config JSONB) RETURNS BOOLEAN LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    ipv4 CONSTANT TEXT := '^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$';
    host CONSTANT TEXT := '^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$';
    k TEXT;
    v JSONB;
    form TEXT;
BEGIN
    IF jsonb_typeof(config) <> 'object' THEN
        RETURN FALSE;
    END IF;
    FOR k, v IN SELECT * FROM jsonb_each(config) LOOP
        -- null means absent, as it does in the API
        CONTINUE WHEN jsonb_typeof(v) = 'null'
            AND k IN ('gateway', 'dns', 'domain', 'search', 'ntp', 'mtu', 'kernel_ip');
        CASE k
            WHEN 'gateway', 'domain', 'kernel_ip' THEN
                IF jsonb_typeof(v) <> 'string' THEN RETURN FALSE; END IF;
                form := CASE k WHEN 'gateway' THEN ipv4 WHEN 'domain' THEN host ELSE '^(static|dhcp)$' END;
                IF (v #>> '{}') !~ form THEN RETURN FALSE; END IF;
            WHEN 'dns', 'ntp', 'search' THEN
                IF jsonb_typeof(v) <> 'array' THEN RETURN FALSE; END IF;
                form := CASE k WHEN 'search' THEN host ELSE ipv4 END;
                IF EXISTS (SELECT 1 FROM jsonb_array_elements(v) AS e
                           WHERE jsonb_typeof(e) <> 'string' OR (e #>> '{}') !~ form) THEN
                    RETURN FALSE;
                END IF;
            WHEN 'mtu' THEN
                IF jsonb_typeof(v) <> 'number' OR v::text !~ '^[0-9]{2,5}$' OR v::text::integer NOT BETWEEN 68 AND 65535 THEN
                    RETURN FALSE;
                END IF;
            ELSE
                RETURN FALSE;
        END CASE;
    END LOOP;
    RETURN TRUE;
END;
$$;

-- network_ranges.routes: [{"to": "10.1.0.0/16", "via": "10.0.0.1"}, ..]
CREATE FUNCTION dls_routes_ok(routes JSONB) RETURNS BOOLEAN LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    ipv4 CONSTANT TEXT := '((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])';
BEGIN
    RETURN jsonb_typeof(routes) = 'array' AND NOT EXISTS (
        SELECT 1 FROM jsonb_array_elements(routes) AS r
        WHERE jsonb_typeof(r) IS DISTINCT FROM 'object'
           OR (SELECT count(*) FROM jsonb_object_keys(CASE jsonb_typeof(r) WHEN 'object' THEN r ELSE '{}' END)) <> 2
           OR coalesce(r ->> 'to', '') !~ ('^' || ipv4 || '/(3[0-2]|[12]?[0-9])$')
           OR coalesce(r ->> 'via', '') !~ ('^' || ipv4 || '$'));
END;
$$;

-- network_ranges.options: {"43": "0104c0a80001", ..}: option code to bytes in hex. Codes that
-- belong to the protocol itself can't be set.
CREATE FUNCTION dls_options_ok(options JSONB) RETURNS BOOLEAN LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN jsonb_typeof(options) = 'object' AND NOT EXISTS (
        SELECT 1 FROM jsonb_each(CASE jsonb_typeof(options) WHEN 'object' THEN options ELSE '{}' END) AS o
        WHERE o.key !~ '^([1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-4])$'
           OR o.key IN ('50', '51', '52', '53', '54', '58', '59', '61', '82')
           OR jsonb_typeof(o.value) <> 'string'
           OR (o.value #>> '{}') !~ '^([0-9A-Fa-f]{2})*$');
END;
$$;

-- A MAC address in its one normal spelling, whatever usual spelling it came in.
CREATE FUNCTION dls_normal_mac(spelling TEXT) RETURNS TEXT LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    digits TEXT := lower(regexp_replace(spelling, '[:.-]', '', 'g'));
BEGIN
    IF spelling !~ '^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$'
       AND spelling !~ '^([0-9A-Fa-f]{2}-){5}[0-9A-Fa-f]{2}$'
       AND spelling !~ '^([0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4}$'
       AND spelling !~ '^[0-9A-Fa-f]{12}$' THEN
        RAISE EXCEPTION '"%" is not a MAC address (expected six bytes in hex, as in 52:54:00:12:34:56)', spelling
            USING ERRCODE = 'check_violation', CONSTRAINT = 'mac_address_spelling';
    END IF;
    IF digits = '000000000000' OR digits ~ '^.[13579bdf]' THEN
        RAISE EXCEPTION '"%" can not be the MAC address of one machine (it is zero or a group address)', spelling
            USING ERRCODE = 'check_violation', CONSTRAINT = 'mac_address_station';
    END IF;
    RETURN regexp_replace(digits, '(..)(?=.)', '\1:', 'g');
END;
$$;

-- ---- images -------------------------------------------------------------------------------

ALTER TABLE images
    ADD COLUMN kind VARCHAR(10) NOT NULL DEFAULT 'disk',
    ADD COLUMN cmdline TEXT NOT NULL DEFAULT '',
    ADD COLUMN phone_home VARCHAR(10) NOT NULL DEFAULT 'auto',
    ADD CONSTRAINT images_kind_check CHECK (kind IN ('disk', 'kernel')),
    ADD CONSTRAINT images_kernel_format_check CHECK (kind <> 'kernel' OR format = 'raw'),
    ADD CONSTRAINT images_phone_home_check CHECK (phone_home IN ('auto', 'expected', 'absent')),
    ADD CONSTRAINT images_cmdline_check CHECK (dls_script_safe(cmdline) AND length(cmdline) <= 4096),
    ADD CONSTRAINT images_name_check CHECK (name <> '');

CREATE TABLE image_files (
    image_id UUID NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    role VARCHAR(10) NOT NULL,
    position INTEGER NOT NULL DEFAULT 0,
    path TEXT NOT NULL,
    sha256 CHAR(64) NOT NULL,
    size_bytes BIGINT NOT NULL,
    PRIMARY KEY (image_id, role, position),
    CONSTRAINT image_files_role_check CHECK (role IN ('kernel', 'initrd')),
    CONSTRAINT image_files_position_check CHECK (position BETWEEN 0 AND 255 AND (role <> 'kernel' OR position = 0)),
    CONSTRAINT image_files_path_check CHECK (path <> '' AND path !~ '(^/|(^|/)\.\.(/|$)|[\x01-\x1f\x7f])'),
    CONSTRAINT image_files_sha256_check CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    CONSTRAINT image_files_size_check CHECK (size_bytes > 0)
);

-- An image is never its own ancestor. The lock makes two edits that would close a circle
-- together wait for each other.
CREATE FUNCTION dls_images_refuse_cycle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.parent_image_id IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('dls.images.parent'));
    IF EXISTS (
        WITH RECURSIVE up(id) AS (
            SELECT NEW.parent_image_id
            UNION
            SELECT i.parent_image_id FROM images i JOIN up ON i.id = up.id WHERE i.parent_image_id IS NOT NULL
        )
        SELECT 1 FROM up WHERE id = NEW.id
    ) THEN
        RAISE EXCEPTION 'image "%" would be its own ancestor', NEW.name
            USING ERRCODE = 'check_violation', CONSTRAINT = 'images_parent_cycle', TABLE = 'images', COLUMN = 'parent_image_id';
    END IF;
    RETURN NULL;
END;
$$;
CREATE TRIGGER images_refuse_cycle AFTER INSERT OR UPDATE OF parent_image_id ON images
    FOR EACH ROW EXECUTE FUNCTION dls_images_refuse_cycle();

-- ---- clients ------------------------------------------------------------------------------

ALTER TABLE clients
    ADD COLUMN auto_registered BOOLEAN NOT NULL DEFAULT FALSE,
    ADD CONSTRAINT clients_hostname_check CHECK (dls_name_ok(hostname)),
    ADD CONSTRAINT clients_ip_address_check CHECK (family(ip_address) = 4 AND masklen(ip_address) = 32
        AND NOT ip_address <<= '224.0.0.0/3' AND NOT ip_address <<= '0.0.0.0/8' AND NOT ip_address <<= '127.0.0.0/8'),
    ADD CONSTRAINT clients_network_config_check CHECK (dls_network_config_ok(network_config)),
    ADD CONSTRAINT clients_custom_boot_params_check CHECK (dls_script_safe(custom_boot_params) AND length(custom_boot_params) <= 2048),
    ADD CONSTRAINT clients_boot_count_check CHECK (boot_count >= 0);

CREATE UNIQUE INDEX clients_ip_address_key ON clients(ip_address);

CREATE TABLE client_macs (
    mac VARCHAR(17) PRIMARY KEY,
    client_id UUID NOT NULL REFERENCES clients(id) ON DELETE CASCADE
);
CREATE INDEX idx_client_macs_client_id ON client_macs(client_id);

-- Any spelling in, one spelling stored. A change of anything but the boot counters is a touch
-- by an admin, after which a machine that registered itself counts as known.
CREATE FUNCTION dls_clients_normalise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.mac_address := dls_normal_mac(NEW.mac_address);
    IF family(NEW.ip_address) = 4 THEN
        NEW.ip_address := host(NEW.ip_address)::inet;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.auto_registered AND NEW.auto_registered
       AND (NEW.mac_address, NEW.hostname, NEW.ip_address, NEW.assigned_image_id, NEW.boot_mode, NEW.cpu_cores,
            NEW.memory_mb, NEW.network_config, NEW.custom_boot_params, NEW.enabled)
           IS DISTINCT FROM
           (OLD.mac_address, OLD.hostname, OLD.ip_address, OLD.assigned_image_id, OLD.boot_mode, OLD.cpu_cores,
            OLD.memory_mb, OLD.network_config, OLD.custom_boot_params, OLD.enabled) THEN
        NEW.auto_registered := FALSE;
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER clients_normalise BEFORE INSERT OR UPDATE OF mac_address, hostname, ip_address, assigned_image_id, boot_mode,
        cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered ON clients
    FOR EACH ROW EXECUTE FUNCTION dls_clients_normalise();

-- Boot counters are not an admin's change.
DROP TRIGGER update_clients_updated_at ON clients;
CREATE TRIGGER update_clients_updated_at BEFORE UPDATE OF id, mac_address, hostname, ip_address, assigned_image_id, boot_mode,
        cpu_cores, memory_mb, network_config, custom_boot_params, enabled, auto_registered, created_at ON clients
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

-- client_macs holds every MAC of every client, the one in clients.mac_address included: its
-- primary key is what makes a MAC mean one client.
CREATE FUNCTION dls_clients_own_mac() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        DELETE FROM client_macs WHERE mac = OLD.mac_address AND client_id = OLD.id AND mac <> NEW.mac_address;
    END IF;
    IF NOT EXISTS (SELECT 1 FROM client_macs WHERE mac = NEW.mac_address AND client_id = NEW.id) THEN
        INSERT INTO client_macs (mac, client_id) VALUES (NEW.mac_address, NEW.id);
    END IF;
    RETURN NULL;
END;
$$;
CREATE TRIGGER clients_own_mac AFTER INSERT OR UPDATE OF mac_address ON clients
    FOR EACH ROW EXECUTE FUNCTION dls_clients_own_mac();

CREATE FUNCTION dls_client_macs_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        NEW.mac := dls_normal_mac(NEW.mac);
    END IF;
    IF TG_OP <> 'INSERT' AND (TG_OP = 'DELETE' OR (NEW.mac, NEW.client_id) IS DISTINCT FROM (OLD.mac, OLD.client_id))
       AND EXISTS (SELECT 1 FROM clients WHERE id = OLD.client_id AND mac_address = OLD.mac) THEN
        RAISE EXCEPTION '% is the first MAC of its client: change clients.mac_address instead', OLD.mac
            USING ERRCODE = 'check_violation', CONSTRAINT = 'client_macs_first';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END;
$$;
CREATE TRIGGER client_macs_guard BEFORE INSERT OR UPDATE OR DELETE ON client_macs
    FOR EACH ROW EXECUTE FUNCTION dls_client_macs_guard();

-- Clients that were there already: normalise their rows, which also fills client_macs.
UPDATE clients SET mac_address = mac_address, ip_address = ip_address;

-- ---- network ranges -----------------------------------------------------------------------

ALTER TABLE network_ranges
    ADD CONSTRAINT network_ranges_network_check CHECK (family(network) = 4 AND masklen(network) BETWEEN 8 AND 32
        AND NOT network <<= '224.0.0.0/3' AND NOT network <<= '0.0.0.0/8' AND NOT network <<= '127.0.0.0/8'),
    ADD CONSTRAINT network_ranges_mode_check CHECK (mode IN ('full', 'proxy', 'off')),
    ADD CONSTRAINT network_ranges_serve_check CHECK (serve IN ('all', 'known')),
    ADD CONSTRAINT network_ranges_unready_check CHECK (unready IN ('wait', 'local')),
    ADD CONSTRAINT network_ranges_gateway_check CHECK (family(gateway) = 4 AND masklen(gateway) = 32 AND gateway <<= network),
    ADD CONSTRAINT network_ranges_dns_check CHECK (dls_all_ipv4(dns)),
    ADD CONSTRAINT network_ranges_ntp_check CHECK (dls_all_ipv4(ntp)),
    ADD CONSTRAINT network_ranges_domain_check CHECK (dls_name_ok(domain)),
    ADD CONSTRAINT network_ranges_search_check CHECK (dls_all_names_ok(search)),
    ADD CONSTRAINT network_ranges_mtu_check CHECK (mtu BETWEEN 68 AND 65535),
    ADD CONSTRAINT network_ranges_routes_check CHECK (dls_routes_ok(routes)),
    ADD CONSTRAINT network_ranges_lease_seconds_check CHECK (lease_seconds BETWEEN 1 AND 4294967295),
    ADD CONSTRAINT network_ranges_options_check CHECK (dls_options_ok(options)),
    ADD CONSTRAINT network_ranges_id_network_key UNIQUE (id, network),
    ADD CONSTRAINT network_ranges_overlap EXCLUDE USING gist (network inet_ops WITH &&);

CREATE FUNCTION dls_network_ranges_normalise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(NEW.name, '') = '' THEN
        NEW.name := NEW.network::text;
    END IF;
    IF family(NEW.gateway) = 4 THEN
        NEW.gateway := host(NEW.gateway)::inet;
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER network_ranges_normalise BEFORE INSERT OR UPDATE OF name, gateway ON network_ranges
    FOR EACH ROW EXECUTE FUNCTION dls_network_ranges_normalise();
UPDATE network_ranges SET name = name, gateway = gateway;

-- Pools and exclusions carry their range's network (kept equal by the foreign key), so that
-- "inside the network" is a plain CHECK which no two transactions can get around.
CREATE TABLE range_pools (
    range_id UUID NOT NULL,
    network CIDR NOT NULL,
    first INET NOT NULL,
    last INET NOT NULL,
    PRIMARY KEY (range_id, first),
    CONSTRAINT range_pools_range_fkey FOREIGN KEY (range_id, network) REFERENCES network_ranges(id, network)
        ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT range_pools_order_check CHECK (first <= last),
    CONSTRAINT range_pools_inside_check CHECK (masklen(first) = 32 AND masklen(last) = 32 AND first <<= network AND last <<= network),
    CONSTRAINT range_pools_overlap EXCLUDE USING gist (int8range(first - inet '0.0.0.0', last - inet '0.0.0.0', '[]') WITH &&)
        DEFERRABLE INITIALLY IMMEDIATE
);

CREATE TABLE range_exclusions (
    range_id UUID NOT NULL,
    network CIDR NOT NULL,
    first INET NOT NULL,
    last INET NOT NULL,
    PRIMARY KEY (range_id, first),
    CONSTRAINT range_exclusions_range_fkey FOREIGN KEY (range_id, network) REFERENCES network_ranges(id, network)
        ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT range_exclusions_order_check CHECK (first <= last),
    CONSTRAINT range_exclusions_inside_check CHECK (masklen(first) = 32 AND masklen(last) = 32 AND first <<= network AND last <<= network),
    CONSTRAINT range_exclusions_overlap EXCLUDE USING gist (int8range(first - inet '0.0.0.0', last - inet '0.0.0.0', '[]') WITH &&)
        DEFERRABLE INITIALLY IMMEDIATE
);

CREATE FUNCTION dls_fill_network() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT r.network INTO NEW.network FROM network_ranges r WHERE r.id = NEW.range_id;
    IF NEW.network IS NULL THEN
        RAISE EXCEPTION 'there is no network range %', NEW.range_id
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = TG_TABLE_NAME || '_range_fkey';
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER range_pools_fill BEFORE INSERT ON range_pools
    FOR EACH ROW WHEN (NEW.network IS NULL) EXECUTE FUNCTION dls_fill_network();
CREATE TRIGGER range_exclusions_fill BEFORE INSERT ON range_exclusions
    FOR EACH ROW WHEN (NEW.network IS NULL) EXECUTE FUNCTION dls_fill_network();

-- ---- the site -----------------------------------------------------------------------------

CREATE TABLE site (
    one BOOLEAN PRIMARY KEY DEFAULT TRUE CONSTRAINT site_one_row CHECK (one),
    site_key BYTEA NOT NULL CONSTRAINT site_key_length CHECK (length(site_key) = 32),
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);
REVOKE ALL ON site FROM PUBLIC;
-- 366 random bits, hashed to 256.
INSERT INTO site (site_key)
    SELECT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
