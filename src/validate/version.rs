//! The fields of versions: of a new one, of a release, of a return; and where each may go.

use super::{Reader, Violations, rules};
use crate::model::{Version, VersionStage};

/// A version that is to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVersion {
    /// Unique within its image.
    pub name: String,
    /// The client whose disk it is made from: host name, MAC or id.
    pub from_client: String,
    /// Why it is made.
    pub description: Option<String>,
    /// Who makes it.
    pub author: Option<String>,
}

/// Whom a version is released to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Canary or production.
    pub stage: VersionStage,
    /// Whose canary.
    pub ring: Option<String>,
    /// How many good boots of it release it to all; a failed one sends its machines back.
    pub good_boots: Option<u32>,
}

/// Why machines are sent back, and to what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Return {
    /// The version that they boot then, by name or id; none: the one before.
    pub to: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// Reads a new version's fields.
///
/// # Errors
/// Every violation.
pub fn new_version(mut reader: Reader) -> Result<NewVersion, Violations> {
    let mut new = NewVersion::default();
    reader.required("name", &mut new.name, rules::version_name);
    reader.required("from_client", &mut new.from_client, rules::called);
    reader.optional("description", &mut new.description, rules::description);
    reader.optional("author", &mut new.author, rules::author);
    reader.finish()?;
    Ok(new)
}

/// Reads which version a disk begins anew from, by name or id; none: the one that its client follows.
///
/// # Errors
/// Every violation.
pub fn rebase(mut reader: Reader) -> Result<Option<String>, Violations> {
    let mut to = None;
    reader.optional("to", &mut to, rules::called);
    reader.finish()?;
    Ok(to)
}

/// Reads whom a version is released to: to all, if nothing is said.
///
/// # Errors
/// Every violation.
pub fn release(mut reader: Reader) -> Result<Release, Violations> {
    let release = released_to(&mut reader);
    if release.stage == VersionStage::Draft && !reader.is_refused("stage") {
        reader.refuse("stage", "must be one of: canary, production");
    }
    reader.finish()?;
    Ok(release)
}

fn released_to(reader: &mut Reader) -> Release {
    let mut release = Release {
        stage: VersionStage::Production,
        ring: None,
        good_boots: None,
    };
    reader.value("stage", &mut release.stage, rules::word);
    reader.optional("ring", &mut release.ring, rules::ring);
    reader.optional("good_boots", &mut release.good_boots, rules::good_boots);
    let fine = !reader.is_refused("stage") && !reader.is_refused("ring");
    match (release.stage, &release.ring) {
        (VersionStage::Retired, _) => {
            reader.refuse("stage", "must be one of: canary, production");
        }
        (VersionStage::Canary, None) if fine => {
            reader.refuse(
                "ring",
                "is required: a canary is for the machines of one ring",
            );
        }
        (VersionStage::Draft | VersionStage::Production, Some(_)) if fine => {
            reader.refuse("ring", "is for a canary: production is for all");
        }
        (VersionStage::Draft | VersionStage::Production, None)
            if fine && release.good_boots.is_some() =>
        {
            reader.refuse(
                "good_boots",
                "is for a canary: production is released already",
            );
        }
        _ => {}
    }
    release
}

/// Reads what becomes of a mended image: a version, and whom it is released to; `None`: nobody.
///
/// # Errors
/// Every violation.
pub fn publication(mut reader: Reader) -> Result<(NewVersion, Option<Release>), Violations> {
    let mut new = NewVersion::default();
    reader.required("name", &mut new.name, rules::version_name);
    reader.optional("description", &mut new.description, rules::description);
    reader.optional("author", &mut new.author, rules::author);
    let release = released_to(&mut reader);
    reader.finish()?;
    Ok((
        new,
        Some(release).filter(|r| r.stage != VersionStage::Draft),
    ))
}

/// Reads who mends an image.
///
/// # Errors
/// Every violation.
pub fn mender(mut reader: Reader) -> Result<Option<String>, Violations> {
    let mut author = None;
    reader.optional("author", &mut author, rules::author);
    reader.finish()?;
    Ok(author)
}

/// Reads why machines are sent back, and to what.
///
/// # Errors
/// Every violation.
pub fn sending_back(mut reader: Reader) -> Result<Return, Violations> {
    let mut back = Return::default();
    reader.optional("to", &mut back.to, rules::called);
    reader.optional("reason", &mut back.reason, rules::description);
    reader.finish()?;
    Ok(back)
}

/// May this version be released so? It is no error where it is that already.
///
/// # Errors
/// With the field to blame.
pub fn may_release(version: &Version, release: &Release) -> Result<(), Violations> {
    if version.stage == release.stage || version.stage.may_become(release.stage) {
        return Ok(());
    }
    Err(Violations::of(
        "stage",
        format!(
            "version `{}` is in {}: it can't become {}; release another version first",
            version.name, version.stage, release.stage
        ),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::model::Timestamp;
    use crate::validate::{Strictness, Write};

    fn reader(body: Value) -> Reader {
        let Value::Object(map) = body else {
            panic!("{body}")
        };
        Reader::new(map, Write::Create, Strictness::Strict)
    }

    fn blamed<T: std::fmt::Debug>(read: Result<T, Violations>) -> Vec<(String, String)> {
        let refused = read.unwrap_err();
        let pair = |v: &crate::validate::Violation| (v.field.clone(), v.message.clone());
        refused.iter().map(pair).collect()
    }

    #[test]
    fn a_new_version_has_a_name_and_a_client_and_perhaps_a_why_and_a_who() {
        let new = new_version(reader(json!({
            "name": "2026-11.1_a", "from_client": "pc-01", "description": "updates\nof November", "author": "anna",
        })));
        assert_eq!(
            new.unwrap(),
            NewVersion {
                name: "2026-11.1_a".into(),
                from_client: "pc-01".into(),
                description: Some("updates\nof November".into()),
                author: Some("anna".into()),
            }
        );
        let all = blamed(new_version(reader(json!({
            "name": "Mended", "description": 7, "author": "a\nb", "stage": "production", "colour": "red",
        }))));
        let fields: Vec<&str> = all.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "name",
                "from_client",
                "description",
                "author",
                "colour",
                "stage"
            ]
        );
        for bad in [
            json!(""),
            json!("-a"),
            json!("a b"),
            json!("a/b"),
            json!("ä"),
            json!("A"),
            json!("a".repeat(65)),
            json!(Uuid::nil().to_string()),
            json!(null),
            json!(1),
        ] {
            let all = blamed(new_version(reader(
                json!({"name": bad, "from_client": "pc"}),
            )));
            assert_eq!(all.len(), 1, "{bad}");
            assert_eq!(all[0].0, "name", "{bad}");
        }
        let longest = json!({"name": "a".repeat(64), "from_client": "pc"});
        assert!(new_version(reader(longest)).is_ok());
    }

    #[test]
    fn a_release_is_to_all_or_to_one_ring() {
        use VersionStage::{Canary, Production};
        let read = |body| release(reader(body)).map(|r| (r.stage, r.ring));
        assert_eq!(read(json!({})), Ok((Production, None)));
        assert_eq!(read(json!({"stage": "production"})), Ok((Production, None)));
        let judged = release(reader(
            json!({"stage": "canary", "ring": "lab", "good_boots": 3}),
        ));
        assert_eq!(judged.unwrap().good_boots, Some(3));
        let lab = Ok((Canary, Some("lab".to_owned())));
        assert_eq!(read(json!({"stage": "canary", "ring": "lab"})), lab);
        for (body, field, why) in [
            (
                json!({"stage": "canary"}),
                "ring",
                "is required: a canary is for the machines of one ring",
            ),
            (
                json!({"ring": "lab"}),
                "ring",
                "is for a canary: production is for all",
            ),
            (
                json!({"stage": "draft"}),
                "stage",
                "must be one of: canary, production",
            ),
            (
                json!({"stage": "retired"}),
                "stage",
                "must be one of: canary, production",
            ),
            (
                json!({"good_boots": 3}),
                "good_boots",
                "is for a canary: production is released already",
            ),
            (
                json!({"stage": "canary", "ring": "lab", "good_boots": 0}),
                "good_boots",
                "must be a whole number from 1 to 10000 (boots)",
            ),
            (
                json!({"stage": "canary", "ring": null}),
                "ring",
                "is required: a canary is for the machines of one ring",
            ),
        ] {
            let all = blamed(read(body.clone()));
            assert_eq!(all, [(field.to_owned(), why.to_owned())], "{body}");
        }
        for bad in [
            json!("Lab"),
            json!(""),
            json!("a".repeat(33)),
            json!("a b"),
            json!(3),
        ] {
            let all = blamed(read(json!({"stage": "canary", "ring": bad})));
            assert_eq!((all.len(), all[0].0.as_str()), (1, "ring"), "{bad}");
        }
    }

    #[test]
    fn what_is_in_production_does_not_become_a_canary() {
        use VersionStage::{Canary, Draft, Production, Retired};
        let of = |stage| Version {
            id: Uuid::nil(),
            image_id: Uuid::nil(),
            name: "mended".into(),
            stage,
            ring: None,
            description: None,
            size_bytes: 0,
            referenced_bytes: 0,
            author: None,
            from_client: None,
            created_at: Timestamp::UNIX_EPOCH,
            released_at: None,
            returned_at: None,
            reason: None,
            canary_at: None,
            good_boots: None,
        };
        for from in [Draft, Canary, Production, Retired] {
            for to in [Canary, Production] {
                let ring = (to == Canary).then(|| "lab".to_owned());
                let may = may_release(
                    &of(from),
                    &Release {
                        stage: to,
                        ring,
                        good_boots: None,
                    },
                );
                assert_eq!(
                    may.is_ok(),
                    (from, to) != (Production, Canary),
                    "{from} {to}"
                );
            }
        }
        let ring = Some("lab".to_owned());
        let refused = may_release(
            &of(Production),
            &Release {
                stage: Canary,
                ring,
                good_boots: None,
            },
        );
        assert_eq!(
            refused.unwrap_err().to_string(),
            "stage: version `mended` is in production: it can't become canary; release another version first"
        );
    }

    #[test]
    fn going_back_may_say_why_and_where_to() {
        assert_eq!(sending_back(reader(json!({}))), Ok(Return::default()));
        let said = sending_back(reader(json!({"to": "base", "reason": "no sound"})));
        assert_eq!(
            said,
            Ok(Return {
                to: Some("base".into()),
                reason: Some("no sound".into())
            })
        );
        let all = blamed(sending_back(reader(
            json!({"to": "", "reason": 1, "ring": "lab"}),
        )));
        let fields: Vec<&str> = all.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["to", "reason", "ring"]);
    }
}
