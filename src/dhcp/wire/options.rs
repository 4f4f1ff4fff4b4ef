//! Which options a reply has, most important first, each in wire form.
//!
//! The order is that in which they are kept when a small packet cannot hold all: 53, 54, 61,
//! 51, 1, 3, 6, 60, 43, 67, 66, 97, 175, then the rest, then the range's own codes. Option 82
//! is not here: it comes last, see `encode`.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Encodable, MessageType, OptionCode, UnknownOption};
use dhcproto::{Name, v4};

use super::{Frame, Request, Vendor};
use crate::dhcp::decide::{Boot, NakReason, Reply, ReplyKind, Shape};
use crate::model::{Client, Hostname, Lease, NetworkConfig, NetworkRange, Route};

/// PXE 2.1 section 2.2.5, encapsulated 6: bit 3 says "use the boot file of this packet", so
/// that the ROM neither waits for a proxy nor shows a menu.
const DISCOVERY_CONTROL: [u8; 3] = [6, 1, 8];
/// iPXE's encapsulated 176: no proxyDHCP will come, do not wait for one.
const NO_PXEDHCP: [u8; 3] = [176, 1, 1];
/// Codes that a range may not set: they belong to the protocol.
const PROTOCOL: [u8; 11] = [0, 50, 51, 52, 53, 54, 58, 59, 61, 82, 255];

/// The options of a reply and what its fixed fields say beside them.
pub(super) struct Contents {
    /// Code and wire form (code, length, data, as often as needed), most important first.
    pub(super) options: Vec<(u8, Vec<u8>)>,
    /// siaddr; 0.0.0.0 where nothing is to be booted.
    pub(super) next_server: Ipv4Addr,
    /// The boot file, for the `file` field.
    pub(super) boot_file: Option<Vec<u8>>,
}

/// Gathers them.
pub(super) fn contents(request: &Request, reply: &Reply, frame: &Frame<'_>) -> Contents {
    let mut list = List::default();
    list.add(DhcpOption::MessageType(match reply.kind {
        ReplyKind::Offer => MessageType::Offer,
        ReplyKind::Ack => MessageType::Ack,
        ReplyKind::Nak(_) => MessageType::Nak,
    }));
    // RFC 5107 section 4: where the relay says so, its address stands for ours.
    let server_id = request.server_id_override.unwrap_or(frame.server_ip);
    list.add(DhcpOption::ServerIdentifier(server_id));
    // RFC 6842 section 3: echoed, whatever the answer.
    if let Some(id) = &request.client_identifier {
        list.add_raw(61, id);
    }
    if let ReplyKind::Nak(reason) = reply.kind {
        list.add(DhcpOption::Message(sentence(reason).to_owned()));
    }
    match reply.shape {
        Shape::Full => {
            if let Some(seconds) = reply.lease_seconds {
                list.add(DhcpOption::AddressLeaseTime(seconds));
            }
            network(&mut list, request, frame);
            boot(&mut list, request, reply, frame);
            if let Some(seconds) = reply.lease_seconds.filter(|s| *s != Lease::INFINITE) {
                times(&mut list, seconds);
            }
            extras(&mut list, request, frame);
        }
        Shape::Inform => {
            network(&mut list, request, frame);
            boot(&mut list, request, reply, frame);
            extras(&mut list, request, frame);
        }
        Shape::Proxy => boot(&mut list, request, reply, frame),
        Shape::Nak => {}
    }
    let mut boot_file = boot_file(reply, frame).map(String::into_bytes);
    let mut next_server = frame.server_ip;
    if matches!(reply.shape, Shape::Full | Shape::Inform) {
        for (code, data) in frame.range.into_iter().flat_map(raw_options) {
            // The field says what the option says: some firmware reads only the field.
            match code {
                67 if boot_file.is_some() => boot_file = Some(data.clone()),
                66 => next_server = text_address(&data).unwrap_or(next_server),
                _ => {}
            }
            list.set_raw(code, &data);
        }
    }
    Contents {
        options: list.0,
        next_server: match boot_file {
            Some(_) => next_server,
            None => Ipv4Addr::UNSPECIFIED,
        },
        boot_file,
    }
}

/// The name or URL of what is to be booted.
fn boot_file(reply: &Reply, frame: &Frame<'_>) -> Option<String> {
    match &reply.boot {
        Boot::Nothing => None,
        Boot::TftpLoader(name) => Some(name.clone()),
        Boot::HttpLoader(name) => Some(format!("{}{name}", frame.loader_base_url)),
        Boot::Script => frame.script_url.map(str::to_owned),
    }
    .filter(|file| !file.is_empty())
}

/// Options 1, 3 and 6.
fn network(list: &mut List, _: &Request, frame: &Frame<'_>) {
    let Some(range) = frame.range else { return };
    let own = own(frame.client);
    list.add(DhcpOption::SubnetMask(range.network.mask()));
    list.addresses(DhcpOption::Router, gateway(range, own).as_slice());
    let dns = own.and_then(|o| o.dns.as_ref()).unwrap_or(&range.dns);
    list.addresses(DhcpOption::DomainNameServer, dns);
}

/// The boot part: 60, 43, 67, 66, 97, 175.
fn boot(list: &mut List, request: &Request, reply: &Reply, frame: &Frame<'_>) {
    let Some(file) = boot_file(reply, frame) else {
        return;
    };
    let proxy = reply.shape == Shape::Proxy;
    let (class, by_tftp): (Option<&[u8]>, bool) = match reply.boot {
        Boot::Nothing => return,
        // RFC 4578 section 2.4, and UEFI 2.10 section 24.7.3 for HTTP: firmware ignores an
        // offer that does not carry its own class. Never both.
        Boot::TftpLoader(_) => (Some(b"PXEClient"), true),
        Boot::HttpLoader(_) => (Some(b"HTTPClient"), false),
        // iPXE knows a proxy by the class, and takes a full server that shows it for one too.
        Boot::Script => (proxy.then_some(b"PXEClient".as_slice()), false),
    };
    if let Some(class) = class {
        list.add_raw(60, class);
        if class == b"PXEClient" && request.vendor != Vendor::Http {
            let mut vendor = DISCOVERY_CONTROL.to_vec();
            // PXE 2.1 section 2.4.3: a boot server's ACK names the item that was asked for.
            if let Some(item) = request.boot_item.as_deref().filter(|i| i.len() <= 32) {
                vendor.push(71);
                vendor.push(u8::try_from(item.len()).unwrap_or(0));
                vendor.extend_from_slice(item);
            }
            vendor.push(255);
            list.add_raw(43, &vendor);
        }
    }
    list.add_raw(67, file.as_bytes());
    if by_tftp {
        list.add_raw(66, frame.server_ip.to_string().as_bytes());
        // RFC 5859: for who asks for it by number.
        if request.wanted.contains(&150) {
            list.add(DhcpOption::TFTPServerAddress(frame.server_ip));
        }
    }
    if let Some(id) = &request.machine_id {
        list.add_raw(97, id);
    }
    if request.ipxe && !proxy {
        list.add_raw(175, &NO_PXEDHCP);
    }
}

/// Options 58 and 59 (RFC 2131 section 4.4.5: half, and seven eighths).
fn times(list: &mut List, seconds: u32) {
    list.add(DhcpOption::Renewal(seconds / 2));
    let rebinding = u64::from(seconds) * 7 / 8;
    list.add(DhcpOption::Rebinding(
        u32::try_from(rebinding).unwrap_or(seconds),
    ));
}

/// What is nice to have: 12, 15, 28, 26, 121, 42, 119, and 97 where no boot part has it. Sent
/// if the client lists them (RFC 2131 section 4.3.1), or lists nothing; 15 always.
fn extras(list: &mut List, request: &Request, frame: &Frame<'_>) {
    let Some(range) = frame.range else { return };
    let own = own(frame.client);
    let wants = |code: u8| request.wanted.is_empty() || request.wanted.contains(&code);
    if let Some(id) = &request.machine_id
        && !list.has(97)
    {
        list.add_raw(97, id);
    }
    let name = frame.client.map(|c| c.hostname.parse::<Hostname>());
    if let Some(Ok(name)) = name
        && wants(12)
    {
        list.add(DhcpOption::Hostname(name.as_str().to_owned()));
    }
    let domain = own
        .and_then(|o| o.domain.as_ref())
        .or(range.domain.as_ref());
    if let Some(domain) = domain.filter(|d| !d.is_empty()) {
        list.add(DhcpOption::DomainName(domain.clone()));
    }
    if wants(28) && range.network.prefix() < 31 {
        list.add(DhcpOption::BroadcastAddr(range.network.broadcast()));
    }
    // RFC 2132 section 5.1: 68 is the least.
    let mtu = own.and_then(|o| o.mtu).or(range.mtu);
    if let Some(mtu) = mtu.filter(|m| *m >= 68 && wants(26)) {
        list.add(DhcpOption::InterfaceMtu(mtu));
    }
    if wants(121) && !range.routes.is_empty() {
        list.add_raw(121, &routes(&range.routes, gateway(range, own)));
    }
    if wants(42) {
        let ntp = own.and_then(|o| o.ntp.as_ref()).unwrap_or(&range.ntp);
        list.addresses(DhcpOption::NtpServers, ntp);
    }
    if wants(119) {
        let search = own.and_then(|o| o.search.as_ref()).unwrap_or(&range.search);
        let names: Vec<Name> = search
            .iter()
            .filter_map(|n| Name::from_ascii(n).ok())
            .filter(|n| !n.is_root())
            .collect();
        if !names.is_empty() {
            list.add(DhcpOption::DomainSearch(names));
        }
    }
}

/// RFC 3442: who understands 121 must ignore 3, so the default route goes in too.
fn routes(routes: &[Route], gateway: Option<Ipv4Addr>) -> Vec<u8> {
    let mut data = Vec::new();
    let mut push = |network: Ipv4Addr, prefix: u8, via: Ipv4Addr| {
        data.push(prefix);
        let bytes = usize::from(prefix).div_ceil(8);
        data.extend(network.octets().into_iter().take(bytes));
        data.extend(via.octets());
    };
    for route in routes {
        push(route.to.network(), route.to.prefix(), route.via);
    }
    let has_default = routes.iter().any(|r| r.to.prefix() == 0);
    if let Some(via) = gateway
        && !has_default
    {
        push(Ipv4Addr::UNSPECIFIED, 0, via);
    }
    data
}

fn own(client: Option<&Client>) -> Option<&NetworkConfig> {
    client.and_then(|c| c.network_config.as_ref())
}

fn gateway(range: &NetworkRange, own: Option<&NetworkConfig>) -> Option<Ipv4Addr> {
    own.and_then(|o| o.gateway).or(range.gateway)
}

/// The range's own codes, as far as they may be set and are hex.
fn raw_options(range: &NetworkRange) -> impl Iterator<Item = (u8, Vec<u8>)> + '_ {
    range
        .options
        .iter()
        .filter(|(code, _)| !PROTOCOL.contains(code))
        .filter_map(|(code, hex)| Some((*code, bytes_of(hex)?)))
        .filter(|(_, data)| !data.is_empty())
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex
        .chars()
        .filter(|c| !matches!(c, ':' | ' ' | '-'))
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect();
    let digits = digits?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn text_address(data: &[u8]) -> Option<Ipv4Addr> {
    std::str::from_utf8(data)
        .ok()?
        .trim_end_matches('\0')
        .parse()
        .ok()
}

fn sentence(reason: NakReason) -> &'static str {
    match reason {
        NakReason::WrongNetwork => "that address belongs to another network",
        NakReason::WrongAddress => "another address is yours here",
        NakReason::Taken => "that address is somebody else's",
        NakReason::NotServed => "that address is not handed out",
    }
}

/// Options in wire form, by dhcproto's encoder, which splits what is over 255 bytes
/// (RFC 3396 section 7). An option without data is never sent.
#[derive(Default)]
struct List(Vec<(u8, Vec<u8>)>);

impl List {
    fn add(&mut self, option: DhcpOption) {
        let code = u8::from(OptionCode::from(&option));
        if let Some(wire) = wire(&option) {
            self.0.push((code, wire));
        }
    }

    fn add_raw(&mut self, code: u8, data: &[u8]) {
        self.add(raw(code, data));
    }

    fn addresses(&mut self, make: fn(Vec<Ipv4Addr>) -> DhcpOption, addresses: &[Ipv4Addr]) {
        if !addresses.is_empty() {
            self.add(make(addresses.to_vec()));
        }
    }

    /// Puts it where that code is, else at the end.
    fn set_raw(&mut self, code: u8, data: &[u8]) {
        let Some(wire) = wire(&raw(code, data)) else {
            return;
        };
        match self.0.iter_mut().find(|(c, _)| *c == code) {
            Some((_, place)) => *place = wire,
            None => self.0.push((code, wire)),
        }
    }

    fn has(&self, code: u8) -> bool {
        self.0.iter().any(|(c, _)| *c == code)
    }
}

/// An option whose data we made ourselves.
pub(super) fn raw(code: u8, data: &[u8]) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(
        v4::OptionCode::from(code),
        data.to_vec(),
    ))
}

/// Its wire form; `None` for one that has none.
pub(super) fn wire(option: &DhcpOption) -> Option<Vec<u8>> {
    option.to_vec().ok().filter(|w| w.len() > 2)
}
