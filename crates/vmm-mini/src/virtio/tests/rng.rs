//! Entropy is there, and differs.

use super::*;
use crate::virtio::rng::Rng;

#[test]
fn bytes_differ() {
    let mut guest = Guest::new(Rng::new());
    guest.start();
    let (first, len) = guest.ask(0, &[], &[64]);
    let (second, _) = guest.ask(0, &[], &[40, 24]);
    assert_eq!(len, 64);
    assert_ne!(first, second);
    assert!(first.iter().any(|&byte| byte != 0) && second[40..].iter().any(|&byte| byte != 0));
    let (many, len) = guest.ask(0, &[], &[100_000]);
    assert_eq!(len, 256, "as much as the host gives at once");
    assert!(many[256..].iter().all(|&byte| byte == 0));
    assert_eq!(guest.ask(0, &[b"nothing to read here"], &[]).1, 0);
}
