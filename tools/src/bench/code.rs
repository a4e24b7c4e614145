//! What stands at a code address: whose it is, in which function, and what kind of instruction.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags};

use crate::build::Built;

/// Who executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum World {
    /// EL2.
    Hyp = 0,
    /// EL1 and EL0 below it.
    Host = 1,
    /// A guest.
    Guest = 2,
}

/// An instruction of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Instruction synchronisation barrier.
    Isb,
    /// Data synchronisation barrier.
    Dsb,
    /// TLB maintenance.
    Tlbi,
    /// Cache maintenance: IC and DC.
    Cache,
    /// Any other.
    Other,
}

/// Classifies one A64 instruction (Arm ARM C6.2: ISB, DSB, SYS).
pub fn classify(instruction: u32) -> Class {
    match instruction {
        i if i & 0xffff_f0ff == 0xd503_30df => Class::Isb,
        // CRm selects the domain; DSB nXS has an encoding of its own.
        i if i & 0xffff_f0ff == 0xd503_309f || i & 0xffff_f3ff == 0xd503_323f => Class::Dsb,
        // SYS: op1, CRn, CRm, op2 in bits 18:5.
        i if i & 0xfff8_0000 == 0xd508_0000 => match i >> 12 & 0xf {
            8 | 9 => Class::Tlbi,
            7 if !is_translation(i) => Class::Cache,
            _ => Class::Other,
        },
        _ => Class::Other,
    }
}

/// AT, and what else shares CRn 7 with the caches: CRm 8 (AT), 3 (prediction restriction), 2 and 9.
fn is_translation(instruction: u32) -> bool {
    matches!(instruction >> 8 & 0xf, 2 | 3 | 8 | 9)
}

/// A label that a measurement begins or ends at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A row of the table begins.
    Row,
    /// It ends.
    RowEnd,
    /// What is counted begins.
    Begin,
    /// It ends: this instruction doesn't count.
    End,
}

fn mark(symbol: &str) -> Option<Mark> {
    let is = |prefixes: [&str; 2]| prefixes.iter().any(|prefix| symbol.starts_with(prefix));
    match symbol {
        "umbra_bench_row" => Some(Mark::Row),
        "umbra_bench_row_end" => Some(Mark::RowEnd),
        _ if is(["umbra_bench_begin_", "umbra_guest_begin_"]) => Some(Mark::Begin),
        _ if is(["umbra_bench_end_", "umbra_guest_end_"]) => Some(Mark::End),
        _ => None,
    }
}

/// An address.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Whose code.
    pub world: World,
    /// What kind of instruction.
    pub class: Class,
    /// A measurement begins or ends here.
    pub mark: Option<Mark>,
    /// Number of the function ([`Code::name`]).
    pub function: usize,
}

struct Section {
    start: u64,
    bytes: Vec<u8>,
    world: World,
}

/// The programs of a machine.
#[derive(Default)]
pub struct Code {
    sections: Vec<Section>,
    /// By address: name's number, and the mark.
    symbols: BTreeMap<u64, (usize, Option<Mark>)>,
    names: Vec<(String, World)>,
    known: HashMap<u64, Option<Place>>,
}

impl Code {
    /// Reads what was compiled.
    pub fn read(built: &Built) -> Result<Self> {
        let mut code = Self::default();
        for (path, world) in
            [(&built.hyp, World::Hyp), (&built.host, World::Host), (&built.guest, World::Guest)]
        {
            code.add(path, world).with_context(|| path.display().to_string())?;
        }
        Ok(code)
    }

    fn add(&mut self, path: &Path, world: World) -> Result<()> {
        let data = std::fs::read(path)?;
        let file = object::File::parse(data.as_slice())?;
        for section in file.sections() {
            let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
            if sh_flags.0 & object::elf::SHF_EXECINSTR.0 != 0 {
                let bytes = section.data()?.to_vec();
                self.sections.push(Section { start: section.address(), bytes, world });
            }
        }
        for symbol in file.symbols().filter(|symbol| symbol.is_definition()) {
            let Ok(name) = symbol.name() else { continue };
            if name.is_empty() || name.starts_with('$') {
                continue;
            }
            let mark = mark(name);
            // A mark inside a function is no function.
            let known = self.symbols.get(&symbol.address());
            let mark = mark.or_else(|| known.and_then(|&(_, mark)| mark));
            self.names.push((format!("{:#}", rustc_demangle::demangle(name)), world));
            self.symbols.insert(symbol.address(), (self.names.len() - 1, mark));
        }
        Ok(())
    }

    /// What stands at an address; `None`: none of the programs.
    pub fn place(&mut self, pc: u64) -> Option<Place> {
        if let Some(&place) = self.known.get(&pc) {
            return place;
        }
        let place = self.find(pc);
        self.known.insert(pc, place);
        place
    }

    fn find(&self, pc: u64) -> Option<Place> {
        let section = self.sections.iter().find(|section| {
            (section.start..section.start + section.bytes.len() as u64).contains(&pc)
        })?;
        let at = (pc - section.start) as usize;
        let word: [u8; 4] = section.bytes.get(at..at + 4)?.try_into().ok()?;
        let (&start, &(function, mark)) =
            self.symbols.range(section.start..=pc).next_back().unwrap_or((&0, &(0, None)));
        Some(Place {
            world: section.world,
            class: classify(u32::from_le_bytes(word)),
            mark: mark.filter(|_| start == pc),
            function,
        })
    }

    /// A function's name.
    pub fn name(&self, function: usize) -> &str {
        self.names.get(function).map_or("?", |(name, _)| name)
    }

    /// Whose it is.
    pub fn world(&self, function: usize) -> Option<World> {
        self.names.get(function).map(|&(_, world)| world)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barriers_and_maintenance_are_told_apart() {
        for (word, class, text) in [
            (0xd503_3fdf, Class::Isb, "isb"),
            (0xd503_3b9f, Class::Dsb, "dsb ish"),
            (0xd503_379f, Class::Dsb, "dsb nsh"),
            (0xd503_3f9f, Class::Dsb, "dsb sy"),
            (0xd503_3bbf, Class::Other, "dmb ish"),
            (0xd508_871f, Class::Tlbi, "tlbi vmalle1"),
            (0xd508_831f, Class::Tlbi, "tlbi vmalle1is"),
            (0xd50c_8020, Class::Tlbi, "tlbi ipas2e1is, x0"),
            (0xd508_751f, Class::Cache, "ic iallu"),
            (0xd50b_7a20, Class::Cache, "dc cvac, x0"),
            (0xd50b_7e20, Class::Cache, "dc civac, x0"),
            (0xd50b_7420, Class::Cache, "dc zva, x0"),
            (0xd508_7800, Class::Other, "at s1e1r, x0"),
            (0xd51c_1100, Class::Other, "msr hcr_el2, x0"),
            (0xd69f_03e0, Class::Other, "eret"),
            (0xd503_201f, Class::Other, "nop"),
        ] {
            assert_eq!(classify(word), class, "{text}");
        }
    }

    #[test]
    fn labels_are_marks() {
        assert_eq!(mark("umbra_bench_row"), Some(Mark::Row));
        assert_eq!(mark("umbra_bench_row_end"), Some(Mark::RowEnd));
        assert_eq!(mark("umbra_guest_begin_hvc_none"), Some(Mark::Begin));
        assert_eq!(mark("umbra_bench_end_any"), Some(Mark::End));
        assert_eq!(mark("umbra_guest_bench_hvc_none"), None);
    }
}
