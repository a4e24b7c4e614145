//! The unsafe budget: the documentation of hyp, and of the kernel module's Rust half, has a table of the modules that
//! use `unsafe`, how often and why (`hyp/src/lib.rs`, `host/linux/src/lib.rs`). Here it is compared with the sources:
//! what is not in the table must forbid it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::workspace;

/// Whose sources, and where they are in the checkout.
const SOURCES: &[(&str, &str)] = &[("hyp", "hyp/src"), ("the module", "host/linux/src")];
/// Which of them has the table.
const TABLE: &str = "lib.rs";

/// How often a file says `unsafe`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    /// `unsafe { … }`
    blocks: usize,
    /// `unsafe impl`, `unsafe fn`, `unsafe extern`, `#[unsafe(…)]`
    declarations: usize,
}

impl Uses {
    const fn none(self) -> bool {
        self.blocks + self.declarations == 0
    }
}

/// What a source file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Source {
    uses: Uses,
    /// It has `#![forbid(unsafe_code)]`.
    forbids: bool,
}

impl Source {
    fn parse(text: &str) -> Result<Self> {
        let tokens: TokenStream =
            text.parse().map_err(|error| anyhow::anyhow!("is no Rust: {error}"))?;
        let mut source = Self::default();
        source.uses.count(tokens.clone());
        // An inner attribute of the file: before any item.
        let mut tokens = tokens.into_iter();
        while let (Some(TokenTree::Punct(hash)), Some(TokenTree::Punct(bang))) =
            (tokens.next(), tokens.next())
        {
            let (true, true, Some(attribute)) =
                (hash.as_char() == '#', bang.as_char() == '!', tokens.next())
            else {
                break;
            };
            source.forbids |= attribute.to_string().replace(' ', "") == "[forbid(unsafe_code)]";
        }
        Ok(source)
    }
}

impl Uses {
    fn count(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => self.count(group.stream()),
                TokenTree::Ident(ident) if ident == "unsafe" => match tokens.peek() {
                    Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Brace => {
                        self.blocks += 1;
                    }
                    _ => self.declarations += 1,
                },
                _ => {}
            }
        }
    }
}

/// The lines "| [`module`] | blocks | declarations | why |" of the table, as files.
fn table(text: &str) -> Result<BTreeMap<PathBuf, Uses>> {
    let mut all = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("//! | `")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [file, blocks, declarations, why, ""] = cells[..] else {
            anyhow::bail!("`{line}` is no line of four cells");
        };
        ensure!(!why.is_empty(), "no reason for {file}");
        let uses = Uses { blocks: blocks.parse()?, declarations: declarations.parse()? };
        let file = file.strip_suffix('`').context("a file's name is in backquotes")?;
        ensure!(all.insert(PathBuf::from(file), uses).is_none(), "{file} is there twice");
    }
    ensure!(!all.is_empty(), "no table");
    Ok(all)
}

/// The files whose inner attributes hold for this one too: the modules that it is in.
fn parents(file: &Path) -> Vec<PathBuf> {
    file.ancestors()
        .skip(1)
        .filter(|folder| !folder.as_os_str().is_empty())
        .flat_map(|folder| [folder.with_extension("rs"), folder.join("mod.rs")])
        .filter(|parent| parent != file)
        .collect()
}

/// What is wrong, if anything.
fn compare(table: &BTreeMap<PathBuf, Uses>, sources: &BTreeMap<PathBuf, Source>) -> Vec<String> {
    let mut wrong = Vec::new();
    let unsafe_parents: BTreeSet<PathBuf> =
        table.keys().flat_map(|file| parents(file)).chain([PathBuf::from(TABLE)]).collect();
    for (file, source) in sources {
        let name = file.display();
        match table.get(file) {
            Some(&listed) if listed != source.uses => wrong.push(format!(
                "{name} has {} unsafe blocks and {} declarations; the table says {} and {}",
                source.uses.blocks, source.uses.declarations, listed.blocks, listed.declarations
            )),
            Some(_) => {}
            None if !source.uses.none() => {
                wrong.push(format!("{name} has unsafe code and is not in the table"));
            }
            // A module that others with unsafe code are in can't forbid it.
            None if unsafe_parents.contains(file) => {}
            None => {
                let forbids = |file: &PathBuf| sources.get(file).is_some_and(|s| s.forbids);
                if !source.forbids && !parents(file).iter().any(forbids) {
                    wrong.push(format!("{name} needs #![forbid(unsafe_code)]"));
                }
            }
        }
    }
    for file in table.keys().filter(|file| !sources.contains_key(*file)) {
        wrong.push(format!("{} is in the table and nowhere else", file.display()));
    }
    wrong
}

fn read(folder: &Path) -> Result<BTreeMap<PathBuf, Source>> {
    let mut sources = BTreeMap::new();
    for path in workspace::rust_files(folder)? {
        let complain = || path.display().to_string();
        let source = Source::parse(&fs::read_to_string(&path).with_context(complain)?)
            .with_context(complain)?;
        sources.insert(path.strip_prefix(folder)?.to_owned(), source);
    }
    Ok(sources)
}

/// Compares the sources with their tables.
///
/// # Errors
///
/// What differs.
pub fn check() -> Result<()> {
    for (whose, folder) in SOURCES {
        let folder = workspace::root().join(folder);
        let sources = read(&folder)?;
        let table = table(&fs::read_to_string(folder.join(TABLE))?)
            .with_context(|| folder.join(TABLE).display().to_string())?;
        let wrong = compare(&table, &sources);
        ensure!(wrong.is_empty(), "{whose}: {}", wrong.join("; "));
        let blocks: usize = table.values().map(|uses| uses.blocks).sum();
        eprintln!(
            "{whose}: {blocks} unsafe blocks in {} of {} files, each with its reason; the rest forbids them",
            table.len(),
            sources.len()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAFE: &str = "//! unsafe {}\n#![forbid(unsafe_code)]\nfn f() { \"unsafe {}\"; }\n";
    const UNSAFE: &str = "#[unsafe(no_mangle)]\nunsafe fn f() { /* unsafe */ unsafe { g() } }\n\
        unsafe impl Send for T {}\nmacro_rules! m { () => { unsafe { h() } } }\n";
    const TABLE_TEXT: &str = "//! | file | blocks | declarations | why |\n//! |---|---|---|---|\n\
        //! | `a/b.rs` | 2 | 3 | registers |\n";

    fn wrong(files: &[(&str, &str)]) -> String {
        let parse =
            |&(name, text): &(&str, &str)| (PathBuf::from(name), Source::parse(text).unwrap());
        compare(&table(TABLE_TEXT).unwrap(), &files.iter().map(parse).collect()).join("; ")
    }

    #[test]
    fn code_counts_and_text_does_not() {
        let source = Source::parse(SAFE).unwrap();
        assert!(source.uses.none() && source.forbids);
        let source = Source::parse(UNSAFE).unwrap();
        assert_eq!(source.uses, Uses { blocks: 2, declarations: 3 });
        assert!(!source.forbids);
        assert!(!Source::parse("mod a { #![forbid(unsafe_code)] }").unwrap().forbids);
        assert!(Source::parse("fn {").is_err());
    }

    #[test]
    fn every_difference_is_told() {
        let (listed, lib) = (("a/b.rs", UNSAFE), ("lib.rs", "mod a;"));
        assert_eq!(wrong(&[listed, lib, ("a/mod.rs", "mod b;"), ("c.rs", SAFE)]), "");
        assert_eq!(wrong(&[listed, ("d.rs", SAFE), ("d/e.rs", "mod f;"), ("d/e/f.rs", "")]), "");
        assert!(wrong(&[listed, ("c.rs", UNSAFE)]).contains("c.rs has unsafe code"));
        assert!(wrong(&[listed, ("c.rs", "fn f() {}")]).contains("c.rs needs"));
        assert!(wrong(&[listed, ("a/c.rs", "fn f() {}")]).contains("a/c.rs needs"));
        assert!(wrong(&[("a/b.rs", "unsafe impl S for T {}")]).contains("0 unsafe blocks and 1"));
        assert!(wrong(&[lib]).contains("nowhere else"));
        assert!(table(&TABLE_TEXT.replace("registers", "")).is_err());
        assert!(table("//! nothing").is_err());
    }

    #[test]
    fn the_checkout_keeps_to_its_budget() {
        check().unwrap();
    }
}
