//! Real initiators: libiscsi's tools and QEMU's own driver, with and without CHAP and digests.

use std::process::{Command, Output};

use super::house::{DISK, House, MACHINE, NAME, SERVER};

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["30", program])
        .args(arguments)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn chap_one_way_and_mutual() {
    let house = House::new(false);
    let user = format!("{NAME}%{MACHINE}@");
    let url = house.url(&user);
    let one_way = run("iscsi-inq", &[&url]);
    assert!(
        said(&one_way).contains("Network disk"),
        "{}",
        said(&one_way)
    );
    let mutual = |secret: &str| format!("{url}?target_user=dls&target_password={secret}");
    let both = run("iscsi-inq", &[&mutual(SERVER)]);
    assert!(said(&both).contains("Network disk"), "{}", said(&both));
    let imposter = run("iscsi-inq", &[&mutual("not-the-server-x")]);
    assert!(
        !said(&imposter).contains("Network disk"),
        "{}",
        said(&imposter)
    );
}

#[test]
fn wrong_secret_name_and_disk() {
    let house = House::new(false);
    for user in [
        String::new(),
        format!("{NAME}%wrong-secret-xxx@"),
        format!("{}%{MACHINE}@", NAME.replace('0', "f")),
    ] {
        let output = run("iscsi-inq", &[&house.url(&user)]);
        assert!(!output.status.success(), "{user}");
        assert!(
            said(&output).contains("Authentication"),
            "{}",
            said(&output)
        );
    }
    let other = format!(
        "iscsi://{NAME}%{MACHINE}@{}/iqn.2026-11.internal.dls:{}/0",
        house.address, "../../etc/passwd"
    );
    assert!(!run("iscsi-inq", &[&other]).status.success());
}

#[test]
fn discovery_lists_what_the_name_may_see() {
    let house = House::new(false);
    let portal = format!("iscsi://{NAME}%{MACHINE}@{}", house.address);
    let listed = said(&run("iscsi-ls", &[&portal]));
    let target = format!("Target:{} Portal:{},1", DISK.iqn(), house.address);
    assert!(listed.contains(&target), "{listed}");
    assert_eq!(listed.matches("Target:").count(), 1, "{listed}");
    assert!(!listed.contains(&house.other.iqn()));
    let stranger = run("iscsi-ls", &[&format!("iscsi://{}", house.address)]);
    assert!(!said(&stranger).contains("Target:"), "{}", said(&stranger));
}

#[test]
fn qemu_writes_and_reads_back() {
    let house = House::new(false);
    let url = house.url(&format!("{NAME}%{MACHINE}@"));
    for digest in ["none", "crc32c"] {
        let options = format!(
            "driver=iscsi,transport=tcp,portal={},target={},lun=0,user={NAME},password={MACHINE},\
             header-digest={digest},initiator-name=iqn.2026-11.test:qemu",
            house.address,
            DISK.iqn()
        );
        let output = run(
            "qemu-io",
            &[
                "--image-opts",
                "-c",
                "write -P 0x5a 1M 3M",
                "-c",
                "read -P 0x5a 1M 3M",
                "-c",
                "write -z 2M 1M",
                "-c",
                "read -P 0 2M 1M",
                "-c",
                "discard 1M 1M",
                "-c",
                "read -P 0 1M 1M",
                "-c",
                "read -P 0x5a 3M 1M",
                "-c",
                "flush",
                &options,
            ],
        );
        let text = said(&output);
        assert!(output.status.success(), "{digest}: {text}");
        assert!(!text.contains("failed"), "{digest}: {text}");
    }
    // A copy out and back is the same.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.raw");
    let copy = copy.to_str().unwrap();
    let copied = run("qemu-img", &["convert", "-O", "raw", &url, copy]);
    assert!(copied.status.success(), "{}", said(&copied));
    let same = run(
        "qemu-img",
        &["compare", "-F", "raw", "-f", "raw", &url, copy],
    );
    assert!(said(&same).contains("identical"), "{}", said(&same));
}

#[test]
fn a_stop_ends_sessions_in_time() {
    let house = House::new(true);
    let mut raw = super::raw::Raw::login(house.address, 3, "HeaderDigest=None");
    house.cancel.cancel();
    let asked = raw.receive().unwrap();
    // An asynchronous message that asks for a logout.
    assert_eq!((asked.opcode(), asked.head[36]), (0x32, 1));
    assert!(raw.receive().is_err(), "then it is closed");
}
