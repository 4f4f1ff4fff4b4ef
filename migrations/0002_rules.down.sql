DROP TABLE site;
DROP TABLE range_exclusions;
DROP TABLE range_pools;
DROP FUNCTION dls_fill_network();

DROP TRIGGER network_ranges_normalise ON network_ranges;
DROP FUNCTION dls_network_ranges_normalise();
ALTER TABLE network_ranges
    DROP CONSTRAINT network_ranges_network_check,
    DROP CONSTRAINT network_ranges_mode_check,
    DROP CONSTRAINT network_ranges_serve_check,
    DROP CONSTRAINT network_ranges_unready_check,
    DROP CONSTRAINT network_ranges_gateway_check,
    DROP CONSTRAINT network_ranges_dns_check,
    DROP CONSTRAINT network_ranges_ntp_check,
    DROP CONSTRAINT network_ranges_domain_check,
    DROP CONSTRAINT network_ranges_search_check,
    DROP CONSTRAINT network_ranges_mtu_check,
    DROP CONSTRAINT network_ranges_routes_check,
    DROP CONSTRAINT network_ranges_lease_seconds_check,
    DROP CONSTRAINT network_ranges_options_check,
    DROP CONSTRAINT network_ranges_id_network_key,
    DROP CONSTRAINT network_ranges_overlap;

DROP TRIGGER clients_own_mac ON clients;
DROP TRIGGER clients_normalise ON clients;
DROP TABLE client_macs;
DROP FUNCTION dls_client_macs_guard();
DROP FUNCTION dls_clients_own_mac();
DROP FUNCTION dls_clients_normalise();
DROP TRIGGER update_clients_updated_at ON clients;
CREATE TRIGGER update_clients_updated_at BEFORE UPDATE ON clients
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
DROP INDEX clients_ip_address_key;
ALTER TABLE clients
    DROP CONSTRAINT clients_hostname_check,
    DROP CONSTRAINT clients_ip_address_check,
    DROP CONSTRAINT clients_network_config_check,
    DROP CONSTRAINT clients_custom_boot_params_check,
    DROP CONSTRAINT clients_boot_count_check,
    DROP COLUMN auto_registered;

DROP TRIGGER images_refuse_cycle ON images;
DROP FUNCTION dls_images_refuse_cycle();
DROP TABLE image_files;
ALTER TABLE images
    DROP CONSTRAINT images_kind_check,
    DROP CONSTRAINT images_kernel_format_check,
    DROP CONSTRAINT images_phone_home_check,
    DROP CONSTRAINT images_cmdline_check,
    DROP CONSTRAINT images_name_check,
    DROP COLUMN kind,
    DROP COLUMN cmdline,
    DROP COLUMN phone_home;

DROP FUNCTION dls_normal_mac(TEXT);
DROP FUNCTION dls_options_ok(JSONB);
DROP FUNCTION dls_routes_ok(JSONB);
DROP FUNCTION dls_network_config_ok(JSONB);
DROP FUNCTION dls_all_names_ok(TEXT[]);
DROP FUNCTION dls_name_ok(TEXT);
DROP FUNCTION dls_script_safe(TEXT);
DROP FUNCTION dls_all_ipv4(INET[]);
