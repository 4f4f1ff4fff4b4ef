//! Properties of `parse` and `encode` on hostile input.

use super::*;

// ---- properties ----

prop_compose! {
    /// A packet in good form as often as not: hostile values inside a sound frame.
    fn hostile()(
        kind in 0_u8..10,
        options in proptest::collection::vec(
            (prop_oneof![Just(12_u8), Just(43), Just(50), Just(51), Just(52), Just(54),
                Just(55), Just(57), Just(60), Just(61), Just(77), Just(82), Just(93), Just(94),
                Just(97), Just(175), any::<u8>()],
             prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                proptest::collection::vec(any::<u8>(), 0..=255),
                Just(b"PXEClient:Arch:00007:UNDI:003000".to_vec()),
                Just(b"HTTPClient:Arch:00016".to_vec()),
                Just(b"iPXE".to_vec()),
            ]), 0..14),
        header in proptest::collection::vec((0_usize..236, any::<u8>()), 0..12),
        tail in proptest::collection::vec(any::<u8>(), 0..30),
        end: bool,
        cut in 0_usize..4,
    ) -> Vec<u8> {
        let mut made = packet(kind);
        for (code, data) in options {
            made = made.option(code, &data);
        }
        for (at, byte) in header {
            made = made.at(at, &[byte]);
        }
        made.end = end;
        let mut bytes = made.raw(&tail).bytes();
        bytes.truncate(bytes.len() - cut);
        bytes
    }
}

fn boots() -> impl Strategy<Value = (Shape, Boot)> {
    let boot = prop_oneof![
        Just(Boot::Nothing),
        "[a-z.]{1,140}".prop_map(Boot::TftpLoader),
        "[a-z.]{1,140}".prop_map(Boot::HttpLoader),
        Just(Boot::Script),
    ];
    let shape = prop_oneof![
        Just(Shape::Full),
        Just(Shape::Inform),
        Just(Shape::Proxy),
        Just(Shape::Nak)
    ];
    (shape, boot)
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = parse(&bytes);
        let mut framed = packet(1).bytes();
        framed.extend_from_slice(&bytes);
        let _ = parse(&framed);
    }

    /// Whatever was understood, the answer is in good form, within the client's size, and
    /// echoes what it must.
    #[test]
    fn answers_are_well_formed(
        bytes in hostile(),
        (shape, boot) in boots(),
        seconds: u32,
        own in proptest::collection::btree_map(any::<u8>(), "[0-9a-f]{0,700}", 0..6),
        url in "[a-z]{0,300}",
    ) {
        let Ok(Packet::Request(request)) = parse(&bytes) else { return Ok(()); };
        let mut range = range();
        // What must be a certain length is an admin's to break, and validated elsewhere.
        range.options = own.into_iter().filter(|(c, _)| *c > 199).collect();
        let kind = match shape {
            Shape::Nak => ReplyKind::Nak(NakReason::Taken),
            Shape::Inform => ReplyKind::Ack,
            Shape::Full | Shape::Proxy => ReplyKind::Offer,
        };
        let mut reply = reply(kind, shape, if shape == Shape::Nak { Boot::Nothing } else { boot });
        reply.lease_seconds = reply.lease_seconds.map(|_| seconds);
        let frame = Frame { script_url: Some(&url), ..frame(&range) };
        let bytes = encode(&request, &reply, &frame);
        prop_assert!(bytes.len() <= usize::from(request.max_size.min(1500)) - 28);
        let got = match check(&bytes) {
            Ok(got) => got,
            Err(why) => return Err(TestCaseError::fail(why)),
        };
        prop_assert_eq!(u32::from_be_bytes(got.bytes[4..8].try_into().unwrap()), request.xid);
        prop_assert_eq!(got.bytes[28..34].to_vec(), request.mac.octets().to_vec());
        let mut echoed = vec![(82, &request.relay_information)];
        if request.client_identifier.as_ref().is_some_and(|id| id.len() < 100) {
            echoed.push((61, &request.client_identifier));
        }
        for (code, sent) in echoed {
            let left_out = code == 82 && got.get(82).is_none()
                && sent.as_ref().is_some_and(|d| d.len() > 200);
            prop_assert!(left_out || got.get(code) == sent.as_deref(), "option {}", code);
        }
    }

    /// A reply has no byte that we did not set: where the request is full of poison, none of
    /// it comes back but in what is echoed.
    #[test]
    fn nothing_of_the_request_leaks(poison in 0xa0_u8..0xf0, (shape, boot) in boots()) {
        let clean = packet(DISCOVER).pxe(7);
        let mut dirty = clean.clone()
            .at(8, &[poison; 2])
            .at(16, &[poison; 8])
            .at(34, &[poison; 10])
            .at(44, &[poison; 64])
            .at(108, &[poison; 128])
            .option(12, &[poison; 30])
            .option(81, &[poison; 30])
            .option(125, &[poison; 200])
            .option(224, &[poison; 200])
            .bytes();
        dirty.extend_from_slice(&[poison; 300]);
        let Ok(Packet::Request(dirty)) = parse(&dirty) else { panic!("refused"); };
        let range = range();
        let reply = reply(ReplyKind::Offer, shape, boot);
        prop_assert_eq!(
            encode(&dirty, &reply, &frame(&range)),
            encode(&request(&clean), &reply, &frame(&range))
        );
    }
}
