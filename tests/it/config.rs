//! Sample configurations: every one parses, and the main one explains every key.

use std::collections::BTreeSet;
use std::path::Path;

use dls::config::{Config, ConfigError};

const SAMPLE: &str = include_str!("../../deploy/dls.toml");

fn keys(table: &toml::Table, prefix: &str, into: &mut BTreeSet<String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => keys(inner, &format!("{key}."), into),
            _ => {
                into.insert(format!("{prefix}{key}"));
            }
        }
    }
}

#[test]
fn the_sample_holds_every_key_at_its_default() {
    let mut config = Config::parse(SAMPLE, Path::new("deploy/dls.toml")).unwrap();
    assert_eq!(
        config.storage.path.take(),
        Some(Config::default().storage_path())
    );
    assert_eq!(config, Config::default());

    // What the parser knows is told by its own complaint about a key that it does not know.
    let known = |section: &str| -> BTreeSet<String> {
        let text = if section.is_empty() {
            "zz = 1".to_owned()
        } else {
            format!("[{section}]\nzz = 1")
        };
        let ConfigError::Malformed { message, .. } =
            Config::parse(&text, Path::new("x")).unwrap_err()
        else {
            panic!()
        };
        let expected = message
            .split("expected")
            .nth(1)
            .unwrap_or_else(|| panic!("{message}"));
        expected
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let mut in_sample = BTreeSet::new();
    keys(
        &SAMPLE
            .replace("# default_image", "default_image")
            .replace("# server_name", "server_name")
            .replace("# dataset", "dataset")
            .replace("# certificate", "certificate")
            .replace("# key =", "key =")
            .replace("# dataset =", "dataset =")
            .replace("# import_dir", "import_dir")
            .parse()
            .unwrap(),
        "",
        &mut in_sample,
    );
    let sections: BTreeSet<String> = [
        "database",
        "dhcp",
        "tftp",
        "http",
        "admin",
        "iscsi",
        "nbd",
        "replication",
        "storage",
        "boot",
        "validation",
        "log",
    ]
    .map(str::to_owned)
    .into();
    let mut expected: BTreeSet<String> = known("").difference(&sections).cloned().collect();
    for section in &sections {
        expected.extend(
            known(section)
                .into_iter()
                .map(|key| format!("{section}.{key}")),
        );
    }
    assert_eq!(in_sample, expected);
}

#[test]
fn every_key_has_its_variable() {
    let mut in_sample = BTreeSet::new();
    keys(
        &SAMPLE
            .replace("# default_image", "default_image")
            .replace("# server_name", "server_name")
            .replace("# dataset", "dataset")
            .replace("# certificate", "certificate")
            .replace("# key =", "key =")
            .replace("# dataset =", "dataset =")
            .replace("# import_dir", "import_dir")
            .parse()
            .unwrap(),
        "",
        &mut in_sample,
    );
    for key in in_sample {
        let variable = format!("DLS_{}", key.replace('.', "_").to_uppercase());
        let asked = std::cell::Cell::new(false);
        let mut config = Config::default();
        config
            .override_with(|name| {
                asked.set(asked.get() || name == variable);
                None
            })
            .unwrap();
        assert!(asked.get(), "{variable} overrides nothing");
    }
}
