//! See `umbra_decoders::command_line`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_decoders::command_line(data));
