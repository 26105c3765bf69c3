//! Ending by a signal without leaving half-made files behind.

use imgcore::overlay::between_commits;
use imgcore::storage::remove_unfinished;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// From now on SIGINT and SIGTERM remove what is being made before they end the program, which then has ended by the signal,
/// as a script expects. An image that is being committed to is finished first.
pub fn clean_up() {
    // Without them an output stays under its temporary name: no reason not to go on.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let _whole = between_commits();
            remove_unfinished();
            let _ = emulate_default_handler(signal);
        }
    });
}
