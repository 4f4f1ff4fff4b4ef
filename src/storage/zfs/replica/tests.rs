//! Words that programs say, and names; what needs a pool is in the lab.

use super::*;

#[test]
fn what_zfs_says_of_a_receivers_words_is_read() {
    let said = "resume token contents:\nnvlist version: 0\n\tfromguid = 0x77621075c868066b\n\
                \tobject = 0x1\n\ttoguid = 0x8d742570eb2800b8\n\ttoname = one/dls/x@y\n\
                incremental\tone/dls/a#b\tone/dls/x@y\t106008\nsize\t106008\n";
    let expected = (Some(0x8d74_2570_eb28_00b8), Some(0x7762_1075_c868_066b));
    assert_eq!(points(said), expected);
    assert_eq!(length(said), 106_008);
    assert_eq!(points("full\ta\t5\nsize\t5\n"), (None, None));
}

#[test]
fn words_that_are_none_are_not_handed_on() {
    assert!(may_be_words("1-14fac792f6-100-789c63"));
    for bad in ["", "-", "-t", "1-; x", "2-00", "1-zz"] {
        assert!(!may_be_words(bad), "{bad}");
    }
    assert!(!may_be_words(&format!("1-{}", "0".repeat(5000))));
}

#[test]
fn only_versions_are_starts() {
    let id = Uuid::from_u128(5);
    let word = |name: &str| format!("image.{}.{name}", id.simple());
    assert_eq!(version(&word("base")), Some(id));
    assert_eq!(version(&word("other")), None);
    assert_eq!(version(&format!("session.{}.base", id.simple())), None);
    let text = format!("a/b@x\t12\t7\na/b#{}\t13\t8\nodd\n", word("base"));
    let marks = marks(&text);
    assert_eq!(
        (marks.len(), marks["a/b@x"].guid, marks["a/b@x"].made),
        (2, 12, 7)
    );
}
