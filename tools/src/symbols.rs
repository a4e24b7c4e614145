//! Code addresses as people read them: function, file and line, inlined callers included.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use addr2line::Loader;

use crate::console::{Line, Space, parse};

/// The ELF files of what runs on a machine. A file is read when its first address is asked for.
#[derive(Default)]
pub struct Symbols {
    files: BTreeMap<Space, PathBuf>,
    loaders: BTreeMap<Space, Option<Loader>>,
}

impl Symbols {
    /// Symbols for the code in each of these files.
    pub fn new(files: impl IntoIterator<Item = (Space, PathBuf)>) -> Self {
        Self { files: files.into_iter().collect(), loaders: BTreeMap::new() }
    }

    /// A console line for people: code addresses get their place in the source.
    pub fn show(&mut self, line: &str) -> String {
        match parse(line) {
            Line::Pc(space, address) => self.address(space, address),
            _ => line.to_owned(),
        }
    }

    /// An address with all that is known about it: one line for each function that was inlined
    /// there, innermost first.
    pub fn address(&mut self, space: Space, address: u64) -> String {
        let mut out = format!("  {} {address:#018x}", space.name());
        let files = &self.files;
        let loader =
            self.loaders.entry(space).or_insert_with(|| Loader::new(files.get(&space)?).ok());
        let Some(loader) = loader else {
            return out;
        };
        let mut frames = Vec::new();
        if let Ok(mut iterator) = loader.find_frames(address) {
            while let Ok(Some(frame)) = iterator.next() {
                let function =
                    frame.function.and_then(|name| name.demangle().ok().map(String::from));
                let place = frame.location.and_then(|location| {
                    Some(format!("{}:{}", location.file?, location.line.unwrap_or(0)))
                });
                if function.is_some() || place.is_some() {
                    frames.push((function, place));
                }
            }
        }
        // Assembly has lines but no functions in its debug information: the symbol table helps.
        if let [] | [(None, _)] = frames.as_slice()
            && let Some(symbol) = loader.find_symbol_info(address)
        {
            let name = rustc_demangle::demangle(symbol.name());
            let name = format!("{name:#}+{:#x}", address - symbol.address());
            let place = frames.pop().and_then(|(_, place)| place);
            frames.push((Some(name), place));
        }
        for (depth, (function, place)) in frames.into_iter().enumerate() {
            if depth > 0 {
                out.push_str("\n      inlined in");
            }
            let _ = write!(out, " {}", function.as_deref().unwrap_or("?"));
            if let Some(place) = place {
                let _ = write!(out, " at {place}");
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_this_program_has_its_function_and_file() {
        let program = std::env::current_exe().unwrap();
        // The address at which the file says this function is: the program itself may be loaded
        // elsewhere.
        let name = "an_address_in_this_program_has_its_function_and_file";
        let data = std::fs::read(&program).unwrap();
        let file = object::File::parse(data.as_slice()).unwrap();
        let symbol = object::Object::symbols(&file)
            .filter(|symbol| object::ObjectSymbol::size(symbol) > 0)
            .find(|symbol| object::ObjectSymbol::name(symbol).is_ok_and(|n| n.contains(name)))
            .expect("this test's symbol");
        let address = object::ObjectSymbol::address(&symbol);
        let mut symbols = Symbols::new([(Space::Hyp, program)]);
        let text = symbols.show(&format!("@pc hyp {address:#x}"));
        assert!(text.contains(name), "{text}");
        assert!(text.contains("symbols.rs:"), "{text}");
    }

    #[test]
    fn without_a_file_the_address_remains() {
        let mut symbols = Symbols::default();
        assert_eq!(symbols.show("@pc guest 0x80"), "  guest 0x0000000000000080");
        assert_eq!(symbols.show("plain"), "plain");
    }
}
