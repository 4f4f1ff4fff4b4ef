//! The phone-home script, run by busybox's shell against a listener that takes notes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use dls::boot::disk_words::DiskWords;
use dls::boot::token::BootToken;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

fn hook(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/phone-home")
        .join(file)
}

/// A listener that answers 204 to all but the first `refusals` calls, and tells what it was
/// asked: `POST /up` or `GET /up`, then the body.
fn listener(refusals: usize) -> (SocketAddr, Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, calls) = channel();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut text = Vec::new();
            let mut byte = [0];
            while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                text.push(byte[0]);
            }
            let head = String::from_utf8(text).unwrap();
            let length = head.lines().find_map(|l| {
                let (name, value) = l.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse().unwrap())
            });
            let mut body = vec![0; length.unwrap_or(0)];
            stream.read_exact(&mut body).unwrap();
            let status = if n < refusals {
                "503 Service Unavailable\r\nContent-Length: 0"
            } else {
                "204 No Content"
            };
            let _ = stream
                .write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n").as_bytes());
            let words: Vec<&str> = head.split(' ').take(2).collect();
            let call = (words.join(" "), String::from_utf8(body).unwrap());
            if tell.send(call).is_err() {
                return;
            }
        }
    });
    (address, calls)
}

/// A machine: a command line, and a PATH with busybox and, if asked for, other tools.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(cmdline: &str, tools: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for applet in [
            "sh",
            "cat",
            "sleep",
            "timeout",
            "sha256sum",
            "rm",
            "stat",
            "chown",
        ] {
            symlink("/bin/busybox", bin.join(applet)).unwrap();
        }
        for tool in tools {
            let target = match *tool {
                "busybox wget" => ("wget".to_owned(), PathBuf::from("/bin/busybox")),
                tool => (tool.to_owned(), Path::new("/usr/bin").join(tool)),
            };
            assert!(target.1.exists(), "{tool} is not installed");
            symlink(&target.1, bin.join(target.0)).unwrap();
        }
        std::fs::write(dir.path().join("cmdline"), cmdline).unwrap();
        Self { dir }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let bin = self.dir.path().join("bin");
        let mut command = Command::new(bin.join("sh"));
        command
            .arg(hook("dls-report"))
            .args(arguments)
            .env_clear()
            .env("PATH", bin)
            .env("DLS_CMDLINE", self.dir.path().join("cmdline"))
            .env("DLS_SAVED", self.dir.path().join("saved"))
            .env("DLS_IBFT", self.dir.path().join("ibft"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Option<i32> {
        self.command(arguments).status().unwrap().code()
    }

    /// With the shell and the `timeout` of Debian: busybox's prefer its own applets to any
    /// program in the PATH.
    fn like_debian(self) -> Self {
        for (name, program) in [("sh", "/bin/dash"), ("timeout", "/usr/bin/timeout")] {
            let path = self.dir.path().join("bin").join(name);
            std::fs::remove_file(&path).unwrap();
            symlink(program, path).unwrap();
        }
        self
    }

    /// The table that firmware leaves behind which booted from this disk, as Linux shows it.
    fn firmware(&self, words: &DiskWords) {
        let server = words.server.to_string();
        for (file, text) in [
            ("target0/target-name", &words.target),
            ("target0/ip-addr", &server),
            ("target0/chap-name", &words.username),
            ("target0/chap-secret", &words.password),
            ("target0/rev-chap-name", &words.server_username),
            ("target0/rev-chap-name-secret", &words.server_password),
            ("initiator/initiator-name", &words.initiator),
        ] {
            let path = self.dir.path().join("ibft").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
    }

    /// A program of that name that answers `--version` so, and notes its words and its input.
    fn fake(&self, name: &str, version: &str) {
        let dir = self.dir.path().display();
        let script = format!(
            "#!{dir}/bin/sh\n[ \"$1\" != --version ] || {{ echo {version}; exit; }}\necho \"$@\" > {dir}/words\ncat > {dir}/input\n"
        );
        let path = self.dir.path().join("bin").join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(file)).unwrap()
    }
}

/// A boot, what its machine is told of its disk, and the path that it is to report to.
fn disk_boot(server: SocketAddr) -> (DiskWords, String) {
    let (key, boot) = (b"a site's key", Uuid::from_u128(0xab << 64));
    let SocketAddr::V4(address) = server else {
        unreachable!("the listener has an IPv4 address")
    };
    let words = DiskWords::new(key, boot, Uuid::from_u128(7), *address.ip(), (3260, 10809));
    let token = BootToken::report(key, boot).reveal();
    (
        words.reporting_at(address.port()),
        format!("/b/{}.{token}/", boot.simple()),
    )
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_tool_reports() {
    for (tool, methods) in [
        ("curl", ["POST", "POST"]),
        ("wget", ["GET", "POST"]),
        ("busybox wget", ["GET", "POST"]),
    ] {
        let (address, calls) = listener(0);
        let cmdline =
            format!("BOOT_IMAGE=* quiet dls.report=http://{address}/b/1.2/ console=ttyS0\n");
        let mut machine = Machine::new(&cmdline, &[tool]);
        if !tool.starts_with("busybox") {
            machine = machine.like_debian();
        }
        assert_eq!(machine.run(&["up"]), Some(0), "{tool}");
        assert_eq!(
            machine.run(&["bye", "power off; $(reboot)"]),
            Some(0),
            "{tool}"
        );
        let up = calls.recv_timeout(PATIENCE).unwrap();
        assert_eq!(up, (format!("{} /b/1.2/up", methods[0]), String::new()));
        let bye = calls.recv_timeout(PATIENCE).unwrap();
        let want = format!("{} /b/1.2/bye", methods[1]);
        assert_eq!(bye, (want, "power off; $(reboot)".to_owned()), "{tool}");
    }
}

#[test]
fn without_an_address_there_is_nothing_to_do() {
    let machine = Machine::new("quiet xdls.report=http://127.0.0.1:1/ ro", &["curl"]);
    for verb in ["up", "beat", "bye", "stopping", "loop"] {
        assert_eq!(machine.run(&[verb]), Some(0), "{verb}");
    }
    assert_eq!(machine.run(&[]), Some(2));
    assert_eq!(machine.run(&["nonsense"]), Some(2));
    // Nobody listens: said, not hidden.
    let machine = Machine::new("dls.report=http://127.0.0.1:1/b/", &["curl"]);
    assert_eq!(machine.run(&["beat"]), Some(1));
}

#[test]
fn what_the_initrd_kept_is_used() {
    let (address, calls) = listener(0);
    let machine = Machine::new("quiet", &["busybox wget"]);
    let kept = format!("dls.beat=7\ndls.report=http://{address}/kept\n");
    std::fs::write(machine.dir.path().join("saved"), kept).unwrap();
    assert_eq!(machine.run(&["beat"]), Some(0));
    assert_eq!(calls.recv_timeout(PATIENCE).unwrap().0, "GET /kept/beat");
}

#[test]
fn a_system_from_a_disk_reports_by_its_firmware_s_table() {
    let (address, calls) = listener(0);
    let (words, path) = disk_boot(address);
    let machine = Machine::new("root=UUID=1 quiet", &["busybox wget"]);
    machine.firmware(&words);
    assert_eq!(machine.run(&["up"]), Some(0));
    let up = calls.recv_timeout(PATIENCE).unwrap();
    assert_eq!(up.0, format!("GET {path}up"), "as the server makes it");

    // The command line goes first.
    std::fs::write(
        machine.dir.path().join("cmdline"),
        format!("dls.report=http://{address}/line/"),
    )
    .unwrap();
    assert_eq!(machine.run(&["up"]), Some(0));
    assert_eq!(calls.recv_timeout(PATIENCE).unwrap().0, "GET /line/up");

    // Without a port it is the usual one; the table of another disk, or without CHAP, is of
    // no concern.
    let (usual, _) = disk_boot(SocketAddr::from(([127, 0, 0, 9], 8069)));
    assert_eq!(usual.initiator.matches(':').count(), 1);
    let report = |words: &DiskWords| {
        let machine = Machine::new("quiet", &[]);
        machine.fake("curl", "curl");
        machine.firmware(words);
        assert_eq!(machine.run(&["up"]), Some(0));
        std::fs::read_to_string(machine.dir.path().join("input")).ok()
    };
    let input = report(&usual).unwrap();
    assert!(input.contains("\"http://127.0.0.9:8069/b/"), "{input}");
    let other = DiskWords {
        target: "iqn.2001-01.com.example:disk".to_owned(),
        ..words.clone()
    };
    let open = DiskWords {
        password: String::new(),
        ..words.clone()
    };
    assert_eq!((report(&other), report(&open)), (None, None));
}

#[test]
fn a_service_without_rights_is_told_by_root_and_nobody_else_is() {
    let (address, calls) = listener(0);
    let (words, path) = disk_boot(address);
    let machine = Machine::new("quiet", &["curl"]);
    let own = machine.dir.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let nobody = nix::unistd::Uid::from_raw(65534);
    nix::unistd::chown(&own, Some(nobody), None).unwrap();
    let kept = own.join("report");
    let keep = ["keep", kept.to_str().unwrap()];
    // Nothing to keep: no table, or the command line says it to everybody anyway.
    assert_eq!(machine.run(&keep), Some(0));
    assert!(!kept.exists());
    machine.firmware(&words);
    assert_eq!(machine.run(&keep), Some(0));
    assert_eq!(
        machine.run(&keep),
        Some(0),
        "again, when the unit is restarted"
    );
    use std::os::unix::fs::MetadataExt;
    let meta = kept.metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 65534));
    let text = machine.read("own/report");
    assert_eq!(text, format!("dls.report=http://{address}{path}\n"));
    assert!(!text.contains(&words.password), "never the secret itself");

    std::fs::remove_dir_all(machine.dir.path().join("ibft")).unwrap();
    let mut service = machine.command(&["bye", "poweroff"]);
    service.env("RUNTIME_DIRECTORY", &own);
    assert_eq!(service.status().unwrap().code(), Some(0));
    let bye = calls.recv_timeout(PATIENCE).unwrap();
    assert_eq!(bye, (format!("POST {path}bye"), "poweroff".to_owned()));
    assert_eq!(machine.run(&["keep"]), Some(2));
}

#[test]
fn no_process_has_the_token_among_its_words() {
    for (tool, version) in [("curl", "curl"), ("wget", "GNU Wget")] {
        let (words, path) = disk_boot(SocketAddr::from(([127, 0, 0, 1], 1)));
        let machine = Machine::new("quiet", &[]).like_debian();
        machine.fake(tool, version);
        machine.firmware(&words);
        assert_eq!(machine.run(&["bye", "reboot"]), Some(0), "{tool}");
        let (said, read) = (machine.read("words"), machine.read("input"));
        assert!(said.contains("reboot"), "{tool}: {said}");
        assert!(!said.contains("/b/"), "{tool}: {said}");
        assert!(read.contains(&format!("{path}bye")), "{tool}: {read}");
    }
}

#[test]
fn the_loop_is_heard_then_beats_then_stops_at_once() {
    let (address, calls) = listener(2);
    let machine = Machine::new(
        &format!("dls.report=http://{address}/ dls.beat=1"),
        &["busybox wget"],
    );
    let mut running = Running(machine.command(&["loop"]).spawn().unwrap());
    let next = || calls.recv_timeout(PATIENCE).unwrap().0;
    let seen: Vec<String> = (0..5).map(|_| next()).collect();
    assert_eq!(
        seen,
        ["GET /up", "GET /up", "GET /up", "GET /beat", "GET /beat"]
    );
    let pid = nix::unistd::Pid::from_raw(i32::try_from(running.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn only_a_system_that_stops_says_bye() {
    let (address, calls) = listener(0);
    let machine = Machine::new(&format!("dls.report=http://{address}/"), &["curl"]);
    let systemctl = machine.dir.path().join("bin/systemctl");
    let write = |state: &str| {
        let script = format!(
            "#!{}/bin/sh\ncase $1 in is-system-running) echo {state} ;; list-jobs) echo '12 reboot.target start waiting' ;; esac\n",
            machine.dir.path().display()
        );
        std::fs::write(&systemctl, script).unwrap();
        std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("running");
    assert_eq!(machine.run(&["stopping"]), Some(0));
    assert!(calls.try_recv().is_err());
    write("stopping");
    assert_eq!(machine.run(&["stopping"]), Some(0));
    let bye = calls.recv_timeout(PATIENCE).unwrap();
    assert_eq!(bye, ("POST /bye".to_owned(), "reboot".to_owned()));
}

#[test]
fn it_is_put_into_a_root_tree() {
    let root = tempfile::tempdir().unwrap();
    for dir in ["usr/lib/systemd/system", "etc/initramfs-tools", "bin"] {
        std::fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    let install = || {
        let done = Command::new("sh")
            .arg(hook("install.sh"))
            .arg(root.path())
            .output()
            .unwrap();
        (
            done.status.code(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    let (code, said) = install();
    assert_eq!(code, Some(1));
    assert!(said.contains("no curl, wget or busybox"), "{said}");
    std::fs::write(root.path().join("bin/busybox"), "").unwrap();
    assert_eq!(install().0, Some(0));
    for file in [
        "usr/sbin/dls-report",
        "etc/systemd/system/dls-report.service",
        "etc/systemd/system/multi-user.target.wants/dls-report.service",
        "etc/initramfs-tools/hooks/dls-report",
        "etc/initramfs-tools/scripts/init-bottom/dls-report",
    ] {
        assert!(root.path().join(file).exists(), "{file}");
    }
    for script in ["hooks", "scripts/init-bottom"] {
        let path = root.path().join("etc/initramfs-tools").join(script);
        let asked = Command::new(path.join("dls-report"))
            .arg("prereqs")
            .status()
            .unwrap();
        assert!(asked.success());
    }
}
