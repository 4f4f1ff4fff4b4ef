DROP TABLE image_checks;
