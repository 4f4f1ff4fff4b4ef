//! libiscsi's own suite, all of it, and what it says held against a list: a test that fails
//! or skips itself and is not on the list is red, and so is one that is on it and does not.

use std::collections::BTreeSet;
use std::process::Command;

use super::house::House;

/// `failed SUITE.TEST` and `skipped SUITE.TEST`, one a line.
fn findings(output: &str) -> BTreeSet<String> {
    let (mut suite, mut test) = (String::new(), String::new());
    let mut found = BTreeSet::new();
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("Suite: ") {
            name.trim().clone_into(&mut suite);
        }
        if let Some(rest) = line.trim_start().strip_prefix("Test: ") {
            test = rest
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned();
        }
        if line.contains("[SKIPPED]") {
            found.insert(format!("skipped {suite}.{test}"));
        }
        let verdict = line.rsplit("...").next().unwrap_or_default().trim();
        if verdict == "FAILED" || line.trim() == "FAILED" {
            found.insert(format!("failed {suite}.{test}"));
        }
    }
    found
}

#[test]
fn libiscsi_suite() {
    let house = House::new(true);
    let output = Command::new("timeout")
        .args(["240", "iscsi-test-cu", "-d", "--test=ALL"])
        .arg(house.url(""))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let tests = text.lines().find(|l| l.trim().starts_with("tests "));
    let tests = tests.unwrap_or_else(|| panic!("no summary:\n{text}"));
    let numbers: Vec<u32> = tests.split_whitespace().flat_map(str::parse).collect();
    println!("{}", tests.trim());
    assert_eq!(numbers[..2], [230, 230], "total, ran");
    assert!(numbers[2] >= 228, "passed: {numbers:?}\n{text}");
    let known: BTreeSet<String> = include_str!("conformance.txt")
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
        .map(str::to_owned)
        .collect();
    let found = findings(&text);
    let new: Vec<_> = found.difference(&known).collect();
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "new: {new:#?}\nno more: {gone:#?}"
    );
}
