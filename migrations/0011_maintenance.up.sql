-- A client whose machine mends its image: what it writes is kept, and becomes a version or is dropped.

CREATE TABLE maintenance (
    client_id UUID PRIMARY KEY,
    image_id UUID NOT NULL,
    author VARCHAR(128),
    begun_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT maintenance_client_fkey FOREIGN KEY (client_id) REFERENCES clients(id) ON DELETE CASCADE,
    CONSTRAINT maintenance_image_fkey FOREIGN KEY (image_id) REFERENCES images(id) ON DELETE CASCADE
);
CREATE INDEX idx_maintenance_image_id ON maintenance(image_id);

COMMENT ON TABLE maintenance IS 'Clients whose machines boot their image to mend it: what they write is kept until it is published as a version or discarded';
COMMENT ON COLUMN maintenance.client_id IS 'The client';
COMMENT ON COLUMN maintenance.image_id IS 'The image that it mends';
COMMENT ON COLUMN maintenance.author IS 'Who mends it, as they said';
COMMENT ON COLUMN maintenance.begun_at IS 'Since when';

CREATE TRIGGER maintenance_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON maintenance
    FOR EACH STATEMENT EXECUTE FUNCTION dls_notify_configuration();
