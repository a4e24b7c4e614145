//! Invariant I5: where FP, SIMD, SVE and SME instructions may stand in a built image.
//!
//! hyp must not touch those registers outside the few routines that save, load and zero them: they
//! hold somebody else's state. The compiler is told so by its target; this is the proof, on the
//! instructions themselves. Every word of every executable section is classified by the
//! architecture's top-level encoding (Arm ARM C4.1), except what mapping symbols (`$d`) mark as
//! data. No disassembler is trusted to know a new instruction: whole encoding groups count.
//!
//! What counts beside those groups: accesses to FPCR, FPSR and FPMR, and writes to SVCR (SMSTART,
//! SMSTOP), which change the mode and wipe the registers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags, SectionKind, SymbolKind};

/// Names of the routines in hyp that move register files begin so.
pub const HYP_ALLOWED: &[&str] = &["umbra_fp_"];

/// Why an instruction counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Scalar floating point and Advanced SIMD, data processing.
    SimdFp,
    /// Loads and stores of those registers.
    SimdFpLoadStore,
    /// The Scalable Vector Extension, RDVL and ADDVL included.
    Sve,
    /// The Scalable Matrix Extension.
    Sme,
    /// MRS or MSR of FPCR, FPSR or FPMR.
    ControlRegister,
    /// A write to SVCR.
    StreamingMode,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SimdFp => "SIMD&FP",
            Self::SimdFpLoadStore => "SIMD&FP load/store",
            Self::Sve => "SVE",
            Self::Sme => "SME",
            Self::ControlRegister => "FPCR/FPSR/FPMR access",
            Self::StreamingMode => "SVCR write",
        })
    }
}

/// Classifies one A64 instruction; `None` if it has nothing to do with those registers.
pub fn classify(instruction: u32) -> Option<Class> {
    // Bits 28:25, the first level of the A64 decode.
    match (instruction >> 25) & 0xf {
        0b0000 if instruction >> 31 == 1 => Some(Class::Sme),
        0b0010 => Some(Class::Sve),
        0b0111 | 0b1111 => Some(Class::SimdFp),
        0b0110 | 0b1110 if !is_memory_copy(instruction) => Some(Class::SimdFpLoadStore),
        0b1010 | 0b1011 => classify_system(instruction),
        _ => None,
    }
}

/// CPY* and SETG* use the bit that makes any other load or store one of SIMD&FP registers.
fn is_memory_copy(instruction: u32) -> bool {
    instruction & 0x3b20_0c00 == 0x1900_0400
}

fn classify_system(instruction: u32) -> Option<Class> {
    // MSR (immediate) of the SVCR fields: SMSTART, SMSTOP.
    if instruction & 0xffff_f0ff == 0xd503_407f {
        return Some(Class::StreamingMode);
    }
    // MRS and MSR (register): op0, op1, CRn, CRm, op2 in bits 20:5, with bit 20 set.
    if instruction & 0xffd0_0000 != 0xd510_0000 {
        return None;
    }
    let read = instruction & (1 << 21) != 0;
    match (instruction >> 5) & 0xffff {
        FPCR | FPSR | FPMR => Some(Class::ControlRegister),
        SVCR if !read => Some(Class::StreamingMode),
        _ => None,
    }
}

/// Whether a word is AT: SYS with CRn 7 and CRm 8 or 9. Several cores translate by one that they only speculate on,
/// with half of each world's registers during a world switch (hyp's `world::errata`); then none may be among hyp's
/// instructions, nor among the constants between them, which speculation may take for some.
pub const fn is_address_translation(word: u32) -> bool {
    word & 0xfff8_fe00 == 0xd508_7800
}

/// A system register as it stands in bits 20:5 of MRS and MSR.
const fn system_register(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

const FPCR: u32 = system_register(3, 3, 4, 4, 0);
const FPSR: u32 = system_register(3, 3, 4, 4, 1);
const FPMR: u32 = system_register(3, 3, 4, 4, 2);
const SVCR: u32 = system_register(3, 3, 4, 2, 2);

/// An instruction where none may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The function or label it belongs to; empty if there is none.
    pub symbol: String,
    /// Where it is linked.
    pub address: u64,
    /// The instruction.
    pub encoding: u32,
    /// Why it counts.
    pub class: Class,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbol = if self.symbol.is_empty() {
            "(no symbol)".to_owned()
        } else {
            format!("{:#}", rustc_demangle::demangle(&self.symbol))
        };
        let (address, encoding) = (self.address, self.encoding);
        write!(f, "{symbol} {address:#x}: {encoding:08x} {}", self.class)
    }
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Instructions looked at.
    pub instructions: usize,
    /// Instructions of these classes where they may be.
    pub allowed: usize,
    /// Instructions where they may not be.
    pub findings: Vec<Finding>,
}

impl Summary {
    /// An error that lists the findings, if there are any.
    pub fn into_result(self) -> Result<Self> {
        if self.findings.is_empty() {
            return Ok(self);
        }
        let lines: Vec<_> = self.findings.iter().map(Finding::to_string).collect();
        bail!(
            "{} FP/SIMD/SVE/SME instructions outside the allowed routines:\n{}",
            lines.len(),
            lines.join("\n")
        )
    }
}

/// Checks hyp: only the save, load and zero routines, and those must be there.
pub fn check_hyp(path: &Path) -> Result<Summary> {
    let summary = check_file(path, HYP_ALLOWED)?.into_result()?;
    let data = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    let at = address_translations(&data)?;
    if !at.is_empty() {
        bail!("{}: AT at {at:#x?}", path.display());
    }
    if summary.allowed == 0 {
        bail!(
            "{}: no FP instruction at all, not even in {HYP_ALLOWED:?}: is this hyp?",
            path.display()
        );
    }
    Ok(summary)
}

/// Where AT stands in what is executable.
fn address_translations(data: &[u8]) -> Result<Vec<u64>> {
    let file = object::File::parse(data)?;
    let mut found = Vec::new();
    for section in file.sections().filter(is_code) {
        let words = section.data()?.chunks_exact(4).zip((section.address()..).step_by(4));
        found.extend(words.filter_map(|(word, address)| {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            is_address_translation(word).then_some(address)
        }));
    }
    Ok(found)
}

/// Checks a library (an `rlib`): nothing at all is allowed in it.
pub fn check_library(path: &Path) -> Result<Summary> {
    let data = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    check_archive(&data).and_then(Summary::into_result).with_context(|| path.display().to_string())
}

fn check_archive(data: &[u8]) -> Result<Summary> {
    let archive = object::read::archive::ArchiveFile::parse(data)?;
    let mut total = Summary::default();
    for member in archive.members() {
        let member = member?;
        // The compiler's metadata is wrapped like an object file, but holds no code.
        if !member.name().ends_with(b".o") {
            continue;
        }
        let summary = check(member.data(data)?, &[]).with_context(|| {
            let name = String::from_utf8_lossy(member.name());
            format!("{name}: not machine code?")
        })?;
        total.instructions += summary.instructions;
        total.findings.extend(summary.findings);
    }
    if total.instructions == 0 {
        bail!("no code");
    }
    Ok(total)
}

/// Checks an ELF file. Symbols that begin with one of `allowed` may use those instructions.
pub fn check_file(path: &Path, allowed: &[&str]) -> Result<Summary> {
    let data = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
    check(&data, allowed).with_context(|| path.display().to_string())
}

fn check(data: &[u8], allowed: &[&str]) -> Result<Summary> {
    let file = object::File::parse(data)?;
    if file.symbols().next().is_none() {
        bail!("no symbols: a stripped file can't be checked");
    }
    let mut summary = Summary::default();
    for section in file.sections() {
        if !is_code(&section) {
            continue;
        }
        let symbols = Symbols::of_section(&file, section.index());
        check_section(section.address(), section.data()?, &symbols, allowed, &mut summary);
    }
    if summary.instructions == 0 {
        bail!("no code");
    }
    Ok(summary)
}

fn is_code<'data>(section: &impl ObjectSection<'data>) -> bool {
    let executable = match section.flags() {
        SectionFlags::Elf { sh_flags, .. } => sh_flags.0 & object::elf::SHF_EXECINSTR.0 != 0,
        _ => section.kind() == SectionKind::Text,
    };
    executable && section.kind() != SectionKind::UninitializedData
}

/// The symbols of one section.
#[derive(Default)]
struct Symbols {
    /// Address to the names there, and the largest size of any of them.
    names: BTreeMap<u64, (Vec<String>, u64)>,
    /// From each of these addresses on, whether there is code.
    mapping: BTreeMap<u64, bool>,
}

impl Symbols {
    fn of_section(file: &object::File<'_>, index: object::SectionIndex) -> Self {
        let mut symbols = Self::default();
        for symbol in file.symbols() {
            let kind = symbol.kind();
            if symbol.section_index() != Some(index)
                || matches!(kind, SymbolKind::Section | SymbolKind::File)
            {
                continue;
            }
            if let Ok(name) = symbol.name() {
                symbols.add(name, symbol.address(), symbol.size());
            }
        }
        symbols
    }

    fn add(&mut self, name: &str, address: u64, size: u64) {
        match name.split('.').next() {
            Some("$x") => {
                self.mapping.insert(address, true);
            }
            Some("$d") => {
                self.mapping.insert(address, false);
            }
            _ => {
                let (names, largest) = self.names.entry(address).or_default();
                names.push(name.to_owned());
                *largest = size.max(*largest);
            }
        }
    }

    fn is_code(&self, address: u64) -> bool {
        let before = self.mapping.range(..=address).next_back();
        before.is_none_or(|(_, &code)| code)
    }

    /// The names that an instruction belongs to: several if they share an address, none behind the
    /// end of a function. A label without size reaches to the next one.
    fn owners(&self, address: u64) -> &[String] {
        match self.names.range(..=address).next_back() {
            Some((start, (names, size))) if *size == 0 || address - start < *size => names,
            _ => &[],
        }
    }
}

fn check_section(
    address: u64,
    data: &[u8],
    symbols: &Symbols,
    allowed: &[&str],
    summary: &mut Summary,
) {
    for (word, address) in data.chunks_exact(4).zip((address..).step_by(4)) {
        if !symbols.is_code(address) {
            continue;
        }
        summary.instructions += 1;
        let encoding = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        let Some(class) = classify(encoding) else {
            continue;
        };
        let owners = symbols.owners(address);
        if owners.iter().any(|name| allowed.iter().any(|prefix| name.starts_with(prefix))) {
            summary.allowed += 1;
        } else {
            summary.findings.push(Finding {
                symbol: owners.first().cloned().unwrap_or_default(),
                address,
                encoding,
                class,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AT of EL1&0, EL2 and EL3, PAN's included; not its neighbours.
    #[test]
    fn address_translations_are_recognised() {
        for word in [
            0xd508_7800, // at s1e1r, x0
            0xd508_781f, // at s1e1r, xzr
            0xd508_7823, // at s1e1w, x3
            0xd508_7900, // at s1e1rp, x0
            0xd50c_7880, // at s12e1r, x0
            0xd50c_78c1, // at s12e0r, x1
            0xd50c_7800, // at s1e2r, x0
            0xd50e_7800, // at s1e3r, x0
        ] {
            assert!(is_address_translation(word), "{word:#x}");
        }
        for word in [
            0xd508_7640, // dc isw, x0
            0xd50b_7e20, // dc civac, x0
            0xd508_751f, // ic iallu
            0xd508_831f, // tlbi vmalle1is
            0xd538_7400, // mrs x0, par_el1
            0xd508_7a00,
        ] {
            assert!(!is_address_translation(word), "{word:#x}");
        }
    }

    #[test]
    fn every_class_is_recognised() {
        for (encoding, class, text) in [
            (0x1e60_4020, Class::SimdFp, "fmov d0, d1"),
            (0x9e66_0000, Class::SimdFp, "fmov x0, d0"),
            (0x4e20_1c00, Class::SimdFp, "and v0.16b, v0.16b, v0.16b"),
            (0x6f00_e400, Class::SimdFp, "movi v0.2d, #0"),
            (0x4e28_4800, Class::SimdFp, "aese v0.16b, v0.16b"),
            (0x3dc0_0000, Class::SimdFpLoadStore, "ldr q0, [x0]"),
            (0x6dbf_27e8, Class::SimdFpLoadStore, "stp d8, d9, [sp, #-16]!"),
            (0xad00_0400, Class::SimdFpLoadStore, "stp q0, q1, [x0]"),
            (0x9c00_0000, Class::SimdFpLoadStore, "ldr q0, ."),
            (0x4c40_7000, Class::SimdFpLoadStore, "ld1 {v0.16b}, [x0]"),
            (0x1d40_0800, Class::SimdFpLoadStore, "ldapur b0, [x0]"),
            (0x04bf_5020, Class::Sve, "rdvl x0, #1"),
            (0x0420_5020, Class::Sve, "addvl x0, x0, #1"),
            (0x2518_e3e0, Class::Sve, "ptrue p0.b"),
            (0x2519_f000, Class::Sve, "rdffr p0.b"),
            (0x8580_4000, Class::Sve, "ldr z0, [x0]"),
            (0xe580_4000, Class::Sve, "str z0, [x0]"),
            (0xc008_00ff, Class::Sme, "zero {za}"),
            (0xe100_0000, Class::Sme, "ldr za[w12, 0], [x0]"),
            (0xd53b_4400, Class::ControlRegister, "mrs x0, fpcr"),
            (0xd51b_4401, Class::ControlRegister, "msr fpcr, x1"),
            (0xd53b_4420, Class::ControlRegister, "mrs x0, fpsr"),
            (0xd51b_4440, Class::ControlRegister, "msr fpmr, x0"),
            (0xd503_477f, Class::StreamingMode, "smstart"),
            (0xd503_427f, Class::StreamingMode, "smstop sm"),
            (0xd503_447f, Class::StreamingMode, "smstop za"),
            (0xd51b_4240, Class::StreamingMode, "msr svcr, x0"),
        ] {
            assert_eq!(classify(encoding), Some(class), "{text}");
        }
    }

    #[test]
    fn near_misses_are_not() {
        for (encoding, text) in [
            (0x0000_0000, "udf #0"),
            (0x0000_ffff, "udf #65535"),
            (0xd503_201f, "nop"),
            (0xd53b_4240, "mrs x0, svcr"),
            (0xd53b_4220, "mrs x0, daif"),
            (0xd51b_4200, "msr nzcv, x0"),
            (0xd503_42df, "msr daifset, #2"),
            (0xd503_413f, "msr ssbs, #1"),
            (0xd53c_1200, "mrs x0, zcr_el2"),
            (0xd51c_1140, "msr cptr_el2, x0"),
            (0xd53b_d040, "mrs x0, tpidr_el0"),
            (0xd538_0480, "mrs x0, id_aa64zfr0_el1"),
            (0xa8c1_7bfd, "ldp x29, x30, [sp], #16"),
            (0xf940_0000, "ldr x0, [x0]"),
            (0xf980_0000, "prfm pldl1keep, [x0]"),
            (0x5800_0000, "ldr x0, ."),
            (0xd900_0000, "stlur x0, [x0]"),
            (0xd920_0800, "stg x0, [x0]"),
            (0x1901_0440, "cpyfp [x0]!, [x1]!, x2!"),
            (0x1d01_0440, "cpyp [x0]!, [x1]!, x2!"),
            (0x1dc2_0420, "setgp [x0]!, x1!, x2"),
            (0x9b01_7c00, "mul x0, x0, x1"),
            (0x1ac0_4000, "crc32b w0, w0, w0"),
            (0xdac1_0000, "pacia x0, x0"),
            (0x1400_0000, "b ."),
            (0xd65f_03c0, "ret"),
            (0x9000_0000, "adrp x0, ."),
        ] {
            assert_eq!(classify(encoding), None, "{text}");
        }
    }

    const FMOV: u32 = 0x1e60_4020;
    const NOP: u32 = 0xd503_201f;

    fn section(words: &[u32], symbols: &[(&str, u64, u64)]) -> Summary {
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut table = Symbols::default();
        for &(name, address, size) in symbols {
            table.add(name, address, size);
        }
        let mut summary = Summary::default();
        check_section(0x1000, &data, &table, HYP_ALLOWED, &mut summary);
        summary
    }

    #[test]
    fn only_allowed_routines_may_have_them() {
        let summary =
            section(&[FMOV, NOP, FMOV], &[("umbra_fp_save", 0x1000, 4), ("elsewhere", 0x1004, 8)]);
        assert_eq!((summary.instructions, summary.allowed), (3, 1));
        let [finding] = summary.findings.as_slice() else {
            panic!("{summary:?}");
        };
        assert_eq!((finding.symbol.as_str(), finding.address), ("elsewhere", 0x1008));
        let text = summary.clone().into_result().unwrap_err().to_string();
        assert!(text.contains("elsewhere 0x1008: 1e604020 SIMD&FP"), "{text}");
    }

    #[test]
    fn nothing_belongs_to_a_routine_behind_its_end() {
        let summary = section(&[FMOV, FMOV], &[("umbra_fp_save", 0x1000, 4)]);
        assert_eq!(summary.findings.len(), 1);
        assert_eq!(summary.findings[0].symbol, "");
        // A label from assembly has no size: it reaches to the next.
        let summary =
            section(&[FMOV, FMOV, FMOV], &[("umbra_fp_zero", 0x1000, 0), ("next", 0x1008, 0)]);
        assert_eq!((summary.allowed, summary.findings.len()), (2, 1));
    }

    #[test]
    fn names_at_one_address_share_its_code() {
        let symbols = [("text_begin", 0x1000, 0), ("umbra_fp_save", 0x1000, 8)];
        assert_eq!(section(&[FMOV, FMOV], &symbols).allowed, 2);
    }

    #[test]
    fn data_between_code_is_not_looked_at() {
        let symbols = [("$x", 0x1000, 0), ("$d.1", 0x1004, 0), ("$x.2", 0x1008, 0)];
        let summary = section(&[NOP, FMOV, FMOV], &symbols);
        assert_eq!((summary.instructions, summary.findings.len()), (2, 1));
        assert_eq!(summary.findings[0].address, 0x1008);
    }

    #[test]
    fn a_library_without_machine_code_is_no_proof() {
        let error = |data: &[u8]| format!("{:#}", check_archive(data).unwrap_err());
        assert!(error(b"!<arch>\n").contains("no code"));
        let bitcode =
            b"!<arch>\nx.o/            0           0     0     644     4         `\nBC\xc0\xde";
        assert!(error(bitcode).contains("not machine code"));
    }
}
