#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| idempotent_invariants::units_of_time_and_size(bytes));
