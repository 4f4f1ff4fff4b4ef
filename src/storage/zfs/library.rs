//! libzfs_core's calls, each as one function that gives an `io::Error`, by the pool's gate: they
//! come back. The only file that names the library and what it takes; it knows no volumes.

use std::ffi::CString;
use std::io;
use std::ptr;
use std::sync::Arc;

use nvpair::NvList;
use zfs_core::{DataSetType, Error, Zfs};

use super::damaged;
use super::gate::{Gate, Kind};
use crate::storage::VolumeError;

/// The library, open.
#[derive(Debug)]
pub(super) struct Library(Arc<Zfs>);

/// What a new dataset is given.
#[derive(Debug, Default, Clone)]
pub(super) struct Properties {
    /// ZFS's own numbers.
    pub(super) numbers: Vec<(&'static str, u64)>,
    /// Texts of ours.
    pub(super) texts: Vec<(&'static str, String)>,
}

impl Properties {
    fn list(&self) -> io::Result<NvList> {
        let mut list = NvList::try_new_unique_names()?;
        for (name, value) in &self.numbers {
            add_number(&mut list, name, *value)?;
        }
        for (name, value) in &self.texts {
            list.insert(*name, value.as_str())?;
        }
        Ok(list)
    }
}

fn add_number(list: &mut NvList, name: &str, value: u64) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the list and the name live through the call, which copies both.
    #[expect(unsafe_code, reason = "nvpair has no call for numbers of 64 bits")]
    let failed = unsafe { nvpair_sys::nvlist_add_uint64(list.as_mut_ptr(), name.as_ptr(), value) };
    match failed {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Of several errors the first.
fn first(error: Error) -> io::Error {
    match error {
        Error::Io { source } => source,
        Error::List { source } => {
            let first = source.iter().next().map(|(_, e)| e);
            first.unwrap_or_else(|| io::Error::other("no reason was given"))
        }
    }
}

impl Library {
    pub(super) fn open() -> Result<Self, VolumeError> {
        Zfs::new().map(|zfs| Self(Arc::new(zfs))).map_err(|e| {
            damaged(
                "ZFS",
                format!("/dev/zfs can't be opened ({e}): is the module `zfs` loaded?"),
            )
        })
    }

    /// Makes a call about a dataset.
    fn call<T: Send + 'static>(
        &self,
        kind: Kind,
        what: &'static str,
        dataset: &str,
        work: impl FnOnce(&Zfs, &str) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (zfs, name) = (self.0.clone(), dataset.to_owned());
        Gate::of(dataset).call(kind, what, move || work(&zfs, &name))
    }

    /// Whether it is there; an error only if the pool does not answer.
    pub(super) fn exists(&self, name: &str) -> io::Result<bool> {
        self.call(Kind::Look, "a look", name, |zfs, name| zfs.exists(name))
    }

    pub(super) fn create(&self, name: &str, properties: &Properties) -> io::Result<()> {
        let properties = properties.clone();
        self.call(Kind::Change, "create", name, move |zfs, name| {
            zfs.create(name, DataSetType::Zvol, &properties.list()?)
        })?
    }

    pub(super) fn clone(
        &self,
        origin: &str,
        name: &str,
        properties: &Properties,
    ) -> io::Result<()> {
        let (properties, origin) = (properties.clone(), origin.to_owned());
        self.call(Kind::Change, "clone", name, move |zfs, name| {
            let mut properties = properties.list()?;
            zfs.clone_dataset(name, &origin, &mut properties)
        })?
    }

    pub(super) fn snapshot(&self, name: &str) -> io::Result<()> {
        self.call(Kind::Change, "snapshot", name, |_, name| {
            let mut list = NvList::try_new_unique_names()?;
            list.insert(name, &())?;
            // SAFETY: both lists are whole and live through the call.
            #[expect(unsafe_code, reason = "zfs-core's wrapper loses why, see `told`")]
            told(|refused| unsafe {
                zfs_core_sys::lzc_snapshot(list.as_mut_ptr(), ptr::null_mut(), refused)
            })
        })?
    }

    pub(super) fn hold(&self, snapshot: &str, tag: &str) -> io::Result<()> {
        let tag = tag.to_owned();
        self.call(Kind::Change, "hold", snapshot, move |_, snapshot| {
            let mut list = NvList::try_new_unique_names()?;
            list.insert(snapshot, tag.as_str())?;
            // SAFETY: the list lives through the call; -1 is no file.
            #[expect(unsafe_code, reason = "zfs-core's wrapper loses why, see `told`")]
            told(|refused| unsafe { zfs_core_sys::lzc_hold(list.as_mut_ptr(), -1, refused) })
        })?
    }

    pub(super) fn release(&self, snapshot: &str, tag: &str) -> io::Result<()> {
        let tag = tag.to_owned();
        self.call(Kind::Change, "release", snapshot, move |zfs, snapshot| {
            zfs.release(&[(snapshot, vec![tag.as_str()])])
                .map_err(first)
        })?
    }

    pub(super) fn promote(&self, name: &str) -> io::Result<()> {
        self.call(Kind::Change, "promote", name, |zfs, name| {
            let mut clash = vec![0; 257];
            zfs.promote(name, &mut clash)
        })?
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let to = to.to_owned();
        self.call(Kind::Change, "rename", from, move |zfs, from| {
            zfs.rename(from, &to)
        })?
    }

    pub(super) fn rollback(&self, dataset: &str, snapshot: &str) -> io::Result<()> {
        let snapshot = snapshot.to_owned();
        self.call(Kind::Change, "rollback", dataset, move |zfs, dataset| {
            zfs.rollback_to(dataset, &snapshot)
        })?
    }

    pub(super) fn destroy(&self, name: &str) -> io::Result<()> {
        self.call(Kind::Change, "destroy", name, |zfs, name| zfs.destroy(name))?
    }

    /// Removes all of these snapshots, or none.
    pub(super) fn destroy_snapshots(&self, names: &[String]) -> io::Result<()> {
        self.destroy_each(names, false)
    }

    /// The same, but what a clone stands upon goes by itself when that clone does.
    pub(super) fn let_snapshots_go(&self, names: &[String]) -> io::Result<()> {
        self.destroy_each(names, true)
    }

    fn destroy_each(&self, names: &[String], later: bool) -> io::Result<()> {
        let Some(first) = names.first() else {
            return Ok(());
        };
        let names = names.to_vec();
        self.call(Kind::Change, "destroy", first, move |_, _| {
            destroy_snapshots(&names, later)
        })?
    }
}

fn destroy_snapshots(names: &[String], later: bool) -> io::Result<()> {
    let mut list = NvList::try_new_unique_names()?;
    for name in names {
        list.insert(name.as_str(), &())?;
    }
    // SAFETY: the list lives through the call.
    #[expect(unsafe_code, reason = "zfs-core's wrapper loses why, see `told`")]
    told(|refused| unsafe {
        zfs_core_sys::lzc_destroy_snaps(list.as_mut_ptr(), later.into(), refused)
    })
}

/// Makes a call that lists what it refused. Its number says why, too: for what concerns no entry
/// of the list, such as a full pool, there is no list or an empty one, where zfs-core's wrappers
/// have nothing to tell.
fn told(
    call: impl FnOnce(*mut *mut nvpair_sys::nvlist_t) -> std::os::raw::c_int,
) -> io::Result<()> {
    let mut refused: *mut nvpair_sys::nvlist_t = ptr::null_mut();
    let code = call(&raw mut refused);
    // SAFETY: null, or a list that is ours to free; it is not used afterwards.
    #[expect(
        unsafe_code,
        reason = "nvpair frees only lists that it has made or taken"
    )]
    unsafe {
        nvpair_sys::nvlist_free(refused);
    }
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}
