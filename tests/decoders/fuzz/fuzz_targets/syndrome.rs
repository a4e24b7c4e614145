//! See `umbra_decoders::syndrome`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_decoders::syndrome(data));
