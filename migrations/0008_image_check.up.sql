-- What the last look into an image's disk found: what would stop it from booting diskless.

CREATE TABLE image_checks (
    image_id UUID PRIMARY KEY,
    checked_at TIMESTAMPTZ NOT NULL,
    boot_method VARCHAR(10) NOT NULL,
    verdict VARCHAR(20) NOT NULL,
    bios BOOLEAN NOT NULL,
    uefi BOOLEAN NOT NULL,
    iscsi BOOLEAN,
    nbd BOOLEAN,
    os_type VARCHAR(100),
    findings JSONB NOT NULL DEFAULT '[]',
    CONSTRAINT image_checks_image_fkey FOREIGN KEY (image_id) REFERENCES images(id) ON DELETE CASCADE,
    CONSTRAINT image_checks_boot_method_check CHECK (boot_method IN ('san', 'iscsi', 'nbd')),
    CONSTRAINT image_checks_verdict_check CHECK (verdict IN ('bootable', 'unsure', 'not_bootable')),
    CONSTRAINT image_checks_findings_check CHECK (jsonb_typeof(findings) = 'array')
);

COMMENT ON TABLE image_checks IS 'What the last look into the disk of each image found (dls image check)';
COMMENT ON COLUMN image_checks.image_id IS 'The image';
COMMENT ON COLUMN image_checks.checked_at IS 'When it was looked at';
COMMENT ON COLUMN image_checks.boot_method IS 'How it was booted then: what is grave depends on it';
COMMENT ON COLUMN image_checks.verdict IS 'bootable; unsure: nothing stops it, but not all could be seen; not_bootable: a finding of severity stops';
COMMENT ON COLUMN image_checks.bios IS 'BIOS machines find a boot loader on it';
COMMENT ON COLUMN image_checks.uefi IS 'UEFI machines find a boot loader on it';
COMMENT ON COLUMN image_checks.iscsi IS 'Its initramfs can do iSCSI; NULL: not known';
COMMENT ON COLUMN image_checks.nbd IS 'Its initramfs can do NBD; NULL: not known';
COMMENT ON COLUMN image_checks.os_type IS 'The operating system that was found, such as debian-12 or windows';
COMMENT ON COLUMN image_checks.findings IS 'Array of {finding, severity (stops, warns, good), sentence, way_out}, the grave ones first';
