//! Counts what a thread allocates, which shows a parser that believes a number in a file.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The most bytes that `job` held at once, beyond those held before it.
pub(crate) fn peak_bytes<T>(job: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let result = job();
    (result, PEAK.get() - before)
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(num_bytes: usize) {
    // A thread that is ending has no counters any more.
    let now = NOW.try_with(|now| {
        now.set(now.get().wrapping_add(num_bytes));
        now.get()
    });
    if let Ok(now) = now {
        PEAK.try_with(|peak| peak.set(peak.get().max(now))).ok();
    }
}

fn subtract(num_bytes: usize) {
    // What another thread allocated may be freed here.
    NOW.try_with(|now| now.set(now.get().saturating_sub(num_bytes)))
        .ok();
}

#[expect(unsafe_code, reason = "an allocator cannot be written without it")]
// SAFETY: every call goes to the system's allocator unchanged; the counters are plain numbers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        subtract(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
