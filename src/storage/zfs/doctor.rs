//! What the server's user needs of ZFS, and which of it is missing on this machine: the module,
//! the dataset, rights by `zfs allow`, devices by udev. It only reads, and needs no rights itself.
//!
//! `RIGHTS` is the one list of what is delegated; `docs/storage.md` repeats it (a test compares).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Group, User, getgrouplist};

use super::listing::zfs;
use super::names::Parent;
use crate::storage::VolumeError;

/// Each right that the server's user must have to the parent dataset, and what fails without.
pub const RIGHTS: &[(&str, &str)] = &[
    (
        "bookmark",
        "a version that is removed here can't be what later ones are sent from",
    ),
    ("clone", "machines get no disks of their own"),
    ("compression", "new disks can't be told how to compress"),
    ("create", "no disk can be made"),
    ("destroy", "no disk is ever removed"),
    ("hold", "a version in use can't be kept from removal"),
    ("mount", "ZFS asks for it with most of the others"),
    (
        "promote",
        "versions can't be freed from the disks they came from",
    ),
    ("receive", "no version comes from another server"),
    ("refreservation", "no space can be set aside for a disk"),
    ("release", "what was held is never let go"),
    ("rename", "imports can't be finished"),
    ("rollback", "a disk can't go back to a snapshot"),
    ("send", "what differs between two versions can't be told"),
    ("snapshot", "no version can be made"),
    (
        "userprop",
        "disks can't be marked with their size and origin",
    ),
    ("volblocksize", "disks can't be made"),
    ("volmode", "the store can't be opened"),
    ("volsize", "disks can't be made"),
];

/// Where udev has its rules.
const RULES: [&str; 4] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Nothing has to be done.
    pub good: bool,
    /// What was found, in a sentence.
    pub what: String,
    /// What mends it: a command, or lines of a file.
    pub mend: Option<String>,
}

impl Finding {
    fn good(what: impl Into<String>) -> Self {
        Self {
            good: true,
            what: what.into(),
            mend: None,
        }
    }

    fn missing(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            good: false,
            what: what.into(),
            mend: Some(mend.into()),
        }
    }
}

/// Who asks for rights.
#[derive(Debug, Clone)]
struct Account {
    name: String,
    uid: u32,
    /// Number and name of each of its groups, its own first.
    groups: Vec<(u32, String)>,
}

impl Account {
    fn find(name: &str) -> Option<Self> {
        let user = User::from_name(name).ok().flatten()?;
        let word = std::ffi::CString::new(name).ok()?;
        let all = getgrouplist(&word, user.gid).unwrap_or_else(|_| vec![user.gid]);
        let groups = all.into_iter().filter_map(|gid| {
            let group = Group::from_gid(gid).ok().flatten()?;
            Some((gid.as_raw(), group.name))
        });
        Some(Self {
            name: name.to_owned(),
            uid: user.uid.as_raw(),
            groups: groups.collect(),
        })
    }

    /// True if it may read and write a file of that owner, group and mode.
    fn may_use(&self, file: &Metadata) -> bool {
        let shift = if file.uid() == self.uid {
            6
        } else if self.groups.iter().any(|(gid, _)| *gid == file.gid()) {
            3
        } else {
            0
        };
        (file.mode() >> shift) & 0o6 == 0o6
    }
}

/// Looks at all that the server's `user` needs for disks below `dataset`. What depends on
/// something that is missing is left out.
#[must_use]
pub fn examine(dataset: &str, user: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(account) = Account::find(user) else {
        return vec![Finding::missing(
            format!("there is no user `{user}`"),
            format!("adduser --system --group {user}"),
        )];
    };
    found.push(module());
    found.push(match fs::metadata("/dev/zfs") {
        Ok(file) if account.may_use(&file) => Finding::good(format!("{user} may use /dev/zfs")),
        Ok(_) => Finding::missing(
            format!(
                "{user} may not open /dev/zfs (ZFS looks at rights itself; its own 90-zfs.rules \
                 give it to all)"
            ),
            "chmod 666 /dev/zfs",
        ),
        Err(e) => Finding::missing(format!("/dev/zfs: {e}"), "modprobe zfs"),
    });
    if found.iter().any(|one| !one.good) {
        return found;
    }
    match parent(dataset) {
        Err(finding) => found.push(finding),
        Ok(of_parent) => {
            found.extend(of_parent);
            found.push(rights(dataset, &account));
            found.push(devices(dataset, &account));
        }
    }
    found
}

fn module() -> Finding {
    match fs::read_to_string("/sys/module/zfs/version") {
        Ok(version) => Finding::good(format!("the module zfs {} is loaded", version.trim())),
        Err(_) => Finding::missing(
            "the module zfs is not loaded (packages zfs-dkms and zfsutils-linux)",
            "modprobe zfs",
        ),
    }
}

/// The dataset itself.
fn parent(dataset: &str) -> Result<Vec<Finding>, Finding> {
    let broken = |e: VolumeError| {
        let mut finding = Finding::missing(
            e.to_string(),
            format!("zfs create -o mountpoint=none {dataset}"),
        );
        if !finding.what.contains("does not exist") {
            finding.mend = None;
        }
        finding
    };
    Parent::parse(dataset).map_err(broken)?;
    let values = zfs(&[
        "get",
        "-Hp",
        "-o",
        "value",
        "type,encryption,readonly",
        dataset,
    ])
    .map_err(broken)?;
    Ok(judge(dataset, &values.lines().collect::<Vec<_>>()))
}

/// From the dataset's type, encryption and `readonly`.
fn judge(dataset: &str, values: &[&str]) -> Vec<Finding> {
    let value = |at: usize| values.get(at).copied().unwrap_or("-");
    let mut found = Vec::new();
    found.push(match value(0) {
        "filesystem" => Finding::good(format!("the dataset {dataset} is there")),
        other => Finding::missing(
            format!("{dataset} is a {other}, and disks can't lie below it"),
            "name another one: storage.dataset in dls.toml",
        ),
    });
    if !matches!(value(1), "off" | "-") {
        found.push(Finding::missing(
            format!(
                "{dataset} is encrypted by ZFS ({}): snapshots of such datasets have been damaged \
                 by sending them, so images in it are not replicated",
                value(1)
            ),
            "use a dataset without encryption, on an encrypted disk (LUKS) if need be",
        ));
    }
    if value(2) == "on" {
        found.push(Finding::missing(
            format!("{dataset} is set to be read only"),
            format!("zfs inherit readonly {dataset}"),
        ));
    }
    found
}

fn rights(dataset: &str, account: &Account) -> Finding {
    let user = &account.name;
    let text = match zfs(&["allow", dataset]) {
        Ok(text) => text,
        Err(e) => {
            return Finding {
                good: false,
                what: format!("the rights to {dataset} can't be read: {e}"),
                mend: None,
            };
        }
    };
    let given = given(&text, dataset, account);
    let missing: Vec<_> = RIGHTS
        .iter()
        .filter(|(right, _)| !given.contains(*right))
        .collect();
    if missing.is_empty() {
        return Finding::good(format!(
            "{user} has all {} rights to {dataset}",
            RIGHTS.len()
        ));
    }
    let names: Vec<&str> = missing.iter().map(|(right, _)| *right).collect();
    let why: Vec<String> = missing
        .iter()
        .map(|(right, why)| format!("{right} ({why})"))
        .collect();
    Finding::missing(
        format!("{user} lacks rights to {dataset}: {}", why.join("; ")),
        format!("zfs allow -u {user} {} {dataset}", names.join(",")),
    )
}

/// The rights that hold for the dataset and all below it, from what `zfs allow DATASET` prints.
fn given(text: &str, dataset: &str, account: &Account) -> BTreeSet<String> {
    let mut sets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let (mut here, mut below) = (Vec::new(), Vec::new());
    let (mut own, mut part) = (false, "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("---- Permissions on ") {
            own = rest.split_whitespace().next() == Some(dataset);
            continue;
        }
        if !line.starts_with(['\t', ' ']) {
            part = line.trim_end_matches(':');
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let named = |kind: &str, name: &str| match kind {
            "user" => name == account.name,
            "group" => account.groups.iter().any(|(_, group)| group == name),
            _ => false,
        };
        let list = match words[..] {
            [set, list] if part == "Permission sets" => {
                sets.entry(set).or_default().extend(list.split(','));
                continue;
            }
            ["everyone", list] => list,
            [kind, name, list] if named(kind, name) => list,
            _ => continue,
        };
        let (for_here, for_below) = match part {
            "Local permissions" => (own, false),
            "Descendent permissions" => (false, true),
            "Local+Descendent permissions" => (own, true),
            _ => (false, false),
        };
        // What a parent gives to all below it holds here as well.
        if for_here || (for_below && !own) {
            here.extend(list.split(','));
        }
        if for_below {
            below.extend(list.split(','));
        }
    }
    let whole = |list: Vec<&str>| -> BTreeSet<String> {
        let mut rights = BTreeSet::new();
        let mut left = list;
        let mut seen = BTreeSet::new();
        while let Some(word) = left.pop() {
            if !word.starts_with('@') {
                rights.insert(word.to_owned());
            } else if seen.insert(word) {
                left.extend(sets.get(word).into_iter().flatten());
            }
        }
        rights
    };
    &whole(here) & &whole(below)
}

/// Whether the user gets at the devices: those that are there, or by the rule for those to come.
fn devices(dataset: &str, account: &Account) -> Finding {
    let user = &account.name;
    let links = fs::read_dir(Path::new("/dev/zvol").join(dataset));
    let mut there = links.into_iter().flatten().flatten();
    let kept = there.find_map(|link| {
        let file = fs::metadata(link.path()).ok()?;
        (!account.may_use(&file)).then(|| link.path())
    });
    let ruled = RULES.iter().any(|folder| {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files
            .filter(|file| file.path().extension().is_some_and(|e| e == "rules"))
            .filter_map(|file| fs::read_to_string(file.path()).ok())
            .any(|text| text.lines().any(|line| gives(line, dataset, account)))
    });
    let group = account.groups.first().map_or(user, |(_, name)| name);
    let rule = format!(
        "echo 'KERNEL==\"zd*\", SUBSYSTEM==\"block\", SYMLINK==\"zvol/{dataset}/*\", OWNER=\"{user}\", \
         GROUP=\"{group}\", MODE=\"0660\"' > /etc/udev/rules.d/90-dls-zvol.rules"
    );
    let again = "udevadm control --reload && udevadm trigger --subsystem-match=block";
    match (kept, ruled) {
        (None, true) => Finding::good(format!("udev gives the devices of {dataset} to {user}")),
        (Some(device), true) => Finding::missing(
            format!(
                "{user} may not open {}, whatever udev's rule says",
                device.display()
            ),
            again,
        ),
        (_, false) => Finding::missing(
            format!("no rule of udev gives the devices of disks below {dataset} to {user}"),
            format!("{rule} && {again}"),
        ),
    }
}

/// Whether a line of udev's rules gives the devices of the dataset's zvols to the account.
fn gives(line: &str, dataset: &str, account: &Account) -> bool {
    let value = |key: &str| {
        let rest = line.split_once(key)?.1;
        rest.split('"').next()
    };
    if line.trim_start().starts_with('#') || value("KERNEL==\"") != Some("zd*") {
        return false;
    }
    let owner = value("OWNER=\"") == Some(&account.name);
    let group =
        value("GROUP=\"").is_some_and(|name| account.groups.iter().any(|(_, group)| group == name));
    let link = format!("zvol/{dataset}/x");
    (owner || group) && value("SYMLINK==\"").is_none_or(|pattern| matches(pattern, &link))
}

/// A pattern in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|t| matches(after, t)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account {
            name: "dls".into(),
            uid: 990,
            groups: vec![(990, "dls".into()), (6, "disk".into())],
        }
    }

    fn names(text: &str) -> String {
        let given = given(text, "tank/dls", &account());
        given.into_iter().collect::<Vec<_>>().join(",")
    }

    #[test]
    fn rights_are_read_as_zfs_means_them() {
        let head = "---- Permissions on tank/dls ----------------------\n";
        let over = "---- Permissions on tank --------------------------\n";
        let all = format!("{head}Local+Descendent permissions:\n\tuser dls clone,create\n");
        assert_eq!(names(&all), "clone,create");
        // Only here, or only below, is not enough; both are.
        let one = format!("{head}Local permissions:\n\tuser dls clone\n");
        assert_eq!(names(&one), "");
        let two = format!(
            "{head}Local permissions:\n\tuser dls clone,hold\nDescendent permissions:\n\tuser dls clone\n"
        );
        assert_eq!(names(&two), "clone");
        // Those of others are none of ours; groups and everyone are.
        let others = format!(
            "{head}Local+Descendent permissions:\n\tuser other send\n\tgroup disk hold\n\tgroup x mount\n\teveryone snapshot\n"
        );
        assert_eq!(names(&others), "hold,snapshot");
        // Sets, and what comes from above.
        let sets = format!(
            "{head}Permission sets:\n\t@a clone,@b\n\t@b hold,@a\nLocal+Descendent permissions:\n\tuser dls @a\n{over}Local permissions:\n\tuser dls destroy\nDescendent permissions:\n\tuser dls send\n"
        );
        assert_eq!(names(&sets), "clone,hold,send");
        assert_eq!(names(""), "");
    }

    #[test]
    fn rules_of_udev_are_read() {
        let shipped = include_str!("../../../deploy/udev/90-dls-zvol.rules");
        let by =
            |text: &str, dataset: &str| text.lines().any(|line| gives(line, dataset, &account()));
        assert!(by(shipped, "tank/dls"));
        assert!(by(shipped, "tank/site/dls"));
        assert!(!by(shipped, "tank/disks"));
        assert!(by(r#"KERNEL=="zd*", GROUP="disk""#, "tank/disks"));
        assert!(!by(r#"KERNEL=="zd*", GROUP="other""#, "tank/disks"));
        assert!(!by(r##"#KERNEL=="zd*", OWNER="dls""##, "tank/dls"));
        assert!(!by(r#"KERNEL=="sd*", OWNER="dls""#, "tank/dls"));
    }

    #[test]
    fn a_parent_is_judged() {
        let bad = |values: &[&str]| {
            let found = judge("tank/dls", values);
            found.into_iter().filter(|f| !f.good).collect::<Vec<_>>()
        };
        assert_eq!(bad(&["filesystem", "off", "off"]), []);
        assert_eq!(bad(&["volume", "off", "off"]).len(), 1);
        assert!(
            bad(&["filesystem", "aes-256-gcm", "off"])[0]
                .what
                .contains("encrypted")
        );
        let mend = bad(&["filesystem", "off", "on"])[0].mend.clone();
        assert_eq!(mend.as_deref(), Some("zfs inherit readonly tank/dls"));
    }

    #[test]
    fn the_documentation_has_the_same_rights() {
        let text = include_str!("../../../docs/storage.md").replace('\n', " ");
        let names: Vec<&str> = RIGHTS.iter().map(|(right, _)| *right).collect();
        let line = format!("`zfs allow -u dls {} tank/dls`", names.join(","));
        assert!(text.contains(&line), "{line}");
    }

    #[test]
    fn who_may_use_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let meta = |mode: u32| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            fs::metadata(file.path()).unwrap()
        };
        let mut mine = account();
        mine.uid = meta(0o600).uid();
        assert!(mine.may_use(&meta(0o600)));
        assert!(!mine.may_use(&meta(0o066)));
        let mut ours = account();
        ours.uid = u32::MAX;
        ours.groups = vec![(meta(0o660).gid(), "x".into())];
        assert!(ours.may_use(&meta(0o660)));
        assert!(!ours.may_use(&meta(0o606)));
        ours.groups.clear();
        assert!(ours.may_use(&meta(0o606)));
        assert!(!ours.may_use(&meta(0o604)));
    }
}
