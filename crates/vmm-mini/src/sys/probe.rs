//! The probe's programs for a guest's processor.

/// The port to which a program writes its last byte: 0, or the number of what came out wrong.
pub const DONE: u16 = 0x10;

// Position-independent code for 64-bit mode. What a program works on it finds in registers.
std::arch::global_asm!(
    ".pushsection .rodata.guestlift_probe, \"a\"",
    ".globl guestlift_probe_start, guestlift_probe_end",
    "guestlift_probe_start:",
    // The table that `Program` numbers: offsets of the programs from the start.
    ".long .Lprobe_instructions - guestlift_probe_start",
    ".long .Lprobe_breakpoint - guestlift_probe_start",
    ".long .Lprobe_loop - guestlift_probe_start",
    ".long .Lprobe_map - guestlift_probe_start",
    ".long .Lprobe_cr3 - guestlift_probe_start",
    ".long .Lprobe_exit - guestlift_probe_start",
    // Instructions that emulators lack. RDI: 16 zero bytes, aligned.
    ".Lprobe_instructions:",
    "mov ebp, 1",
    "mov rcx, 0x123456789",
    "movq xmm0, rcx",
    "paddq xmm0, xmm0",
    "movq rdx, xmm0",
    "shr rdx, 1",
    "cmp rdx, rcx",
    "jne .Lprobe_wrong",
    "mov ebp, 2",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 7",
    "mov ecx, 9",
    "lock cmpxchg16b [rdi]",
    "jnz .Lprobe_wrong",
    "cmp qword ptr [rdi + 8], 9",
    "jne .Lprobe_wrong",
    "mov ebp, 3",
    "xor esi, esi",
    "int3",
    "cmp esi, 1",
    "jne .Lprobe_wrong",
    "jmp .Lprobe_right",
    // The handler of INT3.
    ".Lprobe_breakpoint:",
    "inc esi",
    "iretq",
    // RCX turns of a loop.
    ".Lprobe_loop:",
    "dec rcx",
    "jnz .Lprobe_loop",
    "jmp .Lprobe_right",
    // RCX times: the entry at RSI makes the page at RDI one that begins with 1, by R8, and one that begins with 2, by R9.
    ".Lprobe_map:",
    "mov ebp, 4",
    "2:",
    "mov [rsi], r8",
    "invlpg [rdi]",
    "cmp qword ptr [rdi], 1",
    "jne .Lprobe_wrong",
    "mov [rsi], r9",
    "invlpg [rdi]",
    "cmp qword ptr [rdi], 2",
    "jne .Lprobe_wrong",
    "dec rcx",
    "jnz 2b",
    "jmp .Lprobe_right",
    // RCX times: all translations are dropped.
    ".Lprobe_cr3:",
    "mov rax, cr3",
    "3:",
    "mov cr3, rax",
    "dec rcx",
    "jnz 3b",
    "jmp .Lprobe_right",
    // RCX times: out of the guest and in again.
    ".Lprobe_exit:",
    "out 0x11, al",
    "dec rcx",
    "jnz .Lprobe_exit",
    ".Lprobe_right:",
    "xor ebp, ebp",
    ".Lprobe_wrong:",
    "mov eax, ebp",
    "out 0x10, al",
    "hlt",
    "guestlift_probe_end:",
    ".popsection",
);

/// A program, by its place in the table at the code's start.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// SSE, CMPXCHG16B and INT3.
    Instructions,
    /// No program but the handler of INT3.
    Breakpoint,
    /// A loop of two instructions.
    Loop,
    /// Page-table writes, INVLPG and an access.
    Map,
    /// Loads of CR3.
    Cr3,
    /// Exits.
    Exit,
}

impl Program {
    /// Its offset in [`code`].
    pub fn offset(self) -> u64 {
        let at = self as usize * 4;
        let entry = code().get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(entry.unwrap_or_default()).into()
    }
}

/// All programs.
pub fn code() -> &'static [u8] {
    unsafe extern "C" {
        static guestlift_probe_start: u8;
        static guestlift_probe_end: u8;
    }
    // SAFETY: both are labels of the block above, in this order in one section that is only read.
    unsafe {
        let (start, end) = (&raw const guestlift_probe_start, &raw const guestlift_probe_end);
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_lies_behind_the_table() {
        let programs = [Program::Instructions, Program::Breakpoint, Program::Loop, Program::Map, Program::Cr3, Program::Exit];
        let offsets: Vec<u64> = programs.iter().map(|p| p.offset()).collect();
        assert_eq!(offsets[0], 4 * programs.len() as u64);
        assert!(offsets.is_sorted() && offsets.iter().all(|o| *o < code().len() as u64), "{offsets:?}");
        assert!(code().len() < 4096);
    }
}
