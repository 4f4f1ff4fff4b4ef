//! Images: what machines boot.

use uuid::Uuid;

use super::{Timestamp, words};

words! {
    /// Disk formats the seed's constraint allows. Kernel images are `raw`.
    pub enum ImageFormat {
        /// Bytes as they are.
        Raw = "raw",
        /// QEMU's copy-on-write format.
        Qcow2 = "qcow2",
        /// Hyper-V's format.
        Vhdx = "vhdx",
    }
}
words! {
    /// What an image is made of: a disk (served as blocks), or kernel + initrd.
    pub enum ImageKind {
        /// A disk, served as blocks.
        Disk = "disk",
        /// A kernel with its initrds and command line.
        Kernel = "kernel",
    }
}
words! {
    /// How a machine gets at a disk image.
    pub enum BootMethod {
        /// The loader boots the disk itself over iSCSI (`sanboot`); the system finds it in
        /// the iBFT.
        San = "san",
        /// Kernel and initrd of the image are loaded, their root is the disk over iSCSI.
        Iscsi = "iscsi",
        /// Kernel and initrd of the image are loaded, their root is the disk over NBD.
        Nbd = "nbd",
    }
}
words! {
    /// What a file of a kernel image is for.
    pub enum FileRole {
        /// The kernel.
        Kernel = "kernel",
        /// An initrd; several are loaded in order.
        Initrd = "initrd",
    }
}
words! {
    /// Whether the system inside reports itself (`up`, beats, `bye`).
    pub enum PhoneHome {
        /// Not known: it is `expected` once a boot of the image has reported.
        Auto = "auto",
        /// It reports; silence is a fault.
        Expected = "expected",
        /// It never reports; what it does is inferred.
        Absent = "absent",
    }
}

/// A row of `images`. Its files are in [`ImageFile`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// Primary key.
    pub id: Uuid,
    /// Unique name, by which people and the API call it.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Free text such as `debian-12`.
    pub os_type: Option<String>,
    /// Bytes; for a kernel image the sum of its files.
    pub size_bytes: i64,
    /// Disk format.
    pub format: ImageFormat,
    /// Disk or kernel.
    pub kind: ImageKind,
    /// How a disk is booted; without meaning for a kernel image.
    pub boot_method: BootMethod,
    /// SHA-256 of the disk's content, 64 hex digits in lower case; zeroes count like any byte.
    /// `None` for kernel images (their files have their own) and disks nobody has hashed.
    pub sha256: Option<String>,
    /// The format of the file that a disk was imported from (`raw`, `qcow2`, `vhdx`, `vmdk`).
    pub source_format: Option<String>,
    /// Path below the storage root.
    pub path: String,
    /// ZFS dataset, where that backend holds it.
    pub zfs_dataset: Option<String>,
    /// The image's own kernel command line (where it has a kernel).
    pub cmdline: String,
    /// Whether the system inside reports itself.
    pub phone_home: PhoneHome,
    /// Free labels.
    pub tags: Option<serde_json::Value>,
    /// A template is a base for others.
    pub is_template: bool,
    /// The image this one was made from.
    pub parent_image_id: Option<Uuid>,
    /// Made at.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
    /// Files of a kernel image, or of a disk that is not booted by `san`: the kernel, then initrds in loading order.
    pub files: Vec<ImageFile>,
}

/// A row of `image_files`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageFile {
    /// Kernel or initrd.
    pub role: FileRole,
    /// Order among the files of one role, from 0.
    pub position: i32,
    /// Path below the storage root.
    pub path: String,
    /// SHA-256, 64 hex digits in lower case.
    pub sha256: String,
    /// Bytes.
    pub size_bytes: i64,
}

impl Image {
    /// How its disk is booted, if it is one.
    #[must_use]
    pub fn disk_method(&self) -> Option<BootMethod> {
        (self.kind == ImageKind::Disk).then_some(self.boot_method)
    }

    /// The file of a role at a position, if the image has it.
    #[must_use]
    pub fn file(&self, role: FileRole, position: i32) -> Option<&ImageFile> {
        self.files
            .iter()
            .find(|f| f.role == role && f.position == position)
    }
}
