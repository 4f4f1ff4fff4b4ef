//! Tables of the login phase: what initiators send, and what nobody should.

use super::*;
use proptest::prelude::*;

struct House {
    open: bool,
}

const MACHINE: &str = "machine-secret16";
const SERVER: &str = "server-secret-16";

impl Door for House {
    fn open_to_all(&self) -> bool {
        self.open
    }

    fn secrets(&self, name: &str) -> Option<Secrets> {
        (name == "boot").then(|| Secrets {
            machine: MACHINE.into(),
            server_name: "dls".into(),
            server: SERVER.into(),
        })
    }
}

const CLOSED: House = House { open: false };
const OPEN: House = House { open: true };
const FRESH: Fresh = Fresh {
    id: 7,
    challenge: [0xc5; 32],
};

const NAMES: &str = "InitiatorName=iqn.x:a|TargetName=iqn.x:t|SessionType=Normal";

fn header(flags: u8) -> Header {
    let mut bytes = [0; 48];
    bytes[0] = 0x43;
    bytes[1] = flags;
    Header(bytes)
}

fn say(login: &mut Login, door: &House, flags: u8, text: &str) -> Step {
    let text = text.replace('|', "\0") + "\0";
    login.step(&header(flags), text.as_bytes(), &FRESH, door)
}

/// Flags and text of a reply, or the refusal.
fn told(step: Step) -> (u8, String) {
    let reply = match step {
        Step::Reply(reply) => reply,
        Step::Ready(ready) => ready.reply,
        Step::Refuse(refusal) => return (0, refusal.as_str().to_owned()),
    };
    let text = String::from_utf8(reply.text.as_bytes().to_vec()).unwrap();
    (reply.flags, text.replace('\0', "|"))
}

fn proof(algorithm: Algorithm) -> String {
    let challenge = &FRESH.challenge[..algorithm.length()];
    to_hex(&algorithm.response(FRESH.id, MACHINE, challenge))
}

fn challenged(list: &str) -> Login {
    let mut login = Login::new();
    let chosen = told(say(
        &mut login,
        &CLOSED,
        0x00,
        &format!("{NAMES}|AuthMethod=CHAP,None"),
    ));
    assert_eq!(
        chosen,
        (0, "AuthMethod=CHAP|TargetPortalGroupTag=1|".into())
    );
    let (flags, text) = told(say(&mut login, &CLOSED, 0x00, &format!("CHAP_A={list}")));
    assert_eq!(flags, 0);
    assert!(text.contains("CHAP_I=7|CHAP_C=0xc5c5"), "{text}");
    login
}

#[test]
fn one_way_with_each_algorithm() {
    for (list, algorithm) in [
        ("5", Algorithm::Md5),
        ("7,5", Algorithm::Sha256),
        ("8,7,6,5", Algorithm::Sha3),
    ] {
        let mut login = challenged(list);
        let answer = format!("CHAP_N=boot|CHAP_R={}", proof(algorithm));
        let (flags, text) = told(say(&mut login, &CLOSED, 0x81, &answer));
        assert_eq!((flags, text.as_str()), (0x81, ""));
        let step = say(&mut login, &CLOSED, 0x87, "HeaderDigest=CRC32C,None");
        let Step::Ready(ready) = step else {
            panic!("not ready")
        };
        assert_eq!(ready.proven.as_deref(), Some("boot"));
        assert!(ready.params.header_digest);
        assert_eq!(ready.reply.flags, 0x87);
    }
}

#[test]
fn mutual_with_a_transit_bit_from_the_start() {
    // As iPXE does it: T and the next stage in every request.
    let mut login = Login::new();
    let (flags, _) = told(say(
        &mut login,
        &CLOSED,
        0x81,
        &format!("{NAMES}|AuthMethod=CHAP"),
    ));
    assert_eq!(flags, 0);
    let (flags, _) = told(say(&mut login, &CLOSED, 0x81, "CHAP_A=5"));
    assert_eq!(flags, 0);
    let answer = format!(
        "CHAP_N=boot|CHAP_R={}|CHAP_I=9|CHAP_C=0x00112233",
        proof(Algorithm::Md5)
    );
    let (flags, text) = told(say(&mut login, &CLOSED, 0x81, &answer));
    let ours = Algorithm::Md5.response(9, SERVER, &[0, 0x11, 0x22, 0x33]);
    assert_eq!(flags, 0x81);
    assert_eq!(text, format!("CHAP_N=dls|CHAP_R={}|", to_hex(&ours)));
}

#[test]
fn refused() {
    let wrong = format!("CHAP_N=boot|CHAP_R=0x{}", "00".repeat(16));
    let stranger = format!("CHAP_N=other|CHAP_R={}", proof(Algorithm::Md5));
    let reflected = format!(
        "CHAP_N=boot|CHAP_R={}|CHAP_I=7|CHAP_C=0x{}",
        proof(Algorithm::Md5),
        "c5".repeat(16)
    );
    let half = format!("CHAP_N=boot|CHAP_R={}|CHAP_I=7", proof(Algorithm::Md5));
    for (text, reason) in [
        (wrong.as_str(), "authentication"),
        (&stranger, "authentication"),
        (&reflected, "authentication"),
        (&half, "initiator_error"),
        ("CHAP_N=boot", "initiator_error"),
        ("CHAP_N=boot|CHAP_R=hello", "initiator_error"),
        ("CHAP_A=5", "initiator_error"),
        ("AuthMethod=None", "initiator_error"),
    ] {
        let step = say(&mut challenged("5"), &CLOSED, 0x81, text);
        assert_eq!(told(step).1, reason, "{text}");
    }
    for (flags, text, reason) in [
        // No way round the proof.
        (0x87, NAMES.to_owned(), "authentication"),
        (0x81, NAMES.to_owned(), "authentication"),
        (0x83, format!("{NAMES}|AuthMethod=None"), "authentication"),
        (0x00, format!("{NAMES}|AuthMethod=KRB5"), "authentication"),
        (0x00, "TargetName=iqn.x:t".to_owned(), "missing_parameter"),
        (
            0x00,
            "InitiatorName=iqn.x:a".to_owned(),
            "missing_parameter",
        ),
        (
            0x00,
            format!("{NAMES}|SessionType=Normal"),
            "initiator_error",
        ),
        (
            0x00,
            "InitiatorName=a|SessionType=Odd".to_owned(),
            "session_type",
        ),
        (
            0x00,
            "InitiatorName=a b|TargetName=t".to_owned(),
            "initiator_error",
        ),
        (0x80, NAMES.to_owned(), "initiator_error"),
        (0x82, NAMES.to_owned(), "initiator_error"),
        (0x08, NAMES.to_owned(), "initiator_error"),
        (0xc1, NAMES.to_owned(), "initiator_error"),
        (
            0x00,
            format!("{NAMES}|CHAP_N=boot|CHAP_R=0x00"),
            "initiator_error",
        ),
        (0x00, "a=b|".repeat(2048), "initiator_error"),
        (0x00, "x".repeat(9000), "initiator_error"),
        (0x00, format!("{NAMES}|SendTargets=All"), "initiator_error"),
    ] {
        let step = say(&mut Login::new(), &CLOSED, flags, &text);
        assert_eq!(
            told(step).1,
            reason,
            "{flags:02x} {}",
            &text[..text.len().min(60)]
        );
    }
}

#[test]
fn headers_that_are_no_logins() {
    let step = |change: fn(&mut [u8; 48])| {
        let mut header = header(0);
        change(&mut header.0);
        told(Login::new().step(&header, b"", &FRESH, &OPEN)).1
    };
    assert_eq!(step(|h| h[0] = 0x41), "not_a_login");
    assert_eq!(step(|h| h[0] = 0x03), "not_a_login");
    assert_eq!(step(|h| h[3] = 1), "version");
    assert_eq!(step(|h| h[15] = 1), "no_session");
}

#[test]
fn without_proof_only_where_that_is_let_in() {
    let mut login = Login::new();
    let (flags, text) = told(say(&mut login, &OPEN, 0x87, NAMES));
    assert_eq!(flags, 0x87);
    assert!(text.contains("MaxRecvDataSegmentLength=262144"), "{text}");
    let mut login = Login::new();
    let (flags, text) = told(say(
        &mut login,
        &OPEN,
        0x81,
        &format!("{NAMES}|AuthMethod=CHAP,None"),
    ));
    assert_eq!((flags, text.contains("AuthMethod=None")), (0x81, true));
    // Who chooses CHAP must prove it there too.
    let mut login = Login::new();
    let _ = say(&mut login, &OPEN, 0x00, &format!("{NAMES}|AuthMethod=CHAP"));
    assert_eq!(told(say(&mut login, &OPEN, 0x81, "")), (0, String::new()));
}

#[test]
fn long_texts_come_in_parts() {
    let mut login = Login::new();
    let part =
        |login: &mut Login, flags, text: &[u8]| login.step(&header(flags), text, &FRESH, &OPEN);
    assert_eq!(
        told(part(&mut login, 0x44, b"InitiatorName=iqn.x:a\0Targ")),
        (0x04, String::new())
    );
    let (flags, _) = told(part(&mut login, 0x87, b"etName=iqn.x:t\0"));
    assert_eq!(flags, 0x87);
    let mut login = Login::new();
    for _ in 0..2 {
        assert_eq!(told(part(&mut login, 0x44, &[b'x'; 4096])).1, "");
    }
    assert_eq!(told(part(&mut login, 0x44, b"x")).1, "initiator_error");
    let mut login = Login::new();
    for _ in 0..MOST_REQUESTS {
        assert_eq!(told(part(&mut login, 0x44, b"")).1, "");
    }
    assert_eq!(told(part(&mut login, 0x44, b"")).1, "initiator_error");
}

#[test]
fn unknown_keys_are_answered_but_not_for_ever() {
    let unknown = |n: u32| -> String { (0..n).map(|i| format!("|X-{i}=1")).collect() };
    let ask = |n| {
        let text = format!("{NAMES}{}", unknown(n));
        told(say(&mut Login::new(), &OPEN, 0x04, &text)).1
    };
    assert_eq!(ask(MOST_UNKNOWN).matches("NotUnderstood").count(), 16);
    assert_eq!(ask(MOST_UNKNOWN + 1), "initiator_error");
}

proptest! {
    #[test]
    fn nothing_but_the_secret_leads_in(
        steps in proptest::collection::vec((any::<u8>(), proptest::sample::subsequence(vec![
            "InitiatorName=iqn.x:a", "TargetName=iqn.x:t", "SessionType=Discovery",
            "AuthMethod=CHAP,None", "AuthMethod=None", "CHAP_A=5", "CHAP_N=boot",
            "CHAP_R=0x00", "CHAP_I=7", "CHAP_C=0xc5", "HeaderDigest=None", "X=1",
        ], 0..8)), 1..8)
    ) {
        let mut login = Login::new();
        for (flags, keys) in steps {
            match say(&mut login, &CLOSED, flags, &keys.join("|")) {
                Step::Ready(_) => prop_assert!(false, "let in"),
                Step::Refuse(_) => break,
                Step::Reply(reply) => prop_assert!(reply.text.as_bytes().len() < 8192),
            }
        }
    }

    #[test]
    fn any_bytes_are_answered(head: [u8; 24], data: Vec<u8>) {
        let mut header = header(0);
        header.0[..24].copy_from_slice(&head);
        let _ = Login::new().step(&header, &data, &FRESH, &OPEN);
    }
}
