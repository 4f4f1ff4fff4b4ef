//! The plan of a boot: client, image and range -> what the machine does next. Pure.

use uuid::Uuid;

use crate::model::{Client, Image, NetworkRange};

/// What a machine does once its loader asks for a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Load kernel and initrds of this image.
    Kernel {
        /// The image.
        image_id: Uuid,
        /// Number of initrds.
        initrds: u8,
        /// Complete kernel command line but for the phone-home URL: image, network, client.
        cmdline: String,
    },
    /// Not now.
    Unready {
        /// Why not.
        why: Unready,
        /// What it does meanwhile (from the range).
        action: crate::model::UnreadyAction,
    },
}

/// Why a machine can't boot now. Metric label, event detail, and a line on its screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unready {
    /// No client has this MAC.
    Unknown,
    /// Its client is disabled.
    Disabled,
    /// It has no image, and there is no default image.
    NoImage,
    /// Its image is a disk, which this server does not serve.
    DiskImage,
    /// Its image has no kernel file.
    NoKernel,
    /// Its parameters would not be safe in a script.
    UnsafeParameters,
}

impl Unready {
    /// Metric label and event word, `no_image` and the like.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_client",
            Self::Disabled => "client_disabled",
            Self::NoImage => "no_image",
            Self::DiskImage => "disk_image",
            Self::NoKernel => "no_kernel",
            Self::UnsafeParameters => "unsafe_parameters",
        }
    }
}

/// Makes the plan. `image` is the client's assigned image or else the default one.
#[must_use]
pub fn plan(client: Option<&Client>, image: Option<&Image>, range: Option<&NetworkRange>) -> Plan {
    let _ = (client, image, range);
    unimplemented!()
}
