//! The boot part: which loader or script an answer names, or why none.

use super::{Boot, BootRefusal, Facts, Loader, Unknown};
use crate::dhcp::wire::{Request, Vendor};

/// What a boot request is told to boot, and the named reason where that is nothing. Other
/// requests get nothing, without a reason.
#[must_use]
pub fn boot_part(request: &Request, facts: &Facts<'_>) -> (Boot, Option<BootRefusal>) {
    if !request.is_boot() {
        return (Boot::Nothing, None);
    }
    if facts.client.is_none() {
        match facts.boot.unknown {
            Unknown::Register => {}
            Unknown::Ignore => return (Boot::Nothing, Some(BootRefusal::UnknownIgnored)),
            Unknown::CapReached => return (Boot::Nothing, Some(BootRefusal::UnknownCap)),
        }
    }
    let chainload = facts.range.is_some_and(|r| r.always_chainload);
    // The loop ends here: an iPXE that we have loaded ourselves gets its script, even where
    // every other iPXE is sent our loader first.
    if request.ipxe && (!chainload || facts.boot.loader_delivered) {
        return (Boot::Script, None);
    }
    match &facts.boot.loader {
        Loader::Found(name) if request.vendor == Vendor::Http && !request.ipxe => {
            (Boot::HttpLoader(name.clone()), None)
        }
        Loader::Found(name) => (Boot::TftpLoader(name.clone()), None),
        Loader::Missing { wanted, directory } => (
            Boot::Nothing,
            Some(BootRefusal::LoaderMissing {
                wanted,
                directory: directory.clone(),
            }),
        ),
    }
}
