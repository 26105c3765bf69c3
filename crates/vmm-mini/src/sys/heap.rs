//! The C library's heap.

/// Lets all threads have one heap. For a heap of each, glibc looks at the host's processors in /sys, which the sandbox forbids.
pub(crate) fn one_for_all() {
    // SAFETY: it only sets a number of the allocator's own.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
