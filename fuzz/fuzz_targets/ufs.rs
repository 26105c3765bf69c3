#![no_main]

#[macro_use]
mod libfuzzer;

libfuzzer!("ufs");
