DROP TABLE store_marks;
ALTER TABLE site DROP COLUMN catalog_id;
