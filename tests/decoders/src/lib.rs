//! What must hold of hyp's decoders, whatever bytes they are given.
//!
//! Each body takes bytes, makes the decoder's input of them and panics if something is wrong: not only
//! if the decoder panics, but if what it says is not true of the input. The same bodies run under
//! coverage guidance (`fuzz/`, with cargo-fuzz and a nightly compiler) and as property tests and over
//! the corpus that the fuzzer has found (`cargo test`).

#![forbid(unsafe_code)]

mod call;
mod command_line;
mod hint;
mod syndrome;
mod tree;

pub use call::call;
pub use command_line::command_line;
pub use hint::hint;
pub use syndrome::syndrome;
pub use tree::tree;

/// A body.
pub type Body = fn(&[u8]);

/// All of them, by the names of their targets and of their folders in the corpus.
pub const BODIES: &[(&str, Body)] = &[
    ("call", call),
    ("command_line", command_line),
    ("hint", hint),
    ("syndrome", syndrome),
    ("tree", tree),
];

/// Numbers from the front of `data`, little-endian; zeroes behind its end.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> u64 {
        let taken = self.0.len().min(8);
        let (front, rest) = self.0.split_at(taken);
        self.0 = rest;
        let mut bytes = [0; 8];
        bytes[..taken].copy_from_slice(front);
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::path::Path;

    /// Files of one target's corpus, by name.
    fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut files: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|file| {
                let path = file.unwrap().path();
                (path.display().to_string(), fs::read(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn the_corpus_still_holds() {
        for (name, body) in BODIES {
            let files = corpus(name);
            assert!(!files.is_empty(), "no corpus for {name}");
            for (path, data) in files {
                println!("{path}");
                body(&data);
            }
        }
    }

    #[test]
    fn the_corpus_is_small() {
        for (name, _) in BODIES {
            let bytes: usize = corpus(name).iter().map(|(_, data)| data.len()).sum();
            assert!(bytes < 256 << 10, "{name}: {bytes} bytes; run cargo fuzz cmin");
        }
    }

    /// Inputs like those of the corpus: one of its files, changed here and there.
    fn near(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let files: Vec<_> = corpus(name).into_iter().map(|(_, data)| data).collect();
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        (prop::sample::select(files), changes, any::<prop::sample::Index>(), 0..8u8).prop_map(
            |(mut data, changes, end, cut)| {
                for (at, byte) in changes {
                    if !data.is_empty() {
                        let at = at.index(data.len());
                        data[at] = byte;
                    }
                }
                // One of eight is cut short.
                if cut == 0 && !data.is_empty() {
                    data.truncate(end.index(data.len()));
                }
                data
            },
        )
    }

    macro_rules! properties {
        ($($name:ident: $body:expr, $corpus:literal;)*) => {
            proptest! {
                #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
                $(
                    #[test]
                    fn $name(
                        data in prop_oneof![
                            3 => near($corpus),
                            1 => prop::collection::vec(any::<u8>(), 0..128),
                        ]
                    ) {
                        $body(&data);
                    }
                )*
            }
        };
    }

    properties! {
        any_call: call, "call";
        any_command_line: command_line, "command_line";
        any_hint: hint, "hint";
        any_syndrome: syndrome, "syndrome";
        any_tree: tree, "tree";
    }
}
