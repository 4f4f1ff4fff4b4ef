DROP FUNCTION dls_notify_leases() CASCADE;
DROP FUNCTION dls_notify_configuration() CASCADE;
