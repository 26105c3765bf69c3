//! Whatever goes wrong, the image is as it was.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::guest::{Guest, appliance, run};

#[test]
fn failures_leave_the_image_as_it_was() {
    if !appliance() {
        return;
    }
    let raw = Guest::new(|_| {});
    let qcow2 = Guest::new(|_| {}).qcow2();
    std::fs::write(raw.path("large"), vec![7; 80 << 20]).unwrap();
    for guest in [&raw, &qcow2] {
        let before = guest.sum();
        // The third of five.
        let words = ["--write", "/etc/a:1", "--mkdir", "/srv/x", "--edit", "/etc/none:s/a/b/", "--touch", "/etc/b", "--hostname", "new"];
        let message = guest.failure("customize", &words);
        assert!(message.contains("/etc/none: no such file"), "{message}");
        let message = guest.failure("customize", &["--write", "/etc/a:1", "--run-command", "echo words >&2; exit 3"]);
        assert!(message.contains("exit code 3") && message.contains("words"), "{message}");
        guest.text("customize", &["--dry-run", "--write", "/etc/motd:gone"]);
        let large = raw.at("large");
        let message = guest.failure("copy-in", &[&large, "/srv"]);
        assert!(message.contains("large: No space left on device"), "{message}");
        assert_eq!(guest.sum(), before);
        // And without a failure it is another one, which is sound.
        guest.text("customize", &["--write", "/etc/motd:changed"]);
        assert_ne!(guest.sum(), before);
        assert_eq!(guest.text("cat", &["/etc/motd"]), "changed");
        guest.is_clean();
    }
}

#[test]
fn whoever_is_killed_leaves_the_image_as_it_was() {
    if !appliance() {
        return;
    }
    let guest = Guest::new(|_| {});
    std::fs::write(guest.path("file"), vec![7; 3 << 20]).unwrap();
    let before = guest.sum();
    let mut random = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    for (round, signal) in [Signal::INT, Signal::TERM, Signal::KILL, Signal::KILL].into_iter().enumerate() {
        let words = ["-q", "--copy-in", "file:/srv", "--write", "/etc/motd:gone", "--run-command", "sleep 1000"];
        let mut child = guest.command("customize", &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_micros(u64::from(random % 1_500_000)));
        let pid = Pid::from_child(&child);
        if round < 3 {
            kill_process(pid, signal).unwrap();
        }
        // In the last round the machine that works on it dies under it, and any that would take its place.
        let until = Instant::now() + Duration::from_secs(60);
        while round == 3 && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it goes on without its machine");
            let of_threads = format!("cat /proc/{}/task/*/children 2>/dev/null; true", pid.as_raw_nonzero());
            for machine in run(&["sh", "-c", &of_threads]).split_whitespace() {
                let _ = kill_process(Pid::from_raw(machine.parse().unwrap()).unwrap(), signal);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!child.wait().unwrap().success());
        assert_eq!(guest.sum(), before, "round {round}");
    }
}

#[test]
fn whoever_is_killed_while_the_disk_is_written_leaves_a_way_back() {
    if !appliance() {
        return;
    }
    for guest in [Guest::new(old_file), Guest::new(old_file).qcow2()] {
        let before = guest.sum();
        let journal = guest.path(&format!("{}.guestlift-undo", guest.image().file_name().unwrap().display()));
        let cut = (0..8).any(|_| {
            let mut child = guest.command("customize", &["-q", "--run-command", "cat /srv/old /srv/old > /srv/new"]).spawn().unwrap();
            // A journal without its head belongs to a change that had not begun.
            let begun = || journal.metadata().is_ok_and(|journal| journal.len() > 1000);
            while !begun() && child.try_wait().unwrap().is_none() {
                std::hint::spin_loop();
            }
            let _ = kill_process(Pid::from_child(&child), Signal::KILL);
            !child.wait().unwrap().success() && journal.exists()
        });
        assert!(cut, "not once in eight times it was killed in time");
        let message = guest.failure("cat", &["/etc/motd"]);
        assert!(message.contains("half done") && message.contains("img check -r all"), "{message}");
        // Whoever changes it next begins with what it was; here that is all that happens.
        let message = guest.failure("customize", &["-q", "--edit", "/etc/none:s/a/b/"]);
        assert!(message.contains("had been cut short"), "{message}");
        assert_eq!(guest.sum(), before);
        assert!(!journal.exists());
        guest.is_clean();
    }
}

const OLD: usize = 12 << 20;

fn old_file(root: &std::path::Path) {
    std::fs::write(root.join("srv/old"), vec![7; OLD]).unwrap();
}

#[test]
fn an_image_in_use_is_read_only_if_asked_and_never_changed() {
    let guest = Guest::new(|_| {});
    let formats = imgcore::Formats::new();
    let gate = imgcore::LocalGate;
    let before = guest.sum();
    let options = imgcore::OpenOptions::new(&gate).format("raw");
    let in_use = formats.open_mut(guest.image(), &options).unwrap();
    for (command, args) in [("cat", &["/etc/motd"][..]), ("edit", &["-e", "s/h/H/", "/etc/motd"]), ("customize", &["--touch", "/x"])] {
        let message = guest.failure(command, args);
        assert!(message.contains("lock"), "{message}");
    }
    assert_eq!(guest.text("cat", &["--ro", "/etc/motd"]), "hello\n");
    assert!(guest.failure("customize", &["--ro", "--touch", "/x"]).contains("--ro is for reading"));
    drop(in_use);
    assert_eq!(guest.sum(), before);
}
