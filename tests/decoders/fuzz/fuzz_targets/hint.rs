//! See `umbra_decoders::hint`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_decoders::hint(data));
