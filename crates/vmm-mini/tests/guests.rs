//! Guests of a few instructions, on a true KVM: how each of them ends, and what it leaves.

#[path = "../../../tests/kvm-host/host.rs"]
mod host;

use std::fs;
use std::path::Path;

use host::host;

/// Where a guest is loaded, and entered in 32-bit protected mode.
const ENTRY: u32 = 0x10_0000;

/// Says "up" on the serial port.
const UP: [u8; 16] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'u', 0xee, // mov al, 'u'; out dx, al
    0xb0, b'p', 0xee, //
    0xb0, b'\n', 0xee, //
    0x90, 0x90, 0x90, // nop
];

/// Guests by name: instructions after "up", the exit code of the monitor, and what it says.
const GUESTS: [(&str, &[u8], i32, &str); 7] = [
    // mov al, 0xfe; out 0x64, al
    ("off", &[0xb0, 0xfe, 0xe6, 0x64], 0, ""),
    // int3, without a table of handlers
    ("fault", &[0xcc], 1, "the guest died: triple fault"),
    // mov eax, 0xc0000000; jmp eax: no memory is there
    (
        "nowhere",
        &[0xb8, 0, 0, 0, 0xc0, 0xff, 0xe0],
        1,
        "the guest died: KVM's internal error 1 at 0xc0000000 (1: an instruction that it cannot emulate)",
    ),
    // cli; hlt: for ever
    ("halt", &[0xfa, 0xf4], 124, ""),
    // jmp to itself
    ("spin", &[0xeb, 0xfe], 124, ""),
    // mov edi, 0x200000; mov ecx, 4000; mov edx, 0x3f8; cld; rep insb: many bytes in one access; mov al, 0xfe; out 0x64, al
    ("string", &[0xbf, 0, 0, 0x20, 0, 0xb9, 0xa0, 0x0f, 0, 0, 0xba, 0xf8, 3, 0, 0, 0xfc, 0xf3, 0x6c, 0xb0, 0xfe, 0xe6, 0x64], 0, ""),
    // Reads and writes where devices could be, and at places without one; then off.
    (
        "devices",
        &[
            0xa1, 0x00, 0x00, 0x00, 0xd0, // mov eax, [0xd0000000]
            0xa3, 0x50, 0x00, 0x00, 0xd0, // mov [0xd0000050], eax
            0xa3, 0xfe, 0x11, 0x00, 0xd0, // mov [0xd00011fe], eax: across the end of the last device
            0xa3, 0x00, 0x00, 0x00, 0xdf, // mov [0xdf000000], eax
            0xa1, 0x00, 0x00, 0x00, 0xdf, // mov eax, [0xdf000000]
            0xe5, 0x70, 0xe7, 0x70, 0xe5, 0x42, // in eax, 0x70; out 0x70, eax; in eax, 0x42
            0xb0, 0xfe, 0xe6, 0x64,
        ],
        0,
        "",
    ),
];

/// Says A, B, C, … a line each with a pause, Z being followed by A.
const ALPHABET: [u8; 31] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb3, b'A', // mov bl, 'A'
    0x88, 0xd8, 0xee, // next: mov al, bl; out dx, al
    0xb0, b'\n', 0xee, // mov al, '\n'; out dx, al
    0xb9, 0x00, 0x09, 0x3d, 0x00, // mov ecx, 4000000
    0xe2, 0xfe, // loop to itself
    0xfe, 0xc3, // inc bl
    0x80, 0xfb, b'Z', // cmp bl, 'Z'
    0x76, 0xeb, // jbe next (-21)
    0xb3, b'A', // mov bl, 'A'
    0xeb, 0xe7, // jmp next (-25)
    0x90,
];

/// An ELF file with `code` at its entry for PVH (Xen's `elfnote.h`: XEN_ELFNOTE_PHYS32_ENTRY).
fn kernel(code: &[u8]) -> Vec<u8> {
    const CODE: u64 = 64 + 2 * 56 + 20;
    let segment = |kind: u32, offset: u64, address: u64, len: u64| {
        let words = [offset, address, address, len, len, 4];
        [&kind.to_le_bytes()[..], &7_u32.to_le_bytes(), &words.map(u64::to_le_bytes).concat()].concat()
    };
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([u64::from(ENTRY), 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0_u16, 0, 64, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    file.extend(segment(1, CODE, ENTRY.into(), code.len() as u64));
    file.extend(segment(4, 64 + 2 * 56, 0, 20));
    file.extend([4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), ENTRY].map(u32::to_le_bytes).concat());
    file.extend(code);
    file
}

/// Runs a script on a host with a true KVM, where `$V` is the monitor and the folder has the kernels; gives what it says.
fn on_kvm(folder: &Path, script: &str) -> String {
    fs::write(folder.join("initramfs"), "none").unwrap();
    let script = format!("V={}; cd {} || exit 1\n{script}", env!("CARGO_BIN_EXE_vmm-mini"), folder.display());
    let done = host().args(["sh", "-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{}\n{said}\n{}", done.status, String::from_utf8_lossy(&done.stderr));
    said
}

#[test]
fn every_guest_ends_as_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let mut script = String::new();
    for (name, code, exit, _) in GUESTS {
        fs::write(folder.path().join(name), kernel(&[&UP, code].concat())).unwrap();
        let patience = if exit == 124 { 2 } else { 60 };
        script += &format!("echo {name}:; timeout {patience} $V --kernel {name} --initramfs initramfs 2>&1; echo exit code $?\n");
    }
    let said = on_kvm(folder.path(), &script);
    let expected: String = GUESTS
        .iter()
        .map(|(name, _, code, what)| {
            let what = if what.is_empty() { String::new() } else { format!("vmm-mini: {what}\n") };
            format!("{name}:\nup\n{what}exit code {code}\n")
        })
        .collect();
    assert_eq!(said, expected);
}

#[test]
fn a_saved_guest_goes_on_where_it_was_as_often_as_one_likes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("alphabet"), kernel(&ALPHABET)).unwrap();
    let script = "
        mkdir /run/saved; touch first second third
        $V --kernel alphabet --initramfs initramfs --save /run/saved >first & pid=$!
        while [ $(wc -l <first) -lt 4 ]; do sleep 0.05; done
        kill -USR1 $pid && wait $pid || exit 2
        for n in second third; do
            $V --restore /run/saved >$n & pid=$!
            while [ $(wc -l <$n) -lt 4 ]; do sleep 0.05; done
            kill $pid
        done
        $V --restore /run/saved --places 3 2>&1 && exit 3
        truncate -s 1M /run/saved/memory
        $V --restore /run/saved 2>&1 && exit 4
        for n in first second third; do head -c 1000 $n | tr -d '\\n'; echo; done";
    let said = on_kvm(folder.path(), script);
    let [places, cut, first, second, third] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert!(places.contains("another number of places") && cut.contains("its memory is cut"), "{said}");
    let alphabet: String = ('A'..='Z').cycle().take(1100).collect();
    assert!(first.len() >= 4 && alphabet.starts_with(first), "{first}");
    for again in [second, third] {
        // The last letter may have been on its way.
        let from = alphabet.match_indices(&again[..4]).map(|(at, _)| at).find(|at| first.len().abs_diff(*at) <= 1);
        assert!(from.is_some_and(|from| alphabet[from..].starts_with(again)), "{first} {again}");
    }
}
