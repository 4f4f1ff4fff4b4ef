//! The allocator, told to give memory back that was needed for a moment: a large catalog is read
//! in rows that are gone once it is packed, and the allocator would keep their pages.

/// A block from this size on is mapped for itself, and given back when it is freed, bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED: libc::c_int = 4 << 20;

/// Free memory at the end of a heap that is kept for what comes next, bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 16 << 20;

/// The same while memory is given back, bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LITTLE: libc::c_int = 128 << 10;

/// A block that the C library looks at the end of its heap for when it is freed (from 64 KiB on),
/// bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const BESIDE_THE_END: usize = 256 << 10;

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

/// Gives free pages back to the system, those at the end of the calling thread's heap too. Takes
/// some milliseconds, in which other threads may wait for memory: call it after large work, not
/// after each.
///
/// `malloc_trim` leaves the end of every heap but the first as it is. That end is given back when a
/// block beside it is freed, and only from 16 MiB on: for that one block the limit is low.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the numbers may be set, and `malloc_trim` be called, by any thread at any time;
        // they touch free memory only. The block is freed once, null may be freed.
        #[expect(unsafe_code, reason = "the allocator's own calls have no wrapper")]
        unsafe {
            libc::malloc_trim(0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LITTLE);
            let last = std::hint::black_box(libc::malloc(BESIDE_THE_END));
            libc::free(last);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
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

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn the_end_of_a_threads_heap_is_given_back() {
        keep_small();
        let (held, freed, left) = std::thread::spawn(|| {
            let records: Vec<Vec<u8>> = (0..80_000).map(|_| vec![1; 100]).collect();
            let held = resident();
            drop(records);
            let freed = resident();
            give_back();
            (held, freed, resident())
        })
        .join()
        .expect("it runs to its end");
        assert!(freed + (2 << 20) > held, "nothing was kept: {held} {freed}");
        assert!(left + (6 << 20) < held, "of {held} bytes {left} are left");
    }

    /// What this process has in memory that is of no file, bytes.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("the kernel's own file");
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let kib = line
            .and_then(|l| l.split_whitespace().next())
            .expect("it has that line");
        kib.parse::<u64>().expect("a number") << 10
    }
}
