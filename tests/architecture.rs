//! The rules of the house, held by scanning the sources: who may name what, which files are
//! pure, what each file must open with, how long it may grow. Each rule is also shown to be
//! able to fail. A rule that stands in the way is changed here, with its reason, not dodged.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file: path below `src/`, or from the root where it lies elsewhere, and text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// The text without its tests and comments: tests may do what the product must not.
    fn code(&self) -> String {
        let end = ["#[cfg(test)]\nmod ", "#[cfg(test)]\n#["]
            .iter()
            .filter_map(|mark| self.text.find(mark))
            .min()
            .unwrap_or(self.text.len());
        self.text[..end]
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// True if the file lies in that folder, or is that module's file.
    fn is_in(&self, module: &str) -> bool {
        self.path == format!("{module}.rs") || self.path.starts_with(&format!("{module}/"))
    }

    /// Whole words `a::b` or `a` in the code.
    fn names(&self, name: &str) -> bool {
        let code = self.code();
        code.match_indices(name).any(|(at, _)| {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let before = code[..at].chars().next_back();
            let after = code[at + name.len()..].chars().next();
            !before.is_some_and(word) && !after.is_some_and(word)
        })
    }
}

type Rule = fn(&Source) -> Vec<String>;

const RULES: [(&str, Rule); 8] = [
    ("only its own place names a library", owned_libraries),
    ("pure files stay pure", purity),
    ("nothing points up, edges never point at each other", layers),
    ("every file opens with what it owns", header),
    ("no file of more than 600 lines", length),
    ("no folder of odds and ends", folders),
    ("no leftovers", leftovers),
    ("unsafe code says why", unsafe_code),
];

/// A library that only one place may name.
fn owned_libraries(source: &Source) -> Vec<String> {
    let owners: [(&str, &[&str]); 5] = [
        ("sqlx", &["catalog"]),
        ("dhcproto", &["dhcp/wire"]),
        ("axum", &["http", "admin", "console"]),
        ("zfs_core", &["storage/zfs"]),
        ("nvpair", &["storage/zfs"]),
    ];
    owners
        .iter()
        .filter(|(library, places)| {
            source.names(library) && !places.iter().any(|p| source.is_in(p))
        })
        .map(|(library, places)| format!("names `{library}`, which belongs to {places:?}"))
        .collect()
}

/// The files without effects: no tasks, no clock, no environment, no files, no randomness.
const PURE: [&str; 29] = [
    "model",
    "validate",
    "image_check",
    "truth",
    "dhcp/wire",
    "dhcp/decide",
    "dhcp/pool",
    "tftp/wire",
    "tftp/machine",
    "boot/choice",
    "boot/path",
    "boot/disk_words",
    "boot/plan",
    "boot/script",
    "boot/session",
    "boot/token",
    "export/iscsi/wire",
    "export/iscsi/machine",
    "export/nbd/wire",
    "export/nbd/machine",
    "replicate/wire",
    "replicate/machine",
    "storm/plan",
    "storm/machine",
    "storm/orders",
    "storm/profile",
    "storm/report",
    "storm/words",
    "storm/disk/written",
];

fn purity(source: &Source) -> Vec<String> {
    if !PURE.iter().any(|place| source.is_in(place)) {
        return Vec::new();
    }
    let code = source.code();
    let phrases = [
        "async fn",
        "async move",
        ".await",
        "tokio",
        "now(",
        "now_v7",
        "new_v4",
        "std::env",
        "env::var",
        "std::fs",
        "File::open",
        "getrandom",
        "std::net::UdpSocket",
        "std::net::Tcp",
        "std::process",
        "std::thread",
        "println!",
        "tracing::",
    ];
    phrases
        .iter()
        .filter(|phrase| code.contains(*phrase))
        .map(|phrase| format!("a pure file says `{phrase}`"))
        .collect()
}

/// Layers from the bottom up. `replicate` reads the cache and is asked by `admin`: it lies
/// between them; its peers are servers, not machines. `storm` plays the machines: it reads and writes
/// what the edges write and read, and no edge knows it. What a file may use lies on a lower layer,
/// or is its own module. `attention`, `clock`, `crowd`, `heap`, `steps`, `telemetry` and `privileges` serve all from the
/// side.
const LAYERS: [&[&str]; 7] = [
    &["model"],
    &[
        "validate",
        "image_check",
        "truth",
        "dhcp/wire",
        "dhcp/decide",
        "dhcp/pool",
        "tftp/wire",
        "tftp/machine",
        "boot/choice",
        "boot/path",
        "boot/disk_words",
        "boot/plan",
        "boot/script",
        "boot/session",
        "boot/token",
        "export/iscsi/wire",
        "export/iscsi/machine",
        "export/nbd/wire",
        "export/nbd/machine",
        "replicate/wire",
        "replicate/machine",
    ],
    &["catalog", "storage"],
    &["cache", "boot"],
    &["replicate"],
    &["dhcp", "tftp", "http", "export", "admin"],
    &["storm"],
];

/// The modules of the top and bottom that everybody or nobody looks at.
const ROOT: [&str; 4] = ["main", "lib", "app", "cli"];
const EVERYWHERE: [&str; 6] = ["attention", "clock", "crowd", "heap", "steps", "telemetry"];

/// The layer of a module path such as `dhcp/wire` or `dhcp/server`: the most special entry.
fn layer(path: &str) -> Option<(usize, &'static str)> {
    LAYERS
        .iter()
        .enumerate()
        .flat_map(|(level, names)| names.iter().map(move |name| (level, *name)))
        .filter(|(_, name)| path == *name || path.starts_with(&format!("{name}/")))
        .max_by_key(|(_, name)| name.len())
}

/// Modules of this crate that the code uses, as `a` or `a/b` (`crate::a::b`, `super::` is
/// within one module and of no concern).
fn uses(source: &Source) -> Vec<String> {
    let code = source.code();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let word = |text: &str| -> String {
            text.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        };
        let first = word(rest);
        if let Some(tail) = rest[first.len()..].strip_prefix("::{") {
            // `crate::boot::{files, tracker::Tracker}`: each name counts, to the closing brace.
            let list = tail.split("};").next().unwrap_or(tail);
            for part in list.split(',') {
                found.push(format!("{first}/{}", word(part.trim())));
            }
        } else if let Some(tail) = rest[first.len()..].strip_prefix("::") {
            found.push(format!("{first}/{}", word(tail)));
        } else if first.is_empty() {
            // `crate::{a, b::c}`
            let list = rest
                .trim_start_matches('{')
                .split("};")
                .next()
                .unwrap_or(rest);
            for part in list.split(',') {
                found.push(word(part.trim()));
            }
        } else {
            found.push(first);
        }
    }
    found
}

fn layers(source: &Source) -> Vec<String> {
    let own = source.path.trim_end_matches(".rs").trim_end_matches("/mod");
    let top = own.split('/').next().unwrap_or_default();
    if ROOT.contains(&top) {
        return Vec::new();
    }
    let Some((mine, _)) = layer(own) else {
        return Vec::new();
    };
    let mut broken = Vec::new();
    for used in uses(source) {
        let used_top = used.split('/').next().unwrap_or_default();
        if ROOT.contains(&used_top) {
            broken.push(format!("points up to `{used}`"));
        }
        if EVERYWHERE.contains(&used_top) || used_top == top {
            continue;
        }
        if let Some((theirs, name)) = layer(&used) {
            if theirs > mine {
                broken.push(format!("points up to `{used}`"));
            } else if theirs == mine && mine >= 2 {
                // The cache is under the boot services, which look things up in it.
                if (top, name) != ("boot", "cache") {
                    broken.push(format!("points sideways to `{used}`"));
                }
            }
        }
    }
    broken
}

fn header(source: &Source) -> Vec<String> {
    let words = source
        .text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .flat_map(str::split_whitespace)
        .count();
    // Four words at least beside the mark: a name alone says nothing.
    if words < 5 {
        return vec!["does not open with `//!` and what it owns".into()];
    }
    Vec::new()
}

fn length(source: &Source) -> Vec<String> {
    // A file of tests only has no other lines.
    if source.path.ends_with("/tests.rs") || source.path.contains("/tests/") {
        return Vec::new();
    }
    let end = source
        .text
        .find("#[cfg(test)]\nmod ")
        .unwrap_or(source.text.len());
    let lines = source.text[..end].lines().count();
    if lines > 600 {
        return vec![format!("{lines} lines without its tests")];
    }
    Vec::new()
}

fn folders(source: &Source) -> Vec<String> {
    source
        .path
        .split('/')
        .map(|part| part.trim_end_matches(".rs"))
        .filter(|part| {
            [
                "services", "utils", "util", "helpers", "types", "traits", "common", "misc",
            ]
            .contains(part)
        })
        .map(|part| format!("`{part}` is no noun of the problem"))
        .collect()
}

fn leftovers(source: &Source) -> Vec<String> {
    [
        "TODO",
        "FIXME",
        "XXX",
        "unimplemented!",
        "todo!(",
        "#[ignore",
    ]
    .iter()
    .filter(|word| source.text.contains(*word))
    .map(|word| format!("says `{word}`"))
    .collect()
}

fn unsafe_code(source: &Source) -> Vec<String> {
    let code = source.code();
    let blocks = code.matches("unsafe {").count() + code.matches("unsafe fn").count();
    // Either the usual comment, or the reason of the lint's exception, without which the
    // compiler refuses the block.
    let excepted = source.text.split("#[expect(").skip(1);
    let excepted = excepted.filter(|rest| {
        let attribute = rest.split(")]").next().unwrap_or_default();
        attribute.contains("unsafe_code") && attribute.contains("reason = ")
    });
    let reasons = source.text.matches("// SAFETY:").count() + excepted.count();
    if blocks > reasons {
        return vec![format!(
            "{blocks} unsafe blocks, {reasons} reasons (`// SAFETY:`, or of `expect(unsafe_code)`)"
        )];
    }
    Vec::new()
}

/// The product's sources: of the server, and of what is put into its images.
fn sources() -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = top.join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    collect(&top.join("deploy"), &mut files);
    let mut sources: Vec<Source> = files
        .iter()
        .map(|file| {
            let path = file
                .strip_prefix(&root)
                .or_else(|_| file.strip_prefix(top))
                .expect("below the root")
                .to_string_lossy();
            let text = fs::read_to_string(file).expect("a readable source");
            Source::new(&path, &text)
        })
        .collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn the_house_is_in_order() {
    let sources = sources();
    assert!(sources.len() > 20, "the sources were found");
    for file in ["main.rs", "deploy/nbd-root/dls-nbd.rs"] {
        assert!(sources.iter().any(|s| s.path == file), "{file} was found");
    }
    let mut broken = Vec::new();
    for (name, rule) in RULES {
        for source in &sources {
            for fault in rule(source) {
                broken.push(format!("{}: {fault} ({name})", source.path));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn every_pure_file_is_there() {
    // A file that was moved away from the list would be free of its rule unnoticed.
    let sources = sources();
    for place in PURE.iter() {
        assert!(
            sources.iter().any(|s| s.is_in(place)),
            "{place} is in no file"
        );
    }
}

#[test]
fn every_migration_has_a_way_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let migrations = root.join("migrations");
    let names: Vec<String> = fs::read_dir(migrations)
        .map(|entries| {
            entries
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect()
        })
        .unwrap_or_default();
    assert!(!names.is_empty(), "migrations were found");
    for name in &names {
        if let Some(stem) = name.strip_suffix(".up.sql") {
            assert!(
                names.contains(&format!("{stem}.down.sql")),
                "{stem} has no way back"
            );
        }
    }
}

#[test]
fn each_rule_can_fail() {
    let cases: [(Rule, &str, &str); 16] = [
        (owned_libraries, "admin/x.rs", "use sqlx::PgPool;"),
        (
            owned_libraries,
            "dhcp/decide.rs",
            "fn f(m: dhcproto::v4::Message) {}",
        ),
        (owned_libraries, "tftp/server.rs", "use axum::Router;"),
        (purity, "boot/plan.rs", "async fn f() {}"),
        (purity, "dhcp/wire/scan.rs", "let t = clock.now();"),
        (purity, "validate.rs", "let x = std::env::var(\"X\");"),
        (layers, "catalog/images.rs", "use crate::cache::Cache;"),
        (
            layers,
            "catalog/images.rs",
            "use crate::storage::Directory;",
        ),
        (
            layers,
            "http/server.rs",
            "use crate::{model::Mac, admin::Api};",
        ),
        (layers, "model/mac.rs", "use crate::validate::rule;"),
        (
            layers,
            "boot/files.rs",
            "use crate::boot::path; use crate::app::run;",
        ),
        (header, "x.rs", "//! x\nfn f() {}"),
        (folders, "admin/utils/x.rs", ""),
        (leftovers, "x.rs", "fn f() { unimplemented!() }"),
        (unsafe_code, "x.rs", "fn f() { unsafe { g() } }"),
        (unsafe_code, "x.rs", "unsafe fn g() {}"),
    ];
    for (rule, path, text) in cases {
        let faults = rule(&Source::new(path, text));
        assert!(!faults.is_empty(), "{path}: `{text}` went through");
    }
    let long = Source::new("x.rs", &"fn f() {}\n".repeat(601));
    assert_eq!(length(&long).len(), 1);
}

#[test]
fn each_rule_lets_good_code_through() {
    let cases: [(Rule, &str, &str); 9] = [
        (owned_libraries, "catalog/images.rs", "use sqlx::PgPool;"),
        (
            owned_libraries,
            "admin/x.rs",
            "// as sqlx does\nlet sqlx_like = 1;",
        ),
        (
            purity,
            "dhcp/server.rs",
            "async fn f() { tokio::spawn(g()).await }",
        ),
        (
            purity,
            "boot/plan.rs",
            "fn f(now: Timestamp) {}\n#[cfg(test)]\nmod tests { fn t() { clock.now(); } }",
        ),
        (
            layers,
            "http/server.rs",
            "use crate::boot::files::Files; use crate::clock::Clock;",
        ),
        (
            layers,
            "dhcp/server.rs",
            "use crate::dhcp::decide; use crate::catalog::Catalog;",
        ),
        (layers, "cli/image.rs", "use crate::admin::Api;"),
        (
            header,
            "x.rs",
            "//! What this file owns, in words.\nfn f() {}",
        ),
        (
            unsafe_code,
            "x.rs",
            "// SAFETY: g is fine.\nfn f() { unsafe { g() } }",
        ),
    ];
    for (rule, path, text) in cases {
        let faults = rule(&Source::new(path, text));
        assert!(faults.is_empty(), "{path}: `{text}`: {faults:?}");
    }
    let tested = format!(
        "//! One two three four.\n#[cfg(test)]\nmod tests {{\n{}}}",
        "\n".repeat(900)
    );
    assert!(length(&Source::new("x.rs", &tested)).is_empty());
}
