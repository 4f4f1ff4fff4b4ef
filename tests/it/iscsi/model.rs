//! Random operations against a model of bytes. `DLS_TORTURE_OPS` sets their number.

use super::house::House;
use super::raw::{Raw, ten};

/// Blocks that are played with: some lie where reads go to a worker.
const BLOCKS: u32 = 2048;

/// SplitMix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn next_u32(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from(z >> 32).unwrap()
    }
}

#[test]
fn random_operations_equal_the_model() {
    let house = House::new(true);
    let operations: u32 = std::env::vars()
        .find(|(key, _)| key == "DLS_TORTURE_OPS")
        .map_or(100_000, |(_, value)| value.parse().unwrap());
    let seed = std::env::vars().find(|(key, _)| key == "DLS_SEED");
    let mut random = Random(seed.map_or(17, |(_, value)| value.parse().unwrap()));
    println!("seed {}, {operations} operations", random.0);
    let mut raw = Raw::login(house.address, 1, "ImmediateData=Yes|InitialR2T=Yes");
    let mut model = vec![0_u8; BLOCKS as usize * 512];
    for n in 0..operations {
        let lba = random.next_u32() % BLOCKS;
        let blocks = (random.next_u32() % 32 + 1).min(BLOCKS - lba);
        let range = lba as usize * 512..(lba + blocks) as usize * 512;
        let fill = n.to_le_bytes();
        match random.next_u32() % 16 {
            0..=6 => {
                let ended = raw.read(lba, blocks);
                assert!(ended.data == model[range], "operation {n}");
            }
            7..=11 => {
                let data: Vec<u8> = fill.iter().copied().cycle().take(range.len()).collect();
                let immediate = random.next_u32() as usize % (data.len() + 1) / 4 * 4;
                assert_eq!(raw.write(lba, &data, immediate).status, 0);
                model[range].copy_from_slice(&data);
            }
            12 => {
                let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                list.extend(u64::from(lba).to_be_bytes());
                list.extend(blocks.to_be_bytes());
                list.extend([0; 4]);
                let mut cdb = ten(0x42, 0, 24);
                cdb[2..6].fill(0);
                assert_eq!(raw.command(&cdb, 0, &list, 24).status, 0);
                model[range].fill(0);
            }
            13 => {
                let data: Vec<u8> = fill.iter().copied().cycle().take(512).collect();
                let ended = raw.command(&ten(0x41, lba, blocks), 0, &data, 512);
                assert_eq!(ended.status, 0);
                for block in model[range].chunks_mut(512) {
                    block.copy_from_slice(&data);
                }
            }
            14 => {
                let mut data = model[lba as usize * 512..][..512].to_vec();
                data.extend(fill.iter().copied().cycle().take(512));
                let wrong = random.next_u32().is_multiple_of(2);
                data[100] ^= u8::from(wrong);
                let mut cdb = [0; 16];
                cdb[0] = 0x89;
                cdb[6..10].copy_from_slice(&lba.to_be_bytes());
                cdb[13] = 1;
                let ended = raw.command(&cdb, 0, &data, 1024);
                assert_eq!(ended.status, if wrong { 2 } else { 0 });
                if !wrong {
                    model[lba as usize * 512..][..512].copy_from_slice(&data[512..]);
                }
            }
            _ => {
                assert_eq!(raw.command(&ten(0x35, lba, blocks), 0, &[], 0).status, 0);
            }
        }
    }
}
