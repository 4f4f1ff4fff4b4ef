-- Whether this database is the one that a server wrote its intentions beside, and not an older
-- state of it: only then does the absence of a row mean that what is stored belongs to nobody.

ALTER TABLE site ADD COLUMN catalog_id UUID NOT NULL DEFAULT gen_random_uuid();
COMMENT ON COLUMN site.catalog_id IS 'Which catalog this is; servers write it down with what they begin in their stores';

CREATE TABLE store_marks (
    server_id UUID PRIMARY KEY,
    mark BIGINT NOT NULL CONSTRAINT store_marks_mark CHECK (mark > 0),
    set_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE store_marks IS 'How often each server has begun something in its store: it writes the number down there too, and so tells a database that was put back to an older state';
COMMENT ON COLUMN store_marks.server_id IS 'The server';
COMMENT ON COLUMN store_marks.mark IS 'Grows by one with each';
COMMENT ON COLUMN store_marks.set_at IS 'When it grew last';
