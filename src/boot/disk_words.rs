//! What a boot is told of its disk: names, secrets, ports, and how they stand in a kernel's
//! command line. Pure; text only. Every word is checked before it is written.

use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

use uuid::Uuid;

use super::script::is_safe;
use super::token::{Chap, chap_name, chap_secret, export_name};
use crate::model::{DiskIdentity, DiskProtocol};

/// The name that the server answers a challenge of the machine with (mutual CHAP).
pub const SERVER_NAME: &str = "dls";

/// The port of the boot listener that `dls-report` takes where nothing else is said.
pub const DEFAULT_HTTP_PORT: u16 = 8069;

/// How one boot reaches its disk.
#[derive(Clone, PartialEq, Eq)]
pub struct DiskWords {
    /// The server's address, the one by which this machine reached it.
    pub server: Ipv4Addr,
    /// Port of iSCSI.
    pub iscsi_port: u16,
    /// Port of NBD.
    pub nbd_port: u16,
    /// Name of the iSCSI target, the client's for ever.
    pub target: String,
    /// Name that the initiator is to give itself; proves nothing.
    pub initiator: String,
    /// CHAP name: the boot.
    pub username: String,
    /// CHAP secret of the machine.
    pub password: String,
    /// CHAP name of the server.
    pub server_username: String,
    /// CHAP secret of the server.
    pub server_password: String,
    /// Name of the NBD export, its proof included.
    pub export: String,
    /// The client's id.
    pub uuid: Uuid,
}

impl fmt::Debug for DiskWords {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskWords")
            .field("server", &self.server)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// The placeholders that a command line may hold.
const PLACEHOLDERS: [&str; 10] = [
    "{server}",
    "{port}",
    "{target}",
    "{initiator}",
    "{username}",
    "{password}",
    "{server_username}",
    "{server_password}",
    "{export}",
    "{uuid}",
];

impl DiskWords {
    /// The words of a boot of a client, at a server with these ports.
    #[must_use]
    pub fn new(
        site_key: &[u8],
        attempt: Uuid,
        client: Uuid,
        server: Ipv4Addr,
        (iscsi_port, nbd_port): (u16, u16),
    ) -> Self {
        Self {
            server,
            iscsi_port,
            nbd_port,
            target: DiskIdentity { owner: client }.iqn(),
            initiator: format!("iqn.2026-11.internal.dls.client:{}", client.simple()),
            username: chap_name(attempt),
            password: chap_secret(site_key, attempt, Chap::Machine),
            server_username: SERVER_NAME.to_owned(),
            server_password: chap_secret(site_key, attempt, Chap::Server),
            export: export_name(site_key, attempt),
            uuid: client,
        }
    }

    /// With the port of HTTP that the booted system reports to. One that `sanboot` started
    /// sees the boot firmware table (iBFT) and no command line of ours, and in that table the
    /// initiator's name is the only word that is ours to choose: a port other than
    /// [`DEFAULT_HTTP_PORT`] closes it (`..:PORT`).
    #[must_use]
    pub fn reporting_at(mut self, port: u16) -> Self {
        if port != DEFAULT_HTTP_PORT {
            let _ = write!(self.initiator, ":{port}");
        }
        self
    }

    /// True if each of them is one word that may stand in a script.
    #[must_use]
    pub fn are_safe(&self) -> bool {
        let words = [
            &self.target,
            &self.initiator,
            &self.username,
            &self.password,
            &self.server_username,
            &self.server_password,
            &self.export,
        ];
        words
            .iter()
            .all(|w| !w.is_empty() && !w.contains([' ', ',']) && !w.starts_with('-') && is_safe(w))
    }

    /// The disk as iPXE names it: `iscsi:SERVER:PROTOCOL:PORT:LUN:TARGET` (RFC 4173); an empty
    /// protocol is TCP.
    #[must_use]
    pub fn san_url(&self) -> String {
        let Self {
            server,
            iscsi_port,
            target,
            ..
        } = self;
        format!("iscsi:{server}::{iscsi_port}:0:{target}")
    }

    /// A command line with the disk's words in it: in the place of placeholders if it has
    /// any, else appended as the initramfs of Debian and its children reads them (packages
    /// open-iscsi and nbd-client).
    #[must_use]
    pub fn complete(&self, cmdline: &str, protocol: DiskProtocol) -> String {
        if PLACEHOLDERS.iter().any(|p| cmdline.contains(p)) {
            return self.fill(cmdline, protocol);
        }
        let words = match protocol {
            DiskProtocol::Iscsi => format!(
                "iscsi_initiator={} iscsi_target_name={} iscsi_target_ip={} iscsi_target_port={} \
                 iscsi_username={} iscsi_password={} iscsi_in_username={} iscsi_in_password={}",
                self.initiator,
                self.target,
                self.server,
                self.iscsi_port,
                self.username,
                self.password,
                self.server_username,
                self.server_password,
            ),
            DiskProtocol::Nbd => self.nbd(cmdline),
        };
        match cmdline.trim() {
            "" => words,
            cmdline => format!("{cmdline} {words}"),
        }
    }

    /// `nbdroot=SERVER:PORT/EXPORT`; the device from `root=/dev/nbd..` or else from `nbddev=`.
    fn nbd(&self, cmdline: &str) -> String {
        let mut words = format!("nbdroot={}:{}/{}", self.server, self.nbd_port, self.export);
        let has = |start: &str| cmdline.split(' ').any(|word| word.starts_with(start));
        if !has("root=/dev/nbd") && !has("nbddev=") {
            words.push_str(" nbddev=/dev/nbd0");
        }
        if !has("root=") {
            words.push_str(" root=/dev/nbd0");
        }
        words
    }

    fn fill(&self, cmdline: &str, protocol: DiskProtocol) -> String {
        let port = match protocol {
            DiskProtocol::Iscsi => self.iscsi_port,
            DiskProtocol::Nbd => self.nbd_port,
        };
        let (server, port) = (self.server.to_string(), port.to_string());
        let uuid = self.uuid.to_string();
        let values = [
            &server,
            &port,
            &self.target,
            &self.initiator,
            &self.username,
            &self.password,
            &self.server_username,
            &self.server_password,
            &self.export,
            &uuid,
        ];
        // None of the values holds a brace, so none is taken for a placeholder.
        let pairs = PLACEHOLDERS.iter().zip(values);
        pairs.fold(cmdline.to_owned(), |line, (placeholder, value)| {
            line.replace(placeholder, value)
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Words with secrets that can be seen in a test.
    pub(crate) fn words() -> DiskWords {
        let client = Uuid::from_u128(1);
        DiskWords {
            password: "machine.secret_1".into(),
            server_password: "server.secret_12".into(),
            export: "2.3".into(),
            ..DiskWords::new(
                b"key",
                Uuid::from_u128(2),
                client,
                Ipv4Addr::new(10, 0, 0, 1),
                (3260, 10809),
            )
        }
    }

    #[test]
    fn a_line_without_placeholders_is_for_debian() {
        let words = words();
        assert_eq!(
            words.complete("root=UUID=1 quiet", DiskProtocol::Iscsi),
            "root=UUID=1 quiet \
             iscsi_initiator=iqn.2026-11.internal.dls.client:00000000000000000000000000000001 \
             iscsi_target_name=iqn.2026-11.internal.dls:00000000000000000000000000000001 \
             iscsi_target_ip=10.0.0.1 iscsi_target_port=3260 \
             iscsi_username=00000000000000000000000000000002 iscsi_password=machine.secret_1 \
             iscsi_in_username=dls iscsi_in_password=server.secret_12"
        );
        for (line, expected) in [
            (
                "",
                "nbdroot=10.0.0.1:10809/2.3 nbddev=/dev/nbd0 root=/dev/nbd0",
            ),
            (
                "root=/dev/nbd0p1",
                "root=/dev/nbd0p1 nbdroot=10.0.0.1:10809/2.3",
            ),
            (
                "root=UUID=1",
                "root=UUID=1 nbdroot=10.0.0.1:10809/2.3 nbddev=/dev/nbd0",
            ),
            (
                "nbddev=/dev/nbd1",
                "nbddev=/dev/nbd1 nbdroot=10.0.0.1:10809/2.3 root=/dev/nbd0",
            ),
        ] {
            assert_eq!(words.complete(line, DiskProtocol::Nbd), expected);
        }
    }

    #[test]
    fn placeholders_are_filled_and_nothing_is_appended() {
        let words = words();
        assert_eq!(
            words.complete(
                "netroot=iscsi:{username}:{password}@{server}::{port}:0:{target}",
                DiskProtocol::Iscsi
            ),
            "netroot=iscsi:00000000000000000000000000000002:machine.secret_1@10.0.0.1::3260:0:iqn.2026-11.internal.dls:00000000000000000000000000000001"
        );
        assert_eq!(
            words.complete(
                "netroot=nbd:{server}:{export}:ext4:{port} x={nothing}",
                DiskProtocol::Nbd
            ),
            "netroot=nbd:10.0.0.1:2.3:ext4:10809 x={nothing}"
        );
    }

    #[test]
    fn the_initiator_s_name_says_where_to_report_if_that_is_not_the_default() {
        let name = "iqn.2026-11.internal.dls.client:00000000000000000000000000000001";
        let named = |port| words().reporting_at(port).initiator;
        assert_eq!(named(8069), name);
        assert_eq!(named(80), format!("{name}:80"));
        let words = words().reporting_at(65535);
        assert!(
            words.are_safe() && words.initiator.len() <= 223,
            "RFC 7143 section 4.2.7.1"
        );
    }

    #[test]
    fn real_words_are_safe_and_no_secret_is_shown() {
        for n in 0..200 {
            let words = DiskWords::new(
                b"key",
                Uuid::from_u128(n),
                Uuid::from_u128(n + 1),
                Ipv4Addr::LOCALHOST,
                (1, 2),
            );
            assert!(words.are_safe());
            assert!(!format!("{words:?}").contains(&words.password));
        }
        assert!(
            !DiskWords {
                password: String::new(),
                ..words()
            }
            .are_safe()
        );
        assert!(
            !DiskWords {
                password: "-x".into(),
                ..words()
            }
            .are_safe()
        );
    }
}
