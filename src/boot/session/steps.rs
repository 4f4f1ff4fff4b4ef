//! What each kind of evidence does to a boot. Pure.

use std::net::Ipv4Addr;

use chrono::TimeDelta;
use serde_json::json;

use super::causes;
use super::evidence::{BootFile, Context, Evidence, Observation, Speaker};
use super::machine::{Boot, ImageReport, Life, Proof, Transfer, Trouble, TroubleKind};
use super::rows::{Effect, Row};
use super::silence::End;
use crate::model::{FileRole, PhoneHome, SessionStatus, Stage, Timestamp};

/// Transfers of one machine that are followed at the same time.
const TRANSFERS: usize = 32;

impl Boot {
    pub(super) fn judge(&mut self, seen: &Observation, out: &mut Vec<Effect>) {
        let at = seen.at;
        match &seen.what {
            Evidence::Discover(speaker) => self.discover(at, *speaker, &seen.context, out),
            Evidence::Offered {
                speaker,
                address,
                loader,
            } => self.offered(at, *speaker, *address, loader.as_deref(), out),
            Evidence::Acknowledged {
                speaker,
                address,
                loader,
            } => self.acknowledged(at, *speaker, *address, loader.as_deref(), out),
            Evidence::Refused {
                reason,
                sentence,
                fatal,
            } => {
                let kind = if *fatal {
                    TroubleKind::Fatal
                } else {
                    TroubleKind::Refused
                };
                self.trouble = Some(Trouble {
                    kind,
                    sentence: sentence.clone(),
                });
                let detail = json!({"reason": reason, "sentence": sentence, "fatal": fatal});
                self.note(at, Stage::Refused, detail, Row::OncePerDetail, out);
            }
            Evidence::Script { unready } => self.script(at, *unready, &seen.context, out),
            Evidence::FileStarted { file, door, size } => {
                let stage = stage_of(file, false);
                self.trouble = None;
                self.transfers
                    .retain(|t| !(t.file == *file && t.door == *door));
                if self.transfers.len() < TRANSFERS {
                    self.transfers.push(Transfer {
                        file: file.clone(),
                        door: *door,
                        size: *size,
                        since: at,
                    });
                }
                match file {
                    BootFile::Loader(name) => self.loader = Some(name.clone()),
                    // A loader with a script of its own (GRUB's, say) never asks for ours.
                    BootFile::Image(..) => self.booted = true,
                }
                let detail = json!({"file": file.label(), "door": door.as_str(), "bytes": size});
                self.reach(at, stage, detail, Row::Always, out);
            }
            Evidence::FileSent {
                file,
                door,
                size,
                seconds,
            } => {
                self.transfers
                    .retain(|t| !(t.file == *file && t.door == *door));
                self.trouble = None;
                match file {
                    BootFile::Loader(name) => {
                        self.loader = Some(name.clone());
                        self.loader_delivered = true;
                    }
                    BootFile::Image(..) => self.times.delivered = Some(at),
                }
                let seconds = seconds.is_finite().then_some(*seconds);
                let detail = json!({
                    "file": file.label(), "door": door.as_str(), "bytes": size, "seconds": seconds,
                });
                self.reach(at, stage_of(file, true), detail, Row::Always, out);
            }
            Evidence::FileBroken {
                file,
                door,
                sent,
                size,
                cause,
            } => {
                self.transfers
                    .retain(|t| !(t.file == *file && t.door == *door));
                let label = file.label();
                self.trouble = Some(Trouble {
                    kind: TroubleKind::Broken,
                    sentence: causes::broken(&label, *sent, *size, cause),
                });
                let detail = json!({
                    "file": label, "door": door.as_str(), "bytes": sent, "of": size, "cause": cause,
                });
                self.note(at, Stage::TransferBroken, detail, Row::Always, out);
            }
            Evidence::ForeignServer(ip) => {
                self.foreign = Some(*ip);
                let detail = json!({"server": ip});
                self.note(at, Stage::ForeignServer, detail, Row::OncePerDetail, out);
            }
            Evidence::Up => {
                self.times.beat = at;
                self.run(at, at, Proof::Reported, "report", out);
            }
            Evidence::Beat => {
                self.times.beat = at;
                self.times.released = None;
                // A beat proves as much as the `up` that must have been lost.
                self.run(at, at, Proof::Reported, "beat", out);
            }
            Evidence::Bye(reason) => {
                let detail = json!({"reason": reason});
                self.reach(at, Stage::Bye, detail, Row::Last, out);
                let mut end = End::shutdown("", false);
                end.cause = reason.as_ref().filter(|r| !r.is_empty()).cloned();
                self.end(at, end, out);
            }
            Evidence::DiskAttached(_)
            | Evidence::DiskRead { .. }
            | Evidence::DiskWritten { .. }
            | Evidence::DiskQuota { .. }
            | Evidence::DiskUsed(_)
            | Evidence::DiskDetached { .. }
            | Evidence::DiskRefused { .. } => self.judge_disk(seen, out),
            Evidence::Released => self.released(at, out),
            // What came along has been learnt already; what is asked of a boot that was given up says
            // nothing of an open one.
            Evidence::Located | Evidence::Answers => {}
        }
    }

    fn discover(
        &mut self,
        at: Timestamp,
        speaker: Speaker,
        context: &Context,
        out: &mut Vec<Effect>,
    ) {
        let detail = json!({"speaker": speaker.as_str(), "arch": context.arch});
        let stage = match speaker {
            Speaker::Rom => {
                // The way it boots by now: a UEFI machine may go from PXE to HTTP.
                self.attempt.arch = context.arch.or(self.attempt.arch);
                Stage::Discover
            }
            Speaker::Ipxe if self.is_loader() => Stage::LoaderRunning,
            Speaker::Ipxe => Stage::Discover,
            Speaker::Os => return self.os_network(at, None, out),
        };
        self.reach(at, stage, detail, Row::OncePerDetail, out);
    }

    /// True if an iPXE that speaks now is a loader, not the ROM itself.
    fn is_loader(&self) -> bool {
        self.first == Speaker::Rom || self.loader_delivered
    }

    fn offered(
        &mut self,
        at: Timestamp,
        speaker: Speaker,
        address: Option<Ipv4Addr>,
        loader: Option<&str>,
        out: &mut Vec<Effect>,
    ) {
        if speaker == Speaker::Os {
            return;
        }
        let detail = json!({"speaker": speaker.as_str(), "address": address, "loader": loader});
        self.reach(at, Stage::Offer, detail, Row::OncePerDetail, out);
        if address.is_none() {
            // A proxy's offer is all that many ROMs wait for.
            self.loader_offered(at, loader, out);
        }
    }

    fn acknowledged(
        &mut self,
        at: Timestamp,
        speaker: Speaker,
        address: Option<Ipv4Addr>,
        loader: Option<&str>,
        out: &mut Vec<Effect>,
    ) {
        if address.is_some() {
            self.attempt.client_ip = address;
            self.times.released = None;
        }
        if speaker == Speaker::Os {
            return self.os_network(at, address, out);
        }
        let stage = if speaker == Speaker::Ipxe && (self.is_loader() || loader.is_none()) {
            Stage::LoaderLease
        } else {
            Stage::Lease
        };
        if address.is_some() || stage == Stage::LoaderLease {
            let detail = json!({
                "speaker": speaker.as_str(), "address": address, "until": self.times.lease_until,
            });
            self.reach(at, stage, detail, Row::OncePerDetail, out);
        }
        self.loader_offered(at, loader, out);
    }

    fn loader_offered(&mut self, at: Timestamp, loader: Option<&str>, out: &mut Vec<Effect>) {
        if let Some(name) = loader {
            self.loader = Some(name.to_owned());
            self.reach(
                at,
                Stage::LoaderOffered,
                json!({"loader": name}),
                Row::OncePerDetail,
                out,
            );
        }
    }

    /// The operating system speaks DHCP: evidence only once a kernel was delivered, or its
    /// disk was attached.
    fn os_network(&mut self, at: Timestamp, address: Option<Ipv4Addr>, out: &mut Vec<Effect>) {
        let loaded = self.times.delivered.is_some() || self.disk.attached.is_some();
        if !loaded || address.is_none() {
            return;
        }
        self.times.network.get_or_insert(at);
        let detail = json!({"address": address, "until": self.times.lease_until});
        self.reach(at, Stage::OsNetwork, detail, Row::OncePerDetail, out);
        // An initramfs asks for an address before it looks for its root: no system runs yet.
        let has_root = self.disk.method.is_none() || self.disk.attached.is_some();
        if self.life == Life::Loading && self.phone_home == PhoneHome::Absent && has_root {
            self.run(at, at, Proof::Inferred, "os_network", out);
        }
    }

    fn script(
        &mut self,
        at: Timestamp,
        unready: Option<(&'static str, bool)>,
        context: &Context,
        out: &mut Vec<Effect>,
    ) {
        if matches!(self.life, Life::Running(_)) {
            // A boot would have begun with DHCP: this is somebody who looks at the script.
            let detail = json!({"while": "running"});
            return self.note(at, Stage::Script, detail, Row::OncePerDetail, out);
        }
        let Some((why, waits)) = unready else {
            self.waiting_for = None;
            self.attempt.reason = None;
            // The image is the one that this script names, whatever was planned before.
            self.choose_image(context);
            self.booted = true;
            self.disk.planned(self.boot_method);
            let mut detail = json!({
                "image": self.attempt.image_name, "image_id": self.image.as_ref().map(|i| i.0),
                "phone_home": self.phone_home,
            });
            if let Some(method) = self.boot_method {
                detail["disk"] = json!(method);
            }
            self.reach(at, Stage::Script, detail, Row::OncePerDetail, out);
            return;
        };
        let cause = causes::unready(why);
        self.attempt.reason = Some(cause.clone());
        let detail = json!({"reason": why, "sentence": cause});
        if waits {
            self.waiting_for = Some(why.to_owned());
            self.reach(at, Stage::Waiting, detail, Row::OncePerDetail, out);
        } else {
            self.reach(at, Stage::LocalBoot, detail, Row::Always, out);
            self.end(
                at,
                End::refused(format!("{cause}; sent to its local disk")),
                out,
            );
        }
    }

    fn released(&mut self, at: Timestamp, out: &mut Vec<Effect>) {
        match self.life {
            // It still works on its disk: that ends it, when it is let go of.
            Life::Running(Proof::Inferred) if self.disk.is_open() => {}
            Life::Running(Proof::Inferred) => {
                self.end(at, End::shutdown("it released its lease", true), out);
            }
            // It should say bye, or fall silent.
            Life::Running(Proof::Reported) => self.times.released = Some(at),
            Life::Loading | Life::Over => {}
        }
    }

    /// The system runs, by report or by inference; a report corrects an inference.
    pub(super) fn run(
        &mut self,
        at: Timestamp,
        since: Timestamp,
        proof: Proof,
        by: &str,
        out: &mut Vec<Effect>,
    ) {
        if proof == Proof::Reported {
            self.image_reports();
        }
        match (self.life, proof) {
            (Life::Over | Life::Running(Proof::Reported), _)
            | (Life::Running(Proof::Inferred), Proof::Inferred) => return,
            (Life::Loading, _) | (Life::Running(Proof::Inferred), Proof::Reported) => {}
        }
        self.life = Life::Running(proof);
        self.booted = true;
        self.transfers.clear();
        self.waiting_for = None;
        self.attempt.reason = None;
        let took = (since - self.attempt.started_at).max(TimeDelta::zero());
        let inferred = proof == Proof::Inferred;
        let seconds = took.num_milliseconds() as f64 / 1000.0;
        let detail = json!({"by": by, "inferred": inferred, "boot_seconds": seconds});
        self.reach(at, Stage::Up, detail, Row::Last, out);
        self.open_session();
        if let Some(session) = &mut self.session {
            session.status = SessionStatus::Running;
            session.boot_time_seconds = i32::try_from(took.num_seconds()).ok();
        }
    }

    fn image_reports(&mut self) {
        if self.image_report == ImageReport::NotYet && self.phone_home == PhoneHome::Auto {
            self.image_report = ImageReport::Due;
        }
        self.phone_home = PhoneHome::Expected;
    }
}

const fn stage_of(file: &BootFile, sent: bool) -> Stage {
    match (file, sent) {
        (BootFile::Loader(_), false) => Stage::LoaderRequested,
        (BootFile::Loader(_), true) => Stage::LoaderSent,
        (BootFile::Image(FileRole::Kernel, _), false) => Stage::KernelRequested,
        (BootFile::Image(FileRole::Kernel, _), true) => Stage::KernelSent,
        (BootFile::Image(FileRole::Initrd, _), false) => Stage::InitrdRequested,
        (BootFile::Image(FileRole::Initrd, _), true) => Stage::InitrdSent,
    }
}
