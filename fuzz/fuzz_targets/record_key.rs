#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| idempotent_invariants::record_key(bytes));
