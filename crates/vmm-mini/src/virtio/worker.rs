//! The thread of a running device: it sleeps until its driver or its host has something for it, and ends when it is told to.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Running;
use crate::sandbox;

/// What may wake a device's thread.
pub(super) struct Wakes {
    stopped: Arc<AtomicBool>,
    epoll: Epoll,
}

impl Wakes {
    fn new(stopped: Arc<AtomicBool>, stop: &EventFd, kicks: &[EventFd]) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for event in std::iter::once(stop).chain(kicks) {
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
        }
        Ok(Wakes { stopped, epoll })
    }

    /// Whether the thread is to end. Whoever works on one request for long asks now and then.
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Sleeps until the driver kicks a queue, the thread is to end, or `other` has what is waited for.
    pub fn wait(&self, kicks: &[EventFd], other: Option<(RawFd, EventSet)>) -> io::Result<()> {
        // A stream whose other end is gone would always wake: it is there only when it is waited for.
        if let Some((fd, events)) = other {
            self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, 0))?;
        }
        let woken = self.epoll.wait(-1, &mut [EpollEvent::default()]);
        if let Some((fd, _)) = other {
            self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())?;
        }
        if let Err(error) = woken
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        for kick in kicks {
            if let Err(error) = kick.read()
                && error.kind() != io::ErrorKind::WouldBlock
            {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// A device's thread. Dropping it ends the thread and waits for that.
struct Worker {
    stopped: Arc<AtomicBool>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// Runs a device in a thread of its own until what is returned is dropped. When `run` fails, the device needs a reset.
pub(super) fn spawn(
    name: &str,
    running: Running,
    run: impl FnOnce(&Running, &Wakes) -> io::Result<()> + Send + 'static,
) -> io::Result<Box<dyn Send + Sync>> {
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    let wakes = Wakes::new(stopped.clone(), &stop, &running.kicks)?;
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        if sandbox::narrow().and_then(|()| run(&running, &wakes)).is_err() {
            running.interrupt.needs_reset();
        }
    })?;
    Ok(Box::new(Worker { stopped, stop, thread: Some(thread) }))
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // Fails only when it is full, and then it wakes already.
        let _ = self.stop.write(1);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
