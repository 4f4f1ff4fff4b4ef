//! The named steps of everything that is done in several: between any two of them the server may
//! be killed, and its next start finishes or undoes what was begun. It decides nothing.
//!
//! [`reach`] ends the process by SIGKILL at the one step that was armed (`dls serve --die-at STEP`),
//! so that tests go through all of them. Debug builds have it, because the tests run the same
//! program as everybody else does in them; a release has it only with the feature `steps`, for
//! guests that need a fast one. Otherwise a step is compiled to nothing and the option is unknown.

use crate::model::words;

words! {
    /// What was just done.
    pub enum Step {
        /// An import: the intention is written down.
        ImportBegun = "import-begun",
        /// Its disk is in the store.
        ImportConverted = "import-converted",
        /// Its disk has its first version.
        ImportSnapshotted = "import-snapshotted",
        /// Its row is in the catalog.
        ImportStored = "import-stored",
        /// Its intention is over; what was received is still there.
        ImportSettled = "import-settled",
        /// A kernel image: the intention is written down.
        KernelBegun = "kernel-begun",
        /// Its files are in their place.
        KernelPlaced = "kernel-placed",
        /// Its row is in the catalog.
        KernelStored = "kernel-stored",
        /// Kernel and initrds for a disk: the intention is written down.
        FilesBegun = "files-begun",
        /// They are in their place.
        FilesPlaced = "files-placed",
        /// The row names them.
        FilesStored = "files-stored",
        /// The same taken away: the intention is written down.
        DropBegun = "drop-begun",
        /// The row names them no more.
        DropStored = "drop-stored",
        /// A child image: the intention is written down.
        CopyBegun = "copy-begun",
        /// Its disk is a clone.
        CopyCloned = "copy-cloned",
        /// Its disk has its first version.
        CopySnapshotted = "copy-snapshotted",
        /// Its files are linked.
        CopyLinked = "copy-linked",
        /// Its row is in the catalog.
        CopyStored = "copy-stored",
        /// A deletion: the intentions for the image and its versions are written down.
        DeleteBegun = "delete-begun",
        /// The rows are gone.
        DeleteRowGone = "delete-row-gone",
        /// What is stored of an image or a version goes: its disk is gone, with what stood upon it.
        EraseDiskGone = "erase-disk-gone",
        /// So is the snapshot of the client's disk that a version was made from.
        EraseSnapshotGone = "erase-snapshot-gone",
        /// So are the files.
        EraseFilesGone = "erase-files-gone",
        /// A version from a client's disk: the intention is written down.
        PublishBegun = "publish-begun",
        /// The client's disk has the snapshot.
        PublishFrozen = "publish-frozen",
        /// The version's disk is a clone of it.
        PublishCloned = "publish-cloned",
        /// The version's disk is whole.
        PublishWhole = "publish-whole",
        /// Its row is in the catalog, with all that goes with it.
        PublishStored = "publish-stored",
        /// A version's removal: the intention is written down.
        RetireBegun = "retire-begun",
        /// Its row is gone.
        RetireRowGone = "retire-row-gone",
        /// A client's disk is thrown away: versions that stood upon it are freed.
        ResetFreed = "reset-freed",
        /// The intention is written down.
        ResetBegun = "reset-begun",
        /// The disk is gone.
        ResetGone = "reset-gone",
        /// The end of a maintenance that is discarded: the disk is gone, the row is not.
        DiscardReset = "discard-reset",
        /// A client's disk that nobody knows becomes an image: the intention is written down.
        AdoptBegun = "adopt-begun",
        /// The image's disk is there.
        AdoptWhole = "adopt-whole",
        /// The row is in the catalog.
        AdoptStored = "adopt-stored",
    }
}

/// Says that a step is done; the process ends here if that is the one that was armed.
#[cfg(any(debug_assertions, feature = "steps"))]
pub fn reach(step: Step) {
    armed::look(step);
}

/// Compiled to nothing.
#[cfg(not(any(debug_assertions, feature = "steps")))]
#[inline(always)]
pub const fn reach(_: Step) {}

#[cfg(any(debug_assertions, feature = "steps"))]
mod armed {
    use std::sync::OnceLock;

    use nix::sys::signal::{Signal, raise};

    use super::Step;

    static DEADLY: OnceLock<Step> = OnceLock::new();

    pub(super) fn look(step: Step) {
        if DEADLY.get() != Some(&step) {
            return;
        }
        tracing::warn!(%step, "killed at a step, as was asked for");
        // It can't be refused or caught; until it arrives nothing more is done here.
        let _ = raise(Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }

    /// Has the process end at that step; the first call counts.
    pub fn arm(step: Step) {
        let _ = DEADLY.set(step);
    }
}

#[cfg(any(debug_assertions, feature = "steps"))]
pub use armed::arm;
