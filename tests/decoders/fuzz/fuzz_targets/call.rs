//! See `umbra_decoders::call`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_decoders::call(data));
