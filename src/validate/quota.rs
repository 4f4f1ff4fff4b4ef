//! Quotas of clones: whole MiB, of an image or of a client. What they mean is [`crate::model::quota`].

use serde_json::Value;

use super::{Reader, Strictness, Violations};

/// Most MiB: 128 TiB, the largest disk.
const MOST: i32 = 128 << 20;

fn mib(value: &Value, least: i32) -> Result<i32, String> {
    let given = value.as_i64().and_then(|n| i32::try_from(n).ok());
    let given = given.filter(|n| (least..=MOST).contains(n));
    given.ok_or_else(|| format!("must be a whole number of MiB from {least} to {MOST}"))
}

fn of_image(value: &Value, _: Strictness) -> Result<i32, String> {
    mib(value, 1)
}

fn of_client(value: &Value, _: Strictness) -> Result<i32, String> {
    mib(value, 0)
}

/// Reads the quota of an image's clones: MiB, or none.
///
/// # Errors
/// Every violation.
pub fn image_quota(reader: Reader) -> Result<Option<i32>, Violations> {
    read(reader, of_image)
}

/// Reads a client's own quota: MiB, 0 for no limit, or none of its own.
///
/// # Errors
/// Every violation.
pub fn client_quota(reader: Reader) -> Result<Option<i32>, Violations> {
    read(reader, of_client)
}

fn read(mut reader: Reader, rule: super::reader::Rule<i32>) -> Result<Option<i32>, Violations> {
    const FIELD: &str = "clone_quota_mb";
    if !reader.has(FIELD) {
        reader.refuse(FIELD, "is required: MiB, or null for none");
    }
    let mut quota = None;
    reader.optional(FIELD, &mut quota, rule);
    reader.read_only(&["image", "client", "quota_bytes"]);
    reader.finish()?;
    Ok(quota)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::Write;

    #[test]
    fn quotas_are_whole_mib_and_nought_is_for_clients() {
        let reader = |body: Value| {
            let map = body.as_object().cloned().unwrap_or_default();
            Reader::new(map, Write::Replace, Strictness::Strict)
        };
        let body = |quota| json!({"clone_quota_mb": quota});
        assert_eq!(image_quota(reader(body(json!(7)))).unwrap(), Some(7));
        assert_eq!(client_quota(reader(body(json!(0)))).unwrap(), Some(0));
        assert_eq!(client_quota(reader(body(json!(null)))).unwrap(), None);
        assert!(image_quota(reader(body(json!(0)))).is_err());
        for bad in [
            json!(-1),
            json!(1.5),
            json!("7"),
            json!(i64::MAX),
            json!([]),
        ] {
            assert!(client_quota(reader(body(bad.clone()))).is_err(), "{bad}");
        }
        assert!(image_quota(reader(json!({}))).is_err());
        assert!(image_quota(reader(json!({"clone_quota_mb": 1, "x": 2}))).is_err());
    }
}
