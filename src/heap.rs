//! The allocator, told to give memory back that was needed for a moment: a large catalog is read
//! in rows that are gone once it is packed, and the allocator would keep their pages.

/// Gives free pages back to the system. Takes some milliseconds, in which other threads may wait
/// for memory: call it after large work, not after each.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it may be called by any thread at any time, and touches free memory only.
        #[expect(unsafe_code, reason = "the allocator's own call has no wrapper")]
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays() {
        let kept: Vec<Vec<u8>> = (0..1000_u32)
            .map(|n| vec![n.to_le_bytes()[0]; 700])
            .collect();
        let freed: Vec<Vec<u8>> = (0..1000).map(|_| vec![1; 700]).collect();
        drop(freed);
        give_back();
        assert!(
            (0_u32..)
                .zip(&kept)
                .all(|(n, v)| v.iter().all(|b| *b == n.to_le_bytes()[0]))
        );
    }
}
