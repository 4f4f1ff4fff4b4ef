//! Disks that fail, and connections that end in the middle.

use super::house::{Fault, House};
use super::raw::{Raw, ten};

#[test]
fn a_failing_disk_is_told_of_and_recovers() {
    let house = House::new(true);
    let mut raw = Raw::login(house.address, 1, "ImmediateData=Yes");
    let block = [0xaa; 512];
    assert_eq!(raw.write(0, &block, 512).status, 0);
    house.disk.set(Fault::Io);
    for _ in 0..3 {
        assert_eq!(raw.read(0, 1).sense, Some((3, 0x1100)), "from memory");
        assert_eq!(raw.read(128, 1).sense, Some((3, 0x1100)), "by a worker");
        assert_eq!(raw.write(0, &[0; 512], 512).sense, Some((3, 0x0c00)));
        let flush = raw.command(&ten(0x35, 0, 0), 0, &[], 0);
        assert_eq!(flush.sense, Some((3, 0x0c00)));
    }
    house.disk.set(Fault::Full);
    assert_eq!(raw.write(8, &[0; 4096], 0).sense, Some((7, 0x2707)));
    assert_eq!(raw.read(0, 1).data, block, "it can still be read");
    house.disk.set(Fault::Nothing);
    assert_eq!(raw.write(8, &[0xbb; 4096], 0).status, 0);
    assert_eq!(raw.read(8, 8).data, [0xbb; 4096]);
    assert_eq!(raw.read(0, 1).data, block);
}

#[test]
fn the_same_port_again_ends_the_older_session() {
    let house = House::new(true);
    let mut older = Raw::login(house.address, 7, "ImmediateData=Yes");
    let mut beside = Raw::login(house.address, 8, "ImmediateData=Yes");
    // A write whose data has not come yet.
    older.send(&ten(0x2a, 0, 2), 0x20, &[1; 512], 1024);
    let r2t = older.receive().unwrap();
    assert_eq!(r2t.opcode(), 0x31);
    let mut newer = Raw::login(house.address, 7, "ImmediateData=Yes");
    assert!(older.receive().is_err(), "it was closed");
    assert_eq!(newer.write(0, &[2; 1024], 1024).status, 0);
    assert_eq!(newer.read(0, 2).data, [2; 1024]);
    assert_eq!(beside.read(0, 1).data, [2; 512], "another port lives on");
}

#[test]
fn data_out_of_order_ends_the_task_alone() {
    let house = House::new(true);
    let mut raw = Raw::login(house.address, 1, "ImmediateData=No|InitialR2T=Yes");
    for (number, offset) in [(1, 0), (0, 512), (u32::MAX, 0)] {
        raw.send(&ten(0x2a, 0, 2), 0x20, &[], 1024);
        let r2t = raw.receive().unwrap();
        raw.data_out(&r2t, number, offset, true, &[9; 512]);
        assert_eq!(
            raw.finish(&[]).sense,
            Some((0xb, 0x4b00)),
            "{number} {offset}"
        );
        // More of a task that is no more is ignored.
        raw.data_out(&r2t, 1, 512, true, &[9; 512]);
    }
    assert_eq!(raw.read(0, 2).data, [0; 1024], "nothing was written");
}

#[test]
fn two_compare_and_writes_never_both_win() {
    let house = House::new(true);
    let rounds = 200;
    let wins: Vec<u32> = std::thread::scope(|scope| {
        let one = |isid: u8| {
            let address = house.address;
            scope.spawn(move || {
                let mut raw = Raw::login(address, isid, "ImmediateData=Yes");
                let mut wins = 0;
                for round in 0..rounds {
                    let mut data = [0_u8; 1024];
                    data[..4].copy_from_slice(&u32::to_le_bytes(round));
                    data[512..516].copy_from_slice(&u32::to_le_bytes(round + 1));
                    let mut cdb = [0; 16];
                    cdb[0] = 0x89;
                    cdb[13] = 1;
                    let ended = raw.command(&cdb, 0, &data, 1024);
                    match ended.sense {
                        None => wins += 1,
                        // Lost; wait until the other has won this round.
                        Some(sense) => assert_eq!(sense, (0xe, 0x1d00)),
                    }
                    while raw.read(0, 1).data[..4] < u32::to_le_bytes(round + 1)[..]
                        && u32::from_le_bytes(raw.read(0, 1).data[..4].try_into().unwrap()) <= round
                    {
                    }
                }
                wins
            })
        };
        let both = [one(1), one(2)];
        both.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(wins.iter().sum::<u32>(), rounds, "{wins:?}");
}
