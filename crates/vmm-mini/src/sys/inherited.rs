//! Descriptors that a parent process has left open for this one.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// A copy of descriptor `number`, which does not get to programs that this one starts.
///
/// # Errors
/// There is no such descriptor.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the borrow ends with this expression, in which the number is only copied; if it is not open the copy fails.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}
