//! See `umbra_decoders::tree`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_decoders::tree(data));
