//! What a disk file is, told by how it begins. Never by its name, and never believed alone:
//! whether the rest keeps what the beginning promises is for the import to find out.

use super::volume::DiskFormat;

/// Bytes from a file's start that [`DiskFormat::guess`] wants to see.
pub const MAGIC_BYTES: usize = 512;

impl DiskFormat {
    /// The format that a file beginning with these bytes has. Everything that is not known
    /// to be another one is raw: a disk may begin with anything.
    #[must_use]
    pub fn guess(head: &[u8]) -> Self {
        // QEMU's qcow2 specification, "Header": magic `QFI\xfb`, then the version, 2 or 3.
        if head.starts_with(b"QFI\xfb") {
            return Self::Qcow2;
        }
        // MS-VHDX section 2.2.1, the file type identifier.
        if head.starts_with(b"vhdxfile") {
            return Self::Vhdx;
        }
        // Virtual Disk Format 5.0: a hosted sparse extent, an ESX one, or a descriptor alone.
        let descriptor = b"# Disk DescriptorFile";
        if head.starts_with(b"KDMV") || head.starts_with(b"COWD") || head.starts_with(descriptor) {
            return Self::Vmdk;
        }
        Self::Raw
    }

    /// Reads what [`DiskFormat::as_str`] writes.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|f| f.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_its_format_by_its_beginning() {
        for (head, want) in [
            (&b"QFI\xfb\0\0\0\x03"[..], DiskFormat::Qcow2),
            (b"vhdxfile", DiskFormat::Vhdx),
            (b"KDMV\x01\0\0\0", DiskFormat::Vmdk),
            (b"# Disk DescriptorFile\nversion=1", DiskFormat::Vmdk),
            (b"\xeb\x63\x90", DiskFormat::Raw),
            (b"QFI", DiskFormat::Raw),
            (b"", DiskFormat::Raw),
        ] {
            assert_eq!(DiskFormat::guess(head), want, "{head:?}");
        }
        for format in DiskFormat::ALL {
            assert_eq!(DiskFormat::from_word(format.as_str()), Some(*format));
        }
        assert_eq!(DiskFormat::from_word("vdi"), None);
    }
}
