//! What went over the wire, by tcpdump: the independent witness of the timeline. Reads a
//! capture back as text and picks boot traffic out of it. Must not ask the product.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::net::{Lab, run};
use crate::{secs, wait_for};

/// A running capture on the server's `lan0`.
pub(crate) struct Capture {
    tcpdump: Child,
    file: PathBuf,
}

/// One packet of interest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Packet {
    /// Seconds since 1970.
    pub(crate) at: f64,
    /// All that tcpdump says of it.
    pub(crate) text: String,
}

/// A DHCP ACK seen on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ack {
    /// Whose.
    pub(crate) mac: String,
    /// The address it was given.
    pub(crate) address: String,
}

impl Capture {
    /// Starts it and waits until it listens.
    pub(crate) fn start(lab: &Lab) -> Self {
        let file = lab.path().join("lan0.pcap");
        let log = lab.path().join("tcpdump.log");
        let args = [
            "-i",
            "lan0",
            "-n",
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-s",
            "700",
            "-B",
            "8192",
            "-w",
        ];
        let filter = "udp port 67 or udp port 4011 or udp port 69 or tcp port 8069";
        let tcpdump = lab
            .on_server("tcpdump", args)
            .arg(&file)
            .arg(filter)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("tcpdump");
        wait_for("tcpdump listens", secs(10), || {
            fs::read_to_string(&log)
                .is_ok_and(|t| t.contains("listening on"))
                .then_some(())
        });
        Self { tcpdump, file }
    }

    /// Stops it and reads it back.
    pub(crate) fn stop(mut self) -> Vec<Packet> {
        let pid = i32::try_from(self.tcpdump.id()).expect("a process id");
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        let _ = self.tcpdump.wait();
        // Data packets of a kernel are of no interest: only those that carry a request.
        let filter =
            "udp port 67 or udp port 4011 or udp port 69 or (tcp dst port 8069 and greater 90)";
        let args = [
            "-tt",
            "-n",
            "-v",
            "-A",
            "-r",
            &self.file.to_string_lossy(),
            filter,
        ]
        .map(str::to_owned);
        parse(&run("tcpdump", args))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// Packets out of `tcpdump -tt -v -A`: each begins with its time at the start of a line.
fn parse(text: &str) -> Vec<Packet> {
    let mut packets: Vec<Packet> = Vec::new();
    for line in text.lines() {
        let at = line
            .split_once(" IP")
            .and_then(|(time, _)| time.parse::<f64>().ok());
        match (at, packets.last_mut()) {
            (Some(at), _) => packets.push(Packet {
                at,
                text: line.to_owned(),
            }),
            (None, Some(packet)) => {
                packet.text.push('\n');
                packet.text.push_str(line);
            }
            (None, None) => {}
        }
    }
    packets
}

/// When a packet that contains all the words was first seen.
pub(crate) fn first(packets: &[Packet], words: &[&str]) -> Option<f64> {
    packets
        .iter()
        .find(|p| words.iter().all(|w| p.text.contains(w)))
        .map(|p| p.at)
}

/// All DHCP ACKs that gave an address away, sorted, each once.
pub(crate) fn acks(packets: &[Packet]) -> Vec<Ack> {
    let after = |text: &str, label: &str| {
        let (_, rest) = text.split_once(label)?;
        Some(rest.split_whitespace().next()?.to_owned())
    };
    let mut acks: Vec<Ack> = packets
        .iter()
        .filter(|p| p.text.contains("DHCP-Message (53), length 1: ACK"))
        .filter_map(|p| {
            Some(Ack {
                mac: after(&p.text, "Client-Ethernet-Address ")?,
                address: after(&p.text, "Your-IP ")?,
            })
        })
        .collect();
    acks.sort();
    acks.dedup();
    acks
}

#[test]
fn tcpdump_text_is_understood() {
    let text = "1795300045.6 IP (tos 0x0) 10.77.0.1.67 > 10.77.0.80.68: BOOTP/DHCP, Reply\n\
                \t  Your-IP 10.77.0.80\n\t  Client-Ethernet-Address 52:54:00:77:00:01\n\
                \t    DHCP-Message (53), length 1: ACK\n\
                1795300047.25 IP (tos 0x0) 10.77.0.80.99 > 10.77.0.1.8069: Flags [P.]\n\
                E..GET /b/x/kernel HTTP/1.1\n";
    let packets = parse(text);
    assert_eq!(packets.len(), 2);
    assert_eq!(
        first(&packets, &["GET /b/", "/kernel "]),
        Some(1_795_300_047.25)
    );
    assert_eq!(first(&packets, &["GET /nothing"]), None);
    let expected = Ack {
        mac: "52:54:00:77:00:01".into(),
        address: "10.77.0.80".into(),
    };
    assert_eq!(acks(&packets), [expected]);
}
