//! What of a PC a kernel expects to find at fixed ports.

mod cmos;
mod power;
mod serial;
mod silent;

pub use cmos::Cmos;
pub use power::Power;
pub use serial::SerialPort;
pub use silent::Silent;
