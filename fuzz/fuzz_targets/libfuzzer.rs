//! A target of the table for libFuzzer: its body, and mutations that are mended.

macro_rules! libfuzzer {
    ($name:literal) => {
        libfuzzer_sys::fuzz_target!(|data: &[u8]| (guestlift_fuzz::target($name).run)(data));

        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
            let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
            (guestlift_fuzz::target($name).mend)(&mut data[..size]);
            size
        });
    };
}
