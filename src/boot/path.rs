//! `BootPath`: the only place that judges a path from the network.
//!
//! TFTP file names and HTTP paths become one of a closed set of things; no text of a client
//! ever becomes part of a file system path, but for a loader's base name, which is one
//! component of `[A-Za-z0-9._-]` that does not start with a dot.
//!
//! What is judged is what will be used: an HTTP path is percent-decoded once, then checked;
//! anything that would need a second decoding still holds a `%` and is no name of ours.

use std::borrow::Cow;

use uuid::Uuid;

use super::token::BootToken;

/// Longest path by either door, in bytes: a URL of ours has at most 127 (see [`super::token`]).
const LONGEST: usize = 255;

/// What a client asks for, by either door.
#[derive(Debug, Clone)]
pub enum BootPath {
    /// A loader by its base name, one path component of `[A-Za-z0-9._-]`, not starting with a dot.
    Loader(String),
    /// A thing of one boot, with the proof that came with it (HTTP), or to be proved by the
    /// sender's address (TFTP).
    Mine {
        /// Attempt and token; `None` by TFTP.
        proof: Option<(Uuid, BootToken)>,
        /// Which thing.
        item: Item,
    },
}

/// Things of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Item {
    /// `boot.ipxe` (and `autoexec.ipxe`).
    Script,
    /// `kernel`.
    Kernel,
    /// `initrd0`, `initrd1`, ...
    Initrd(u8),
    /// `up`, `beat`, `bye`: phone-home.
    Report(Report),
}

/// Phone-home calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Report {
    /// The system is up.
    Up,
    /// It lives.
    Beat,
    /// It stops.
    Bye,
}

/// Why a path is refused; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadPath {
    /// Empty or longer than 255 bytes.
    #[error("empty or too long")]
    Length,
    /// NUL, control characters, backslash, or a bad percent escape.
    #[error("forbidden characters")]
    Characters,
    /// `.` or `..` as a component.
    #[error("leaves its directory")]
    Traversal,
    /// Nothing by that name here.
    #[error("no such name")]
    Unknown,
    /// Token or id is malformed.
    #[error("malformed token")]
    Token,
}

impl BadPath {
    /// Every value, in declaration order.
    pub const ALL: &'static [Self] = &[
        Self::Length,
        Self::Characters,
        Self::Traversal,
        Self::Unknown,
        Self::Token,
    ];

    /// Metric label and log word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Length => "path_length",
            Self::Characters => "path_characters",
            Self::Traversal => "path_traversal",
            Self::Unknown => "path_unknown",
            Self::Token => "path_token",
        }
    }
}

impl Item {
    /// The thing a URL's last component or a TFTP name means.
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            // Newer iPXE asks for `autoexec.ipxe` by itself, beside the loader.
            "boot.ipxe" | "autoexec.ipxe" => Self::Script,
            "kernel" => Self::Kernel,
            "up" => Self::Report(Report::Up),
            "beat" => Self::Report(Report::Beat),
            "bye" => Self::Report(Report::Bye),
            _ => Self::Initrd(position(name.strip_prefix("initrd")?)?),
        })
    }
}

/// The one spelling of 0 to 99: no sign, no leading zero.
fn position(digits: &str) -> Option<u8> {
    let plain = match digits.as_bytes() {
        [one] => one.is_ascii_digit(),
        [first, second] => matches!(first, b'1'..=b'9') && second.is_ascii_digit(),
        _ => false,
    };
    if plain { digits.parse().ok() } else { None }
}

impl BootPath {
    /// A TFTP file name, raw bytes as received (without its NUL).
    ///
    /// Leading and double slashes mean nothing; `loader/NAME` is `NAME`, so that one name
    /// works by both doors. Phone-home calls do not go by TFTP.
    ///
    /// # Errors
    /// See [`BadPath`].
    pub fn parse_tftp(name: &[u8]) -> Result<Self, BadPath> {
        if name.is_empty() || name.len() > LONGEST {
            return Err(BadPath::Length);
        }
        match components(name)?.as_slice() {
            [name] => match Item::parse(name) {
                Some(Item::Report(_)) => Err(BadPath::Unknown),
                Some(item) => Ok(Self::Mine { proof: None, item }),
                None => loader(name),
            },
            ["loader", name] => loader(name),
            _ => Err(BadPath::Unknown),
        }
    }

    /// The path of an HTTP request target (no query), still percent-encoded:
    /// `/loader/NAME` or `/b/ID.TOKEN/ITEM`.
    ///
    /// # Errors
    /// See [`BadPath`].
    pub fn parse_http(path: &str) -> Result<Self, BadPath> {
        if path.is_empty() || path.len() > LONGEST {
            return Err(BadPath::Length);
        }
        if !path.starts_with('/') {
            return Err(BadPath::Unknown);
        }
        let decoded = percent_decode(path.as_bytes())?;
        match components(&decoded)?.as_slice() {
            ["loader", name] => loader(name),
            ["b", proof, item] => Ok(Self::Mine {
                proof: Some(parse_proof(proof).ok_or(BadPath::Token)?),
                item: Item::parse(item).ok_or(BadPath::Unknown)?,
            }),
            _ => Err(BadPath::Unknown),
        }
    }
}

/// `ID.TOKEN`, 32 hex digits each.
fn parse_proof(text: &str) -> Option<(Uuid, BootToken)> {
    let (id, token) = text.split_once('.')?;
    if id.len() != 32 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    Some((Uuid::try_parse(id).ok()?, BootToken::parse(token)?))
}

/// A loader's base name, or nothing.
fn loader(name: &str) -> Result<BootPath, BadPath> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(BadPath::Unknown);
    }
    Ok(BootPath::Loader(name.to_owned()))
}

/// Splits at slashes and drops empty components in front and between (shim and GRUB write
/// `dir//file`). A slash at the end would name a directory.
fn components(path: &[u8]) -> Result<Vec<&str>, BadPath> {
    // Names of ours are ASCII: that settles overlong UTF-8 and look-alike dots and slashes.
    if !path
        .iter()
        .all(|b| (b' '..=b'~').contains(b) && *b != b'\\')
    {
        return Err(BadPath::Characters);
    }
    let text = std::str::from_utf8(path).map_err(|_| BadPath::Characters)?;
    if text.ends_with('/') {
        return Err(BadPath::Unknown);
    }
    let parts: Vec<&str> = text.split('/').filter(|p| !p.is_empty()).collect();
    if parts.iter().any(|p| matches!(*p, "." | "..")) {
        return Err(BadPath::Traversal);
    }
    Ok(parts)
}

/// Decodes `%XX` once (RFC 3986 section 2.1); a stray `%` is refused, `+` is itself.
fn percent_decode(path: &[u8]) -> Result<Cow<'_, [u8]>, BadPath> {
    if !path.contains(&b'%') {
        return Ok(Cow::Borrowed(path));
    }
    let digit = |b: Option<&u8>| {
        let value = b.and_then(|b| char::from(*b).to_digit(16));
        value
            .and_then(|v| u8::try_from(v).ok())
            .ok_or(BadPath::Characters)
    };
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'%' => digit(rest.next())? << 4 | digit(rest.next())?,
            other => *other,
        });
    }
    Ok(Cow::Owned(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0192f0c18d8a7c3e9d6f0123456789ab";
    const TOKEN: &str = "00112233445566778899aabbccddeeff";

    fn http(path: &str) -> Result<BootPath, BadPath> {
        BootPath::parse_http(path)
    }

    fn tftp(path: &str) -> Result<BootPath, BadPath> {
        BootPath::parse_tftp(path.as_bytes())
    }

    /// What must hold of everything that is accepted, whatever was asked.
    fn assert_closed(path: &BootPath) {
        if let BootPath::Loader(name) = path {
            assert!(!name.starts_with('.'), "{name}");
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
                "{name}"
            );
            let joined = std::path::Path::new("/root").join(name);
            assert_eq!(joined.parent(), Some(std::path::Path::new("/root")));
            assert_eq!(joined.components().count(), 3, "{name}");
        }
    }

    #[test]
    fn things_by_their_names() {
        for (name, want) in [
            ("boot.ipxe", Item::Script),
            ("/autoexec.ipxe", Item::Script),
            ("//kernel", Item::Kernel),
            ("initrd0", Item::Initrd(0)),
            ("initrd42", Item::Initrd(42)),
        ] {
            let got = tftp(name);
            assert!(
                matches!(got, Ok(BootPath::Mine { proof: None, item }) if item == want),
                "{name}: {got:?}"
            );
            let url = format!("/b/{ID}.{TOKEN}/{}", name.trim_start_matches('/'));
            let got = http(&url);
            assert!(
                matches!(got, Ok(BootPath::Mine { proof: Some((id, token)), item })
                    if item == want && id.simple().to_string() == ID && token.reveal() == TOKEN),
                "{url}: {got:?}"
            );
        }
        for (name, want) in [
            ("up", Report::Up),
            ("beat", Report::Beat),
            ("bye", Report::Bye),
        ] {
            let got = http(&format!("/b/{ID}.{TOKEN}/{name}"));
            assert!(
                matches!(got, Ok(BootPath::Mine { item: Item::Report(r), .. }) if r == want),
                "{got:?}"
            );
            assert!(tftp(name).is_err(), "no phone-home by TFTP");
        }
    }

    #[test]
    fn loaders_by_either_door() {
        for path in [
            "undionly.kpxe",
            "/undionly.kpxe",
            "//undionly.kpxe",
            "loader/undionly.kpxe",
        ] {
            assert!(
                matches!(tftp(path), Ok(BootPath::Loader(n)) if n == "undionly.kpxe"),
                "{path}"
            );
        }
        for path in [
            "/loader/snponly.efi",
            "/loader//snponly.efi",
            "//loader/snponly.efi",
            "/loader/snponly%2eefi",
            "/%6coader/snponly.efi",
        ] {
            assert!(
                matches!(http(path), Ok(BootPath::Loader(n)) if n == "snponly.efi"),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_no_name_of_ours() {
        for path in [
            "/",
            "/loader",
            "/loader/",
            "/b",
            "/b/x/kernel",
            "/kernel",
            "loader/a",
            "/loader/a/b",
            "/loader/a b",
            "/loader/a?b",
            "/loader/a+b",
            "*",
            "/index.html",
        ] {
            assert!(http(path).is_err(), "{path}");
        }
        for item in [
            "",
            "initrd",
            "initrd00",
            "initrd01",
            "initrd+1",
            "initrd-1",
            "initrd100",
            "initrd1x",
            "Kernel",
            "kernel0",
            "UP",
            "upp",
        ] {
            assert!(http(&format!("/b/{ID}.{TOKEN}/{item}")).is_err(), "{item}");
        }
        for proof in [
            ID.to_owned(),
            format!("{ID}."),
            format!(".{TOKEN}"),
            format!("{ID}.{TOKEN}0"),
            format!("{ID}0.{TOKEN}"),
            format!("{ID}.{TOKEN}.{TOKEN}"),
            format!("{ID}-{TOKEN}"),
            format!("+{}.{TOKEN}", &ID[1..]),
            format!("{ID}.+{}", &TOKEN[1..]),
            format!("{{{}}}.{TOKEN}", &ID[2..]),
        ] {
            assert_eq!(
                http(&format!("/b/{proof}/kernel")).err(),
                Some(BadPath::Token),
                "{proof}"
            );
        }
        let long = "a".repeat(256);
        assert_eq!(tftp("").err(), Some(BadPath::Length));
        assert_eq!(tftp(&long).err(), Some(BadPath::Length));
        assert_eq!(http("").err(), Some(BadPath::Length));
        assert_eq!(http(&format!("/{long}")).err(), Some(BadPath::Length));
    }

    /// Every spelling of "one up" that has worked on some server, times every separator,
    /// depth, start and target. See CVE-2002-1209, CVE-2006-1951, CVE-2006-1952,
    /// CVE-2008-1620, CVE-2011-4722.
    fn traversals() -> Vec<Vec<u8>> {
        let ups: &[&[u8]] = &[
            b"..",
            b".",
            b"...",
            b"....",
            b"..;",
            b"..%00",
            b"..\0",
            b"%2e%2e",
            b"%2E%2E",
            b".%2e",
            b"%2e.",
            b"%252e%252e",
            b"%25252e%25252e",
            b"%c0%ae%c0%ae",
            b"%e0%80%ae%e0%80%ae",
            b"%f0%80%80%ae",
            b"\xc0\xae\xc0\xae",
            b"\xe0\x80\xae\xe0\x80\xae",
            "\u{ff0e}\u{ff0e}".as_bytes(),
            "\u{2024}\u{2024}".as_bytes(),
            "\u{2025}".as_bytes(),
            b"%u002e%u002e",
            b"0x2e0x2e",
            b".. ",
            b" ..",
            b"..\t",
            b"~",
            b"$HOME",
            b"${PWD}",
            b"..::",
        ];
        let separators: &[&[u8]] = &[
            b"/",
            b"//",
            b"\\",
            b"/\\",
            b"\\\\",
            b"%2f",
            b"%2F",
            b"%5c",
            b"%252f",
            b"%255c",
            b"%c0%af",
            b"\xc0\xaf",
            "\u{2215}".as_bytes(),
            "\u{ff0f}".as_bytes(),
            b"/./",
        ];
        let starts: &[&[u8]] = &[
            b"",
            b"/",
            b"//",
            b"\\",
            b"/loader/",
            b"loader/",
            b"/b/",
            b"C:",
            b"C:\\",
            b"file:///",
        ];
        let targets: &[&[u8]] = &[b"etc/passwd", b"boot.ini", b"kernel"];
        let mut all = Vec::new();
        for start in starts {
            for up in ups {
                for separator in separators {
                    for depth in 1..=3 {
                        for target in targets {
                            let mut path = start.to_vec();
                            for _ in 0..depth {
                                path.extend_from_slice(up);
                                path.extend_from_slice(separator);
                            }
                            path.extend_from_slice(target);
                            all.push(path);
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn no_traversal_spelling_leads_anywhere() {
        let all = traversals();
        assert!(all.len() >= 500, "{}", all.len());
        for path in &all {
            // What is written with single slashes or without any may be a plain name by
            // accident (`loader/./kernel` is not: dots are refused, not folded).
            assert!(
                BootPath::parse_tftp(path).is_err(),
                "{}",
                String::from_utf8_lossy(path)
            );
            if let Ok(text) = std::str::from_utf8(path) {
                assert!(http(text).is_err(), "{text}");
                assert!(http(&format!("/{text}")).is_err(), "{text}");
                assert!(http(&format!("/loader/{text}")).is_err(), "{text}");
                assert!(http(&format!("/b/{ID}.{TOKEN}/{text}")).is_err(), "{text}");
            }
        }
    }

    #[test]
    fn the_fuzz_corpus_holds_too() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/boot_path");
        let mut seen = 0;
        for entry in std::fs::read_dir(corpus).expect("the corpus is in the repository") {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            if let Ok(path) = BootPath::parse_tftp(&bytes) {
                assert_closed(&path);
            }
            if let Ok(path) = http(&String::from_utf8_lossy(&bytes)) {
                assert_closed(&path);
            }
            seen += 1;
        }
        assert!(seen >= 20, "{seen}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_closed_thing_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(path) = BootPath::parse_tftp(&bytes) {
                assert_closed(&path);
            }
            if let Ok(path) = http(&String::from_utf8_lossy(&bytes)) {
                assert_closed(&path);
            }
        }

        #[test]
        fn any_near_miss_gives_a_closed_thing_or_an_error(
            path in r"(/|//|/loader/|/b/)?((\.\.|%2e|%2f|\\|/|\.|[a-z]{1,6}|%00|%25)){0,12}"
        ) {
            if let Ok(path) = BootPath::parse_tftp(path.as_bytes()) {
                assert_closed(&path);
            }
            if let Ok(path) = http(&path) {
                assert_closed(&path);
            }
        }

        #[test]
        fn decoding_happens_once(name in "[A-Za-z0-9][A-Za-z0-9._-]{0,30}") {
            let encoded: String = name.bytes().map(|b| format!("%{b:02X}")).collect();
            let once = http(&format!("/loader/{encoded}"));
            prop_assert!(matches!(once, Ok(BootPath::Loader(n)) if n == name));
            let twice = encoded.replace('%', "%25");
            let answer = http(&format!("/loader/{twice}"));
            prop_assert!(answer.is_err());
        }
    }
}
