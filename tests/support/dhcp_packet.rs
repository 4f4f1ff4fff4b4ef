//! DHCP packets for tests: a builder of requests, hostile ones too, and a checker of replies,
//! both written from RFC 951, 2131, 2132 and 3396 alone, without the code under test.

#![allow(
    dead_code,
    clippy::allow_attributes,
    missing_docs,
    unreachable_pub,
    reason = "several test crates include this file, and each uses a part of it"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

pub const COOKIE: [u8; 4] = [99, 130, 83, 99];
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0xbb, 1];

pub const DISCOVER: u8 = 1;
pub const REQUEST: u8 = 3;
pub const DECLINE: u8 = 4;
pub const RELEASE: u8 = 7;
pub const INFORM: u8 = 8;

/// A packet in the making.
#[derive(Debug, Clone)]
pub struct Packet {
    pub header: [u8; 236],
    pub cookie: Vec<u8>,
    pub options: Vec<u8>,
    pub end: bool,
}

/// A client's message of that kind.
pub fn packet(kind: u8) -> Packet {
    let mut header = [0; 236];
    header[..4].copy_from_slice(&[1, 1, 6, 0]);
    header[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    header[28..34].copy_from_slice(&MAC);
    let bare = Packet {
        header,
        cookie: COOKIE.to_vec(),
        options: Vec::new(),
        end: true,
    };
    bare.option(53, &[kind])
}

impl Packet {
    #[must_use]
    pub fn option(mut self, code: u8, data: &[u8]) -> Self {
        self.options.push(code);
        self.options
            .push(u8::try_from(data.len()).expect("one part"));
        self.options.extend_from_slice(data);
        self
    }

    #[must_use]
    pub fn address(self, code: u8, address: &str) -> Self {
        self.option(code, &ip(address).octets())
    }

    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.options.extend_from_slice(bytes);
        self
    }

    #[must_use]
    pub fn at(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.header[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    #[must_use]
    pub fn mac(self, mac: [u8; 6]) -> Self {
        self.at(28, &mac)
    }

    #[must_use]
    pub fn ciaddr(self, address: &str) -> Self {
        self.at(12, &ip(address).octets())
    }

    #[must_use]
    pub fn giaddr(self, address: &str) -> Self {
        self.at(24, &ip(address).octets())
    }

    #[must_use]
    pub fn broadcast(self) -> Self {
        self.at(10, &[0x80, 0])
    }

    /// The class and architecture of a BIOS or UEFI ROM.
    #[must_use]
    pub fn pxe(self, arch: u16) -> Self {
        let class = format!("PXEClient:Arch:{arch:05}:UNDI:002001");
        self.option(60, class.as_bytes())
            .option(93, &arch.to_be_bytes())
            .option(94, &[1, 2, 1])
            .option(97, &machine_id())
    }

    /// The class and architecture of UEFI HTTP Boot.
    #[must_use]
    pub fn http(self, arch: u16) -> Self {
        let class = format!("HTTPClient:Arch:{arch:05}:UNDI:003001");
        self.option(60, class.as_bytes())
            .option(93, &arch.to_be_bytes())
            .option(97, &machine_id())
    }

    /// What iPXE adds to what a ROM says.
    #[must_use]
    pub fn ipxe(self) -> Self {
        self.option(77, b"iPXE").option(175, &[0xb1, 1, 1])
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        bytes.extend_from_slice(&self.cookie);
        bytes.extend_from_slice(&self.options);
        if self.end {
            bytes.push(255);
        }
        bytes
    }
}

/// Option 97 of the machine whose SMBIOS UUID is 11223344-5566-7788-99aa-bbccddeeff00, as
/// OVMF and iPXE send it.
pub fn machine_id() -> [u8; 17] {
    [
        0, 0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
        0xff, 0,
    ]
}

pub fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

/// A reply taken apart.
#[derive(Debug, Clone)]
pub struct Checked {
    pub bytes: Vec<u8>,
    /// Each code's data, its parts joined.
    pub options: BTreeMap<u8, Vec<u8>>,
    /// Codes in the order of the wire, a repeated one once for each part.
    pub order: Vec<u8>,
}

/// Takes a reply apart, and says what is wrong in form.
pub fn check(bytes: &[u8]) -> Result<Checked, String> {
    if bytes.len() < 300 {
        return Err(format!("{} bytes", bytes.len()));
    }
    if bytes[0] != 2 || !matches!(bytes[1], 1 | 6) || bytes[2] != 6 || bytes[3] != 0 {
        return Err(format!("op, htype, hlen, hops {:?}", &bytes[..4]));
    }
    if bytes[34..44].iter().any(|b| *b != 0) {
        return Err("chaddr has more than an address".into());
    }
    if bytes[236..240] != COOKIE {
        return Err("no cookie".into());
    }
    for (name, field) in [("sname", &bytes[44..108]), ("file", &bytes[108..236])] {
        let text = field.iter().position(|b| *b == 0);
        let Some(text) = text else {
            return Err(format!("{name} has no NUL"));
        };
        if field[text..].iter().any(|b| *b != 0) {
            return Err(format!("{name} has bytes behind its NUL"));
        }
    }
    let (mut options, mut order) = (BTreeMap::<u8, Vec<u8>>::new(), Vec::new());
    let mut at = 240;
    loop {
        let code = *bytes.get(at).ok_or("no END")?;
        if code == 255 {
            break;
        }
        if code == 0 {
            return Err("PAD between options".into());
        }
        let length = usize::from(*bytes.get(at + 1).ok_or("no length")?);
        if length == 0 {
            return Err(format!("option {code} is empty"));
        }
        let data = bytes
            .get(at + 2..at + 2 + length)
            .ok_or(format!("option {code} is cut"))?;
        if order.last() != Some(&code) && order.contains(&code) {
            return Err(format!("parts of option {code} are apart"));
        }
        options.entry(code).or_default().extend_from_slice(data);
        order.push(code);
        at += 2 + length;
    }
    if bytes[at + 1..].iter().any(|b| *b != 0) {
        return Err("bytes behind END".into());
    }
    if options.get(&53).map(Vec::len) != Some(1) || order.first() != Some(&53) {
        return Err("53 is not first and one byte".into());
    }
    if order.contains(&82) && order.last() != Some(&82) {
        return Err("82 is not last".into());
    }
    let fixed: [(u8, usize); 10] = [
        (1, 4),
        (28, 4),
        (51, 4),
        (54, 4),
        (58, 4),
        (59, 4),
        (26, 2),
        (53, 1),
        (97, 17),
        (116, 1),
    ];
    for (code, length) in fixed {
        if options.get(&code).is_some_and(|d| d.len() != length) {
            return Err(format!("option {code} is not {length} bytes"));
        }
    }
    for code in [3, 6, 42] {
        if options
            .get(&code)
            .is_some_and(|d| !d.len().is_multiple_of(4))
        {
            return Err(format!("option {code} is no list of addresses"));
        }
    }
    Ok(Checked {
        bytes: bytes.to_vec(),
        options,
        order,
    })
}

impl Checked {
    pub fn kind(&self) -> u8 {
        self.options[&53][0]
    }

    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }

    pub fn text(&self, code: u8) -> Option<&str> {
        self.get(code).and_then(|d| std::str::from_utf8(d).ok())
    }

    pub fn number(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    pub fn addresses(&self, code: u8) -> Vec<String> {
        let (all, _) = self.get(code).unwrap_or_default().as_chunks::<4>();
        all.iter().map(|a| Ipv4Addr::from(*a).to_string()).collect()
    }

    fn field(&self, at: usize) -> String {
        Ipv4Addr::from(<[u8; 4]>::try_from(&self.bytes[at..at + 4]).expect("four")).to_string()
    }

    pub fn ciaddr(&self) -> String {
        self.field(12)
    }

    pub fn yiaddr(&self) -> String {
        self.field(16)
    }

    pub fn siaddr(&self) -> String {
        self.field(20)
    }

    pub fn giaddr(&self) -> String {
        self.field(24)
    }

    pub fn broadcast(&self) -> bool {
        self.bytes[10] & 0x80 != 0
    }

    fn name(field: &[u8]) -> String {
        let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    }

    pub fn sname(&self) -> String {
        Self::name(&self.bytes[44..108])
    }

    pub fn file(&self) -> String {
        Self::name(&self.bytes[108..236])
    }
}
