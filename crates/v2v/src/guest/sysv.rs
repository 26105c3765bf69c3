//! Init scripts in an order that insserv works out of what they say of themselves, as in Debian from 6.

use guestfs::Ext;
use guestfs::engine::Command;

use crate::step::Context;

/// Whether the guest's own tool has to change its runlevels: it may number all links anew.
pub fn is_ordered(cx: &Context<'_>) -> bool {
    let file = |path: &str| cx.fs.is_file(path.as_bytes());
    let insserv = ["/sbin/insserv", "/usr/sbin/insserv", "/usr/lib/insserv/insserv"].into_iter().any(file);
    insserv && file("/etc/init.d/.depend.boot") && file("/usr/sbin/update-rc.d")
}

/// Has `update-rc.d` with an action (`defaults`) change a service's links in these runlevels.
pub fn update_rc(cx: &mut Context<'_>, why: &str, service: &str, action: &str, levels: &[&str]) {
    cx.fs.command(why, Command::new(["update-rc.d", service].into_iter().chain(action.split(' '))));
    let places = places(cx, levels);
    cx.fs.makes(places);
}

/// What `update-rc.d` changes when it changes these runlevels.
pub fn places(cx: &Context<'_>, levels: &[&str]) -> Vec<String> {
    // The order of what starts at boot, in a runlevel, and of what stops.
    const ORDERS: [(&str, &[&str]); 3] = [("boot", &["S"]), ("start", &["2", "3", "4", "5"]), ("stop", &["0", "1", "6"])];
    let touched = ORDERS.iter().filter(|(_, of)| is_ordered(cx) && of.iter().any(|level| levels.contains(level)));
    let orders = touched.map(|(order, _)| format!("/etc/init.d/.depend.{order}"));
    levels.iter().map(|level| format!("/etc/rc{level}.d/")).chain(orders).collect()
}
