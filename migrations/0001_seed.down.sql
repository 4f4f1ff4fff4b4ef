-- The extension stays: it may have been there before us.
DROP TABLE network_ranges;
DROP TABLE image_snapshots;
DROP TABLE boot_sessions;
DROP TABLE clients;
DROP TABLE images;
DROP FUNCTION update_updated_at_column();
