//! The table of registers, `registers.md`, made from the features' data. A test compares the two, and writes the
//! file anew if it is told to (`UMBRA_WRITE=1 cargo test -p umbra-hyp registers`).

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests {
    use crate::world::controls::{CONSTANT, Controls};
    use crate::world::el1;
    use crate::world::features::{ALL, Control, Feature, Features, How, Optional, Register};
    use std::fmt::Write;
    use std::path::Path;

    fn rows(how: fn(&Register) -> Option<String>) -> String {
        let mut rows = String::from("| registers | of | how |\n|---|---|---|\n");
        for feature in &ALL {
            for register in feature.registers {
                if let Some(how) = how(register) {
                    writeln!(rows, "| {} | {} | {how} |", register.name, feature.arm).unwrap();
                }
            }
        }
        rows
    }

    fn said_by(control: Control) -> String {
        let says = |feature: &Feature| {
            let of = feature.bits.iter().filter(|bits| bits.of == control);
            let words = of.map(|bits| {
                let worlds = match (bits.host != 0, bits.guest != 0) {
                    (true, true) => "both",
                    (true, false) => "host",
                    _ => "guest",
                };
                format!("{worlds}: {}", bits.what)
            });
            words.collect::<Vec<_>>()
        };
        ALL.iter().flat_map(says).collect::<Vec<_>>().join("; ")
    }

    fn table() -> String {
        let mut text = String::from(
            "# Registers\n\nEvery register of EL0 and EL1 is in one of three classes. What is in none is a bug.\n\n\
             ## Switched: each world has its own\n\n",
        );
        text += &rows(|register| match register.how {
            How::SwitchedBy(by) => Some(by.into()),
            How::Switched(_) => Some("moved at each switch, where there is one".into()),
            _ => None,
        });
        let el1 = el1::NAMES.iter().map(|name| name.to_uppercase()).collect::<Vec<_>>().join(", ");
        writeln!(text, "| {el1} | every CPU | `umbra_switch_el1` |").unwrap();
        text += "\n## Trapped, and hidden in the ID registers that a guest reads\n\n";
        text += &rows(|register| match register.how {
            How::Trapped(by) => Some(by.into()),
            _ => None,
        });
        text += "\n## Constant: the same for everybody, read-only to EL1\n\n";
        text += &rows(|register| (register.how == How::Constant).then(String::new));
        text += "\n# EL2's own controls\n\nOf a CPU that has everything and counts no event. A register that a CPU \
                 lacks is not touched.\n\n| register | host | guest | bits |\n|---|---|---|---|\n";
        let Controls { host, guest } = Controls::new(Features::ALL, 0);
        for control in Control::ALL {
            let n = control as usize;
            let name = format!("{control:?}").to_uppercase();
            let name = name.replace("ICCSRE", "ICC_SRE");
            let once = match control {
                Control::Hstr => "T15 with an AArch32 guest loaded",
                Control::Vdisr => "again at each entry of a guest, who writes it as DISR_EL1",
                _ if CONSTANT.contains(&control) => "set once",
                _ => "",
            };
            let said = said_by(control);
            let said = if said.is_empty() { once } else { &said };
            writeln!(text, "| {name}_EL2 | {:#x} | {:#x} | {said} |", host[n], guest[n]).unwrap();
        }
        text += "\nBeside these, per vCPU: HCR_EL2 gets API and APK once a guest uses pointer authentication and \
                 loses RW in AArch32; CPTR_EL2's FP bits are the FP engine's. CNTHP_CTL_EL2 is armed with the \
                 host's CNTV deadline while a guest runs, so that its tick is not lost; ICH_HCR_EL2 is on then; \
                 HSTR_EL2.T15 is set with an AArch32 guest loaded.\n";
        text
    }

    #[test]
    fn the_table_is_what_the_data_say() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/world/registers.md");
        let made = table();
        if std::env::var_os("UMBRA_WRITE").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap() == made,
            "registers.md is not what the features say"
        );
    }

    #[test]
    fn every_optional_register_has_a_feature() {
        for register in Optional::ALL {
            let has = |r: &Register| r.how == How::Switched(register);
            assert_eq!(ALL.iter().flat_map(|f| f.registers).filter(|r| has(r)).count(), 1);
        }
    }
}
