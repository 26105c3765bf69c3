//! The serial port (16550A), on which the guest's kernel says what it dies of.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// Bytes that a line may have before it is passed on in pieces.
const LINE: usize = 256;

/// The port. Nothing is ever received on it.
pub struct SerialPort(Mutex<Serial<Interrupt, vm_superio::serial::NoEvents, Lines>>);

impl SerialPort {
    /// A port that writes to `out`, whose errors the guest does not see: it would not know what to do.
    pub fn new(irq: EventFd, out: Box<dyn Write + Send>) -> Self {
        SerialPort(Mutex::new(Serial::new(Interrupt(irq), Lines { out, line: Vec::with_capacity(LINE) })))
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (data, u8::try_from(offset)) {
            ([byte], Ok(offset)) => *byte = self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset),
            (data, _) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, *byte);
        }
    }
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The port flushes after each byte; this passes on whole lines, and what is left at the end.
struct Lines {
    out: Box<dyn Write + Send>,
    line: Vec<u8>,
}

impl Lines {
    fn pass_on(&mut self) -> io::Result<()> {
        let written = self.out.write_all(&self.line).and_then(|()| self.out.flush());
        self.line.clear();
        written
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.len() >= LINE || bytes.contains(&b'\n') {
            self.pass_on()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_whole_long_ones_in_pieces_and_the_last_at_the_end() {
        let kept = Kept::default();
        let port = SerialPort::new(EventFd::new(0).unwrap(), Box::new(kept.clone()));
        let text = format!("one\n{}\nlast", "x".repeat(LINE + 1));
        text.bytes().for_each(|b| port.write(0, &[b]));
        assert_eq!(kept.0.lock().unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [4, LINE, 2]);
        drop(port);
        assert_eq!(kept.0.lock().unwrap().concat(), text.as_bytes());
    }

    #[test]
    fn only_bytes_are_taken() {
        let kept = Kept::default();
        let port = SerialPort::new(EventFd::new(0).unwrap(), Box::new(kept.clone()));
        port.write(0, b"ab\n\n");
        let mut data = [0; 2];
        port.read(5, &mut data);
        assert_eq!(data, [0xff; 2]);
        drop(port);
        assert!(kept.0.lock().unwrap().concat().is_empty());
    }
}
