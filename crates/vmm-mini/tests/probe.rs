//! The probe on a host whose KVM does run guests' kernels on its processor.

#[path = "../../../tests/kvm-host/host.rs"]
mod host;

use vmm_mini::probe::{Verdict, cached, probe};

/// Says that this is that host.
const THERE: &str = "GUESTLIFT_TEST_TRUE_KVM";

#[test]
fn a_true_kvm_works_for_whoever_may_open_it() {
    if std::env::var_os(THERE).is_some() {
        return there();
    }
    let mut on_kvm = host::host();
    on_kvm.args(["--user", "--deadline", "120"]).arg(std::env::current_exe().unwrap()).args(["--nocapture", "--exact"]);
    let done = on_kvm.arg("a_true_kvm_works_for_whoever_may_open_it").env(THERE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    println!("{said}");
}

fn there() {
    let first = probe();
    assert_eq!(first.verdict, Verdict::Works, "{first}");
    let folder = tempfile::tempdir().unwrap();
    let kept = cached(folder.path());
    assert_eq!(kept.verdict, Verdict::Works, "{kept}");
    // The same down to its time: it was not run again.
    assert_eq!(cached(folder.path()), kept);
    println!("{first}; {} and {} us", first.microseconds, kept.microseconds);
}
