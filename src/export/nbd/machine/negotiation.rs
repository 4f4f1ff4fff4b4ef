//! The handshake as a machine: bytes in, replies out, and now and then something that only
//! its owner can do (start TLS, tell of a disk, open one). It opens nothing by itself.
//!
//! ```text
//! Flags --client flags--> Options --STARTTLS--> (owner: TLS) --> Flags
//!                         Options --INFO-->     (owner: size) --> Options
//!                         Options --GO-->       (owner: disk) --> transmission | Options
//!                         Options --EXPORT_NAME (owner: disk) --> transmission | end
//! ```
//!
//! What it holds is bounded: it never waits for an option of more than [`LONGEST_OPTION`]
//! bytes to be complete, and longer ones pass through it uncollected.

use super::super::wire::Reader;
use super::super::wire::handshake::{
    self as wire, InfoRequest, LONGEST_STRING, MetaRequest, OPTION_HEADER, OptionCode, OptionError,
    OptionHeader, Wanted,
};
use super::super::wire::transmission::ALLOCATION_ID;

/// Longest option data that is collected, in bytes: a name and queries have room.
pub const LONGEST_OPTION: usize = 8192;
/// Longest option data that is passed over and refused; a longer one ends the connection.
pub const LONGEST_SKIP: u32 = 64 * 1024;
/// Most options of a connection.
pub const MOST_OPTIONS: u32 = 32;
/// Least, and most, bytes of one request that are advertised.
pub const BLOCK_SIZES: (u32, u32) = (1, super::request::LONGEST_REQUEST);
/// The one metadata context.
const ALLOCATION: &str = "base:allocation";

/// Whether TLS can be had, and whether it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// No certificate.
    NoTls,
    /// Who wants it.
    Tls,
    /// Nothing goes without ("FORCEDTLS").
    OnlyTls,
}

/// How a disk was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// EXPORT_NAME: can't be refused in words.
    ExportName,
    /// GO.
    Go,
    /// INFO: to be told of, not opened.
    Info,
}

/// A disk is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The export's name.
    pub name: String,
    /// How.
    pub way: Way,
    wanted: Wanted,
}

/// What an opened disk is told as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Bytes that are best asked for at once.
    pub preferred_block: u32,
}

/// Which metadata is told in the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contexts {
    /// None: BLOCK_STATUS is refused.
    None,
    /// `base:allocation`.
    Allocation,
}

/// Why a disk is refused, and in which words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The protocol's error.
    pub error: OptionError,
    /// The sentence.
    pub text: String,
}

/// Why a handshake ends; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The client said ABORT.
    Aborted,
    /// Client flags that we do not know.
    UnknownFlags,
    /// No `IHAVEOPT` where one must be.
    BadMagic,
    /// An option of more than 64 KiB.
    HugeOption,
    /// More than 32 options.
    TooManyOptions,
    /// EXPORT_NAME where TLS must come first.
    PlainExportName,
    /// EXPORT_NAME with a name that is none.
    BadExportName,
    /// EXPORT_NAME of a disk that is refused.
    Refused,
    /// Bytes after STARTTLS that came before TLS.
    Injected,
    /// An option of a client that knows EXPORT_NAME only.
    NotFixed,
}

impl Ending {
    /// Metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::UnknownFlags => "unknown_flags",
            Self::BadMagic => "bad_magic",
            Self::HugeOption => "huge_option",
            Self::TooManyOptions => "too_many_options",
            Self::PlainExportName => "plain_export_name",
            Self::BadExportName => "bad_export_name",
            Self::Refused => "refused",
            Self::Injected => "injected",
            Self::NotFixed => "not_fixed",
        }
    }
}

/// What the owner has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Bring more bytes.
    More,
    /// Send what is written, start TLS, then go on with [`Negotiation::secured`].
    StartTls,
    /// Look the disk up or open it, then answer by [`Negotiation::opened`] or
    /// [`Negotiation::refused`].
    Open(Opening),
    /// Send what is written and close.
    End(Ending),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    Plain,
    Secured,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replies {
    Simple,
    Structured,
}

#[derive(Debug)]
enum State {
    /// The client's flags come next.
    Flags,
    /// An option's header comes next.
    Options,
    /// That many bytes of an option are to be passed over.
    Skip { code: OptionCode, left: u32 },
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Negotiation {
    offer: Offer,
    tls: Tls,
    state: State,
    options: u32,
    fixed: bool,
    zeroes: bool,
    replies: Replies,
    /// The name that contexts were asked for, if one was granted.
    context_of: Option<Box<[u8]>>,
}

impl Negotiation {
    /// Begins; the owner sends [`wire::greeting`] first.
    #[must_use]
    pub const fn new(offer: Offer) -> Self {
        Self {
            offer,
            tls: Tls::Plain,
            state: State::Flags,
            options: 0,
            fixed: false,
            zeroes: true,
            replies: Replies::Simple,
            context_of: None,
        }
    }

    /// TLS has started: nothing that was agreed on in plain text holds any more
    /// (CVE-2021-3716), but for the client's flags, which are not sent again.
    #[must_use]
    pub fn secured(self) -> Self {
        Self {
            tls: Tls::Secured,
            state: State::Options,
            replies: Replies::Simple,
            context_of: None,
            ..self
        }
    }

    /// True if READ is to be answered in chunks.
    #[must_use]
    pub fn structured(&self) -> bool {
        self.replies == Replies::Structured
    }

    /// The metadata that was agreed on for `name`: what was asked for another name does not
    /// count ("Metadata querying").
    #[must_use]
    pub fn contexts(&self, name: &str) -> Contexts {
        match &self.context_of {
            Some(of) if **of == *name.as_bytes() => Contexts::Allocation,
            _ => Contexts::None,
        }
    }

    /// Takes what it can from the front of `input` and writes replies to `out`. Returns how
    /// many bytes it took, and what is to be done. To be called again with the rest as long
    /// as it takes any.
    pub fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Turn) {
        match self.state {
            State::Flags => self.flags(input),
            State::Skip { code, left } => {
                let here = u32::try_from(input.len()).unwrap_or(u32::MAX).min(left);
                let left = left - here;
                self.state = State::Skip { code, left };
                if left == 0 {
                    self.state = State::Options;
                    wire::error(code, OptionError::TooBig, "the option is too long", out);
                }
                (usize::try_from(here).unwrap_or(input.len()), Turn::More)
            }
            State::Options => self.option(input, out),
        }
    }

    fn flags(&mut self, input: &[u8]) -> (usize, Turn) {
        let Some(flags) = Reader::new(input).u32() else {
            return (0, Turn::More);
        };
        let known = u32::from(wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
        if flags & !known != 0 {
            return (4, Turn::End(Ending::UnknownFlags));
        }
        self.fixed = flags & u32::from(wire::FIXED_NEWSTYLE) != 0;
        self.zeroes = flags & u32::from(wire::NO_ZEROES) == 0;
        self.state = State::Options;
        (4, Turn::More)
    }

    fn option(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Turn) {
        let Some(head) = input.first_chunk::<OPTION_HEADER>() else {
            return (0, Turn::More);
        };
        let Some(header) = OptionHeader::parse(head) else {
            return (OPTION_HEADER, Turn::End(Ending::BadMagic));
        };
        let code = header.code;
        if self.options >= MOST_OPTIONS {
            return (OPTION_HEADER, Turn::End(Ending::TooManyOptions));
        }
        if header.length > LONGEST_SKIP {
            wire::error(code, OptionError::TooBig, "the option is too long", out);
            return (OPTION_HEADER, Turn::End(Ending::HugeOption));
        }
        if !self.fixed && code != OptionCode::ExportName {
            return (OPTION_HEADER, Turn::End(Ending::NotFixed));
        }
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if code == OptionCode::ExportName && length > LONGEST_STRING {
            return (OPTION_HEADER, Turn::End(Ending::BadExportName));
        }
        if length > LONGEST_OPTION {
            self.options += 1;
            let left = header.length;
            self.state = State::Skip { code, left };
            return (OPTION_HEADER, Turn::More);
        }
        let end = OPTION_HEADER + length;
        let Some(data) = input.get(OPTION_HEADER..end) else {
            return (0, Turn::More);
        };
        self.options += 1;
        let turn = self.answer(code, data, out);
        if turn == Turn::StartTls && input.len() > end {
            // A client waits for our ACK before it begins TLS, so these bytes are not its own.
            return (input.len(), Turn::End(Ending::Injected));
        }
        (end, turn)
    }

    fn answer(&mut self, code: OptionCode, data: &[u8], out: &mut Vec<u8>) -> Turn {
        let must_secure = self.offer == Offer::OnlyTls && self.tls == Tls::Plain;
        if must_secure && !matches!(code, OptionCode::StartTls | OptionCode::Abort) {
            if code == OptionCode::ExportName {
                return Turn::End(Ending::PlainExportName);
            }
            let text = "this server speaks of disks in TLS only";
            wire::error(code, OptionError::TlsRequired, text, out);
            return Turn::More;
        }
        let invalid = |text: &str, out: &mut Vec<u8>| {
            wire::error(code, OptionError::Invalid, text, out);
            Turn::More
        };
        match code {
            OptionCode::ExportName => {
                let wanted = Wanted::default();
                match name(data) {
                    Some(name) => Turn::Open(Opening {
                        name,
                        way: Way::ExportName,
                        wanted,
                    }),
                    None => Turn::End(Ending::BadExportName),
                }
            }
            OptionCode::Abort => {
                wire::ack(code, out);
                Turn::End(Ending::Aborted)
            }
            _ if !data.is_empty()
                && matches!(
                    code,
                    OptionCode::List | OptionCode::StartTls | OptionCode::StructuredReply
                ) =>
            {
                invalid("this option has no data", out)
            }
            OptionCode::List => {
                // Names are secrets: the list is empty.
                wire::ack(code, out);
                Turn::More
            }
            OptionCode::StartTls => match (self.offer, self.tls) {
                (Offer::NoTls, _) => {
                    let text = "this server has no certificate";
                    wire::error(code, OptionError::Policy, text, out);
                    Turn::More
                }
                (_, Tls::Secured) => invalid("TLS has been started", out),
                (_, Tls::Plain) => {
                    wire::ack(code, out);
                    Turn::StartTls
                }
            },
            OptionCode::Info | OptionCode::Go => {
                let Some(info) = InfoRequest::parse(data) else {
                    return invalid("lengths do not fit", out);
                };
                let Some(name) = name(info.name) else {
                    return invalid("an export's name is text without control characters", out);
                };
                let way = match code {
                    OptionCode::Go => Way::Go,
                    _ => Way::Info,
                };
                let wanted = info.wanted;
                Turn::Open(Opening { name, way, wanted })
            }
            OptionCode::StructuredReply => {
                self.replies = Replies::Structured;
                wire::ack(code, out);
                Turn::More
            }
            OptionCode::ListMetaContext | OptionCode::SetMetaContext => {
                let set = code == OptionCode::SetMetaContext;
                if set {
                    // A later request replaces an earlier one, also when it is refused.
                    self.context_of = None;
                }
                if self.replies != Replies::Structured {
                    return invalid("structured replies come first", out);
                }
                let Some(request) = MetaRequest::parse(data) else {
                    return invalid("lengths do not fit", out);
                };
                self.contexts_of(code, &request, out);
                Turn::More
            }
            OptionCode::Unknown(_) => {
                let text = "this server does not know the option";
                wire::error(code, OptionError::Unsupported, text, out);
                Turn::More
            }
        }
    }

    /// Answers for any name: whether a disk is there is told to who opens it.
    fn contexts_of(&mut self, code: OptionCode, request: &MetaRequest<'_>, out: &mut Vec<u8>) {
        let set = code == OptionCode::SetMetaContext;
        // Listing without queries means all, and `base:` all of that namespace; setting takes
        // full names only.
        let all = !set && request.count == 0;
        let mut queries = request.queries();
        let asked = queries.any(|q| q == ALLOCATION.as_bytes() || (!set && q == b"base:"));
        if all || asked {
            // In a list the id has no meaning and is 0.
            let id = if set { ALLOCATION_ID } else { 0 };
            wire::meta_context(code, id, ALLOCATION, out);
        }
        if set && asked {
            self.context_of = Some(request.name.into());
        }
        wire::ack(code, out);
    }

    /// The disk is open (or, for INFO, there): writes the answer.
    pub fn opened(&self, opening: &Opening, export: Export, out: &mut Vec<u8>) {
        let code = match opening.way {
            Way::ExportName => {
                wire::export(export.size, export.flags, self.zeroes, out);
                return;
            }
            Way::Go => OptionCode::Go,
            Way::Info => OptionCode::Info,
        };
        wire::info_export(code, export.size, export.flags, out);
        if opening.wanted.name {
            wire::info_name(code, &opening.name, out);
        }
        if opening.wanted.block_size {
            let sizes = [BLOCK_SIZES.0, export.preferred_block, BLOCK_SIZES.1];
            wire::info_block_size(code, sizes, out);
        }
        wire::ack(code, out);
    }

    /// The disk is refused: writes the answer, or ends a handshake that has none.
    pub fn refused(&self, opening: &Opening, why: &Refused, out: &mut Vec<u8>) -> Turn {
        let code = match opening.way {
            Way::ExportName => return Turn::End(Ending::Refused),
            Way::Go => OptionCode::Go,
            Way::Info => OptionCode::Info,
        };
        wire::error(code, why.error, &why.text, out);
        Turn::More
    }
}

/// A name as text: UTF-8 without control characters ("Values").
fn name(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (text.len() <= LONGEST_STRING && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn option(code: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = wire::OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn go(name: &str) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&[0, 1, 0, 3]);
        data
    }

    fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
        for query in queries {
            data.extend_from_slice(&u32::try_from(query.len()).unwrap().to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        data
    }

    /// Everything that it says to the bytes, as long as it takes any.
    fn talk(machine: &mut Negotiation, mut input: &[u8]) -> (Vec<u8>, Turn) {
        let mut out = Vec::new();
        loop {
            let (took, turn) = machine.take(input, &mut out);
            input = &input[took..];
            if turn != Turn::More || took == 0 || input.is_empty() {
                return (out, turn);
            }
        }
    }

    fn begun(offer: Offer) -> Negotiation {
        let mut machine = Negotiation::new(offer);
        assert_eq!(talk(&mut machine, &[0, 0, 0, 3]), (Vec::new(), Turn::More));
        machine
    }

    /// Number of the one reply.
    fn kind(out: &[u8]) -> u32 {
        u32::from_be_bytes(out[12..16].try_into().unwrap())
    }

    #[test]
    fn a_handshake_asks_for_its_disk() {
        let mut machine = begun(Offer::NoTls);
        let (out, _) = talk(&mut machine, &option(8, &[]));
        assert_eq!(kind(&out), 1);
        talk(
            &mut machine,
            &option(10, &meta("disk", &["base:allocation"])),
        );
        let (out, turn) = talk(&mut machine, &option(7, &go("disk")));
        assert!(out.is_empty(), "nothing is said before the disk is open");
        let Turn::Open(opening) = turn else {
            panic!("{turn:?}")
        };
        assert_eq!((opening.name.as_str(), opening.way), ("disk", Way::Go));
        assert!(machine.structured());
        assert_eq!(machine.contexts("disk"), Contexts::Allocation);
        assert_eq!(machine.contexts("other"), Contexts::None);
        let export = Export {
            size: 512,
            flags: 1,
            preferred_block: 4096,
        };
        let mut out = Vec::new();
        machine.opened(&opening, export, &mut out);
        assert_eq!(out.len(), (20 + 12) + (20 + 14) + 20);
        let why = Refused {
            error: OptionError::Unknown,
            text: "no".to_owned(),
        };
        let mut out = Vec::new();
        assert_eq!(machine.refused(&opening, &why, &mut out), Turn::More);
        assert_eq!(kind(&out), 0x8000_0006);
    }

    #[test]
    fn a_later_context_replaces_an_earlier_one() {
        let mut machine = begun(Offer::NoTls);
        talk(&mut machine, &option(8, &[]));
        let good = option(10, &meta("disk", &["x", "base:allocation"]));
        talk(&mut machine, &good);
        assert_eq!(machine.contexts("disk"), Contexts::Allocation);
        // Listing changes nothing; setting to nothing, to a wildcard or to nonsense does.
        talk(&mut machine, &option(9, &meta("disk", &[])));
        assert_eq!(machine.contexts("disk"), Contexts::Allocation);
        for data in [meta("disk", &[]), meta("disk", &["base:"]), vec![1]] {
            talk(&mut machine, &good);
            talk(&mut machine, &option(10, &data));
            assert_eq!(machine.contexts("disk"), Contexts::None);
        }
    }

    #[test]
    fn tls_forgets_what_came_before() {
        let mut machine = begun(Offer::Tls);
        talk(&mut machine, &option(8, &[]));
        talk(
            &mut machine,
            &option(10, &meta("disk", &["base:allocation"])),
        );
        let (out, turn) = talk(&mut machine, &option(5, &[]));
        assert_eq!((kind(&out), turn), (1, Turn::StartTls));
        let mut machine = machine.secured();
        assert!(!machine.structured());
        assert_eq!(machine.contexts("disk"), Contexts::None);
        let (out, turn) = talk(&mut machine, &option(5, &[]));
        assert_eq!((kind(&out), turn), (0x8000_0003, Turn::More));
    }

    #[test]
    fn bytes_behind_starttls_end_it() {
        let mut machine = begun(Offer::Tls);
        let mut bytes = option(5, &[]);
        bytes.push(0);
        let (_, turn) = talk(&mut machine, &bytes);
        assert_eq!(turn, Turn::End(Ending::Injected));
    }

    #[test]
    fn without_tls_little_is_said_where_it_is_demanded() {
        for code in [3, 4, 6, 7, 8, 9, 10, 11, 77] {
            let mut machine = begun(Offer::OnlyTls);
            let (out, turn) = talk(&mut machine, &option(code, &go("disk")));
            assert_eq!((kind(&out), turn), (0x8000_0005, Turn::More), "{code}");
        }
        let mut machine = begun(Offer::OnlyTls);
        let (_, turn) = talk(&mut machine, &option(1, b"disk"));
        assert_eq!(turn, Turn::End(Ending::PlainExportName));
        let mut machine = begun(Offer::OnlyTls);
        let (_, turn) = talk(&mut machine, &option(2, &[]));
        assert_eq!(turn, Turn::End(Ending::Aborted));
    }

    #[test]
    fn long_options_pass_through() {
        let mut machine = begun(Offer::NoTls);
        let mut bytes = option(7, &vec![0; LONGEST_OPTION + 1]);
        bytes.extend(option(3, &[]));
        let mut out = Vec::new();
        // In small pieces, none of which is kept.
        let mut kept: Vec<u8> = Vec::new();
        for piece in bytes.chunks(100) {
            kept.extend_from_slice(piece);
            loop {
                let (took, turn) = machine.take(&kept, &mut out);
                kept.drain(..took);
                assert_eq!(turn, Turn::More);
                if took == 0 {
                    break;
                }
            }
            assert!(kept.len() < 200);
        }
        assert_eq!(kind(&out), 0x8000_0009);
        assert_eq!(kind(&out[out.len() - 20..]), 1, "LIST, in step");
        let mut head = option(7, &[]);
        head[12..].copy_from_slice(&65_537_u32.to_be_bytes());
        let (_, turn) = talk(&mut machine, &head);
        assert_eq!(turn, Turn::End(Ending::HugeOption));
    }

    #[test]
    fn the_thirty_third_option_ends_it() {
        let mut machine = begun(Offer::NoTls);
        for _ in 0..MOST_OPTIONS {
            assert_eq!(talk(&mut machine, &option(3, &[])).1, Turn::More);
        }
        let (_, turn) = talk(&mut machine, &option(3, &[]));
        assert_eq!(turn, Turn::End(Ending::TooManyOptions));
    }

    /// Options, rather like real ones.
    fn options() -> impl Strategy<Value = Vec<u8>> {
        let data = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            Just(go("disk")),
            Just(meta("disk", &["base:allocation"])),
            Just(Vec::new()),
        ];
        let one = (0_u32..12, data).prop_map(|(code, data)| option(code, &data));
        prop::collection::vec(one, 0..40).prop_map(|all| all.concat())
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            bytes in prop_oneof![options(), prop::collection::vec(any::<u8>(), 0..200)],
            size in 1_usize..50,
            offer in prop_oneof![Just(Offer::NoTls), Just(Offer::Tls), Just(Offer::OnlyTls)],
        ) {
            let run = |size: usize| {
                let mut machine = begun(offer);
                let (mut out, mut kept) = (Vec::new(), Vec::new());
                for piece in bytes.chunks(size) {
                    kept.extend_from_slice(piece);
                    loop {
                        let (took, turn) = machine.take(&kept, &mut out);
                        prop_assert!(took <= kept.len());
                        prop_assert!(kept.len() - took <= OPTION_HEADER + LONGEST_OPTION + size);
                        kept.drain(..took);
                        // At STARTTLS it makes one: what is behind it must not be there yet.
                        if turn != Turn::More {
                            return Ok((out, matches!(turn, Turn::Open(_) | Turn::End(_))));
                        }
                        if took == 0 {
                            break;
                        }
                    }
                }
                Ok((out, false))
            };
            let (whole, pieces) = (run(bytes.len().max(1))?, run(size)?);
            prop_assert!(whole.0.len() < 40 * 200);
            if !bytes.windows(12).any(|w| w == &option(5, &[])[..12]) {
                prop_assert_eq!(whole, pieces);
            }
        }
    }
}
