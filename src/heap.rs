//! The allocator, told to give memory back that was needed for a moment: a large catalog is read
//! in rows that are gone once it is packed, and the allocator would keep their pages.

/// A block from this size on is mapped for itself, and given back when it is freed, bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED: libc::c_int = 4 << 20;

/// Free memory at the end of a heap that is kept for what comes next, bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 16 << 20;

/// Keeps large blocks out of the heaps; call it once, before there are threads.
///
/// By itself the C library raises that limit up to 32 MiB with each large block that is freed: the
/// next one, a journal that is read to be folded, lies at the end of its thread's heap, where
/// [`give_back`] does not reach it, and the next thread has another heap.
pub fn keep_small() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it sets numbers of the allocator.
        #[expect(unsafe_code, reason = "the allocator's own call has no wrapper")]
        let taken = unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) == 1
        };
        if !taken {
            tracing::debug!("the allocator keeps its own limits");
        }
    }
}

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
