//! EL2's control values for both worlds, as a function of what a CPU has.
//!
//! Each value is the bits that the features say ([`super::features`]); this adds them up, for registers that
//! the CPU has, and knows in which order they are written. Registers are set whole: no bit is taken over from
//! reset.

#![forbid(unsafe_code)]

use super::features::{ALL, CONTROLS, Control, Features, Name};

/// The controls of the two worlds on one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Controls {
    /// Of the host.
    pub host: [u64; CONTROLS],
    /// Of every guest. HCR_EL2 is a beginning: a vCPU's has API and APK once it uses them, and no RW in
    /// AArch32.
    pub guest: [u64; CONTROLS],
}

impl Default for Controls {
    fn default() -> Self {
        Self { host: [0; CONTROLS], guest: [0; CONTROLS] }
    }
}

impl Controls {
    /// On a CPU with these features and PMCR_EL0.N event counters.
    pub fn new(features: Features, pmcr_n: u64) -> Self {
        let mut values = Self::default();
        for feature in &ALL {
            for bits in feature.bits.iter().filter(|bits| bits.always || features.has(feature.name))
            {
                values.host[bits.of as usize] |= bits.host;
                values.guest[bits.of as usize] |= bits.guest;
            }
        }
        // MDCR_EL2.HPMN: all event counters are the host's.
        for mdcr in [&mut values.host, &mut values.guest] {
            mdcr[Control::Mdcr as usize] |= if features.has(Name::Pmu) { pmcr_n } else { 0 };
        }
        values
    }
}

/// Registers that go by one feature.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The feature that they exist with.
    pub with: Name,
    /// In the order in which they are written.
    pub controls: &'static [Control],
    /// Those that go by another one, which no CPU has without the first.
    pub and: &'static [Group],
}

/// Makes the list of what is written at each switch, and what walks along it: a straight line, with a branch for
/// each feature that may be missing.
macro_rules! switched {
    ($($with:ident: $($control:ident)* $(; $inner:ident: $($more:ident)*)?,)*) => {
        /// What is written at each switch beside HCR_EL2, which is the vCPU's, and CPTR_EL2, which is the FP
        /// engine's: everything that differs between the worlds.
        pub const SWITCHED: &[Group] = &[$(
            Group {
                with: Name::$with,
                controls: &[$(Control::$control),*],
                and: &[$(Group {
                    with: Name::$inner,
                    controls: &[$(Control::$more),*],
                    and: &[],
                })?],
            },
        )*];

        /// Calls `write` for each register that the switch writes on a CPU with these features.
        #[inline(always)]
        pub fn walk(features: Features, mut write: impl FnMut(Control)) {
            $(
                if matches!(Name::$with, Name::Base) || features.has(Name::$with) {
                    $(write(Control::$control);)*
                    $(if features.has(Name::$inner) {
                        $(write(Control::$more);)*
                    })?
                }
            )*
        }
    };
}

switched! {
    Base: Mdcr Cnthctl IccSre,
    Hcx: Hcrx,
    Fgt: Hfgrtr Hfgwtr Hfgitr Hdfgrtr Hdfgwtr; Fgt2: Hfgrtr2 Hfgwtr2 Hfgitr2 Hdfgrtr2 Hdfgwtr2,
    Mpam: Mpam2; MpamHcr: Mpamhcr,
}

/// What is written once, when a CPU comes up: the same in both worlds.
pub const CONSTANT: [Control; 18] = [
    Control::Hstr,
    Control::Vdisr,
    Control::Vsesr,
    Control::Dbgvcr32,
    Control::Hafgrtr,
    Control::Actlr,
    Control::Hacr,
    Control::Trfcr,
    Control::Trcitecr,
    Control::Brbcr,
    Control::Pmscr,
    Control::Gcscr,
    Control::Smprimap,
    Control::Scxtnum,
    Control::Tfsr,
    Control::Contextidr,
    Control::CnthvCtl,
    Control::Hacdbsbr,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Features that have a say in controls.
    fn involved() -> Vec<Name> {
        let said = ALL.iter().filter(|f| !f.bits.is_empty() || !f.owns.is_empty());
        let counts = |&name: &Name| !always(name) && !alone(name) && name != Name::Fwb;
        said.map(|f| f.name).filter(counts).collect()
    }

    /// Whether a feature brings registers only that nothing else has a say in, and that stay as they are: one
    /// at a time is enough.
    fn alone(name: Name) -> bool {
        matches!(name, Name::ArmCore | Name::Vhe | Name::TraceIte | Name::Hacdbs)
    }

    #[test]
    fn what_comes_alone_has_its_registers_and_no_others() {
        for feature in ALL.iter().filter(|f| alone(f.name)) {
            assert!(feature.bits.is_empty() && !feature.owns.is_empty(), "{}", feature.arm);
            for control in CONSTANT {
                let owns = feature.owns.contains(&control);
                assert_eq!(control.exists(Features::NONE.with(feature.name)), owns, "{control:?}");
                let without = Features::ALL.less(Features::NONE.with(feature.name));
                assert_eq!(control.exists(without), !owns, "{control:?}");
                assert!(!owns || needs(control) == [feature.name], "{control:?}");
            }
        }
    }

    /// Whether every CPU that hyp runs on has it.
    fn always(name: Name) -> bool {
        matches!(
            name,
            Name::Base
                | Name::Fp
                | Name::Debug
                | Name::Gic
                | Name::Timer
                | Name::Trace
                | Name::Translation
        )
    }

    fn every_set(mut f: impl FnMut(Features)) {
        let base = ALL.iter().map(|f| f.name).filter(|&name| always(name));
        let base = base.fold(Features::NONE, Features::with);
        let involved = involved();
        for set in 0..1u64 << involved.len() {
            let with = |features: Features, (n, &name): (usize, &Name)| {
                if set >> n & 1 != 0 { features.with(name) } else { features }
            };
            f(involved.iter().enumerate().fold(base, with));
        }
    }

    /// With which features a CPU has a register, by the Arm ARM (D24.2, "Configuration" of each).
    fn needs(control: Control) -> &'static [Name] {
        match control {
            Control::Hcr | Control::Mdcr | Control::Cptr | Control::Cnthctl | Control::Hstr => &[],
            Control::IccSre => &[Name::Gic],
            Control::Vdisr | Control::Vsesr => &[Name::Ras],
            Control::Dbgvcr32 => &[Name::Aarch32],
            Control::Hcrx => &[Name::Hcx],
            Control::Hfgrtr
            | Control::Hfgwtr
            | Control::Hfgitr
            | Control::Hdfgrtr
            | Control::Hdfgwtr => &[Name::Fgt],
            Control::Hafgrtr => &[Name::Fgt, Name::Amu],
            Control::Hfgrtr2
            | Control::Hfgwtr2
            | Control::Hfgitr2
            | Control::Hdfgrtr2
            | Control::Hdfgwtr2 => &[Name::Fgt2],
            Control::Mpam2 => &[Name::Mpam],
            Control::Mpamhcr => &[Name::Mpam, Name::MpamHcr],
            Control::Actlr | Control::Hacr => &[Name::ArmCore],
            Control::Trfcr => &[Name::TraceFilter],
            Control::Trcitecr => &[Name::TraceIte],
            Control::Brbcr => &[Name::Brbe],
            Control::Pmscr => &[Name::Spe],
            Control::Gcscr => &[Name::Gcs],
            Control::Smprimap => &[Name::Sme],
            Control::Scxtnum => &[Name::Csv2],
            Control::Tfsr => &[Name::Mte],
            Control::Contextidr | Control::CnthvCtl => &[Name::Vhe],
            Control::Hacdbsbr => &[Name::Hacdbs],
        }
    }

    /// On a CPU with MPAMHCR_EL2 and no AArch32, hyp once wrote DBGVCR32_EL2 (r32).
    #[test]
    fn r32_no_set_of_features_touches_a_register_that_is_not_there() {
        every_set(|features| {
            let exists = |control: Control| needs(control).iter().all(|&name| features.has(name));
            let mut written = 0u64;
            walk(features, |control| {
                assert!(exists(control), "{control:?} with {features:?}");
                written |= 1 << control as u32;
            });
            // A CPU has FGT2 with FGT only, and MPAMHCR_EL2 with MPAM only: else they aren't there for `walk`.
            let whole = |name, needs| !features.has(name) || features.has(needs);
            if whole(Name::Fgt2, Name::Fgt) && whole(Name::MpamHcr, Name::Mpam) {
                for group in SWITCHED.iter().flat_map(|group| [group].into_iter().chain(group.and))
                {
                    for &control in group.controls {
                        let expected = exists(control);
                        assert_eq!(written >> control as u32 & 1 != 0, expected, "{control:?}");
                    }
                }
            }
            for control in CONSTANT {
                assert_eq!(
                    control.exists(features),
                    exists(control),
                    "{control:?} with {features:?}"
                );
            }
        });
    }

    /// FWB is no trap, and nobody else's business: it is a guest's wherever the CPU has it, and in nothing else.
    #[test]
    fn write_back_is_forced_for_guests_alone() {
        let without = Features::ALL.less(Features::NONE.with(Name::Fwb));
        let (with, without) = (Controls::new(Features::ALL, 6), Controls::new(without, 6));
        for control in Control::ALL {
            let n = control as usize;
            let more = if control == Control::Hcr { 1 << 46 } else { 0 };
            assert_eq!(with.host[n], without.host[n], "{control:?}");
            assert_eq!(with.guest[n], without.guest[n] | more, "{control:?}");
            assert_eq!(without.guest[n] & more, 0);
        }
    }

    #[test]
    fn every_control_is_written_somewhere_and_once() {
        let elsewhere = [Control::Hcr, Control::Cptr];
        for control in Control::ALL {
            let groups = SWITCHED.iter().flat_map(|group| [group].into_iter().chain(group.and));
            let times = groups
                .flat_map(|group| group.controls)
                .chain(&CONSTANT)
                .chain(&elsewhere)
                .filter(|&&c| c == control);
            assert_eq!(times.count(), 1, "{control:?}");
        }
        for (n, control) in Control::ALL.into_iter().enumerate() {
            assert_eq!(n, control as usize);
        }
    }

    #[test]
    fn what_differs_between_the_worlds_is_switched() {
        every_set(|features| {
            let values = Controls::new(features, 31);
            for control in CONSTANT {
                let n = control as usize;
                assert_eq!((values.host[n], values.guest[n]), (0, 0), "{control:?}");
            }
            let mut switched = [false; CONTROLS];
            walk(features, |control| switched[control as usize] = true);
            for control in Control::ALL {
                let n = control as usize;
                let differs = values.host[n] != values.guest[n] && control.exists(features);
                let own = matches!(control, Control::Hcr | Control::Cptr);
                // MPAMHCR_EL2 and FGT2's registers come with MPAM and FGT.
                let whole = (features.has(Name::Mpam) || control != Control::Mpamhcr)
                    && (features.has(Name::Fgt) || !features.has(Name::Fgt2));
                assert!(!differs || own || !whole || switched[n], "{control:?} with {features:?}");
            }
        });
    }

    /// What a guest is trapped on doesn't depend on what the CPU has but for FGT2's bits and MPAM's, and what
    /// opens something for it never goes beyond the host's.
    #[test]
    fn every_set_of_features_keeps_a_guest_in() {
        let all = Features::ALL.less(Features::NONE.with(Name::Fwb));
        let everything = Controls::new(all, 0);
        every_set(|features| {
            let values = Controls::new(features, 6);
            let at = |values: &[u64; CONTROLS], control: Control| values[control as usize];
            for control in [Control::Hcr, Control::Cptr, Control::Cnthctl, Control::IccSre] {
                assert_eq!(
                    at(&values.guest, control),
                    at(&everything.guest, control),
                    "{control:?}"
                );
            }
            // Bits that open: a guest has none that the host hasn't.
            for control in [
                Control::Hcrx,
                Control::Hfgrtr,
                Control::Hfgwtr,
                Control::Hfgitr,
                Control::Hdfgrtr,
                Control::Hdfgwtr,
                Control::Hfgrtr2,
                Control::Hfgwtr2,
                Control::Hfgitr2,
                Control::Hdfgrtr2,
                Control::Hdfgwtr2,
            ] {
                let (host, guest) = (at(&values.host, control), at(&values.guest, control));
                assert_eq!(guest & !host, 0, "{control:?}");
            }
            let (host, guest) = (at(&values.host, Control::Mdcr), at(&values.guest, Control::Mdcr));
            assert_eq!(host & !guest, 0, "MDCR_EL2: what the host is trapped on, a guest is");
            assert_eq!(guest & 0x1f, if features.has(Name::Pmu) { 6 } else { 0 }, "HPMN");
            let trapped = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 19;
            assert_eq!(guest & trapped, trapped, "MDCR_EL2");
            // E2PB and E2TB: the buffers that write memory stay with EL2.
            let buffers = 3 << 12 | 3 << 24;
            assert_eq!((host | guest) & buffers, 0, "SPE's and TRBE's buffers are EL2's");
            let hcr = at(&values.host, Control::Hcr);
            let host = 1 | 1 << 19 | 1 << 20 | 1 << 31;
            assert_eq!(hcr & host, host, "VM, TSC, TIDCP, RW");
            assert_eq!(
                (hcr | at(&values.guest, Control::Hcr)) & (1 << 34 | 1 << 27),
                0,
                "E2H, TGE"
            );
            if features.has(Name::Mpam) {
                let tidr = if features.has(Name::MpamTidr) { 1 << 58 } else { 0 };
                assert_eq!(at(&values.guest, Control::Mpam2), 3 << 48 | tidr);
            }
        });
    }

    /// The values that Linux was found to need ([`super::super::features`] has the bits).
    #[test]
    fn values_of_a_cpu_that_has_everything() {
        let Controls { host, guest } = Controls::new(Features::ALL, 6);
        let expected = [
            (Control::Hcr, 0x0120_8300_8018_0001, 0x0000_4018_807d_263f),
            (Control::Mdcr, 0x2_0006, 0xa_4e66),
            (Control::Cptr, 0, 0x4010_0000),
            (Control::Cnthctl, 3, 1),
            (Control::IccSre, 0xf, 7),
            (Control::Hcrx, 0x01f6_c807, 0x0080_0800),
            (Control::Hfgrtr, 0xfff4 << 48, 1 << 55),
            (Control::Hfgwtr, 0xfff4 << 48, 1 << 55),
            (Control::Hfgitr, 0x1f << 55, 0),
            (Control::Hdfgrtr, 0xf << 59, 0),
            (Control::Hdfgwtr, 0xf << 59, 0),
            (Control::Hfgrtr2, u64::MAX, 0),
            (Control::Hfgwtr2, u64::MAX, 0),
            (Control::Hfgitr2, 2, 0),
            (Control::Hdfgrtr2, u64::MAX, 0),
            (Control::Hdfgwtr2, u64::MAX, 0),
            (Control::Mpam2, 1 << 50, 1 << 58 | 3 << 48),
            (Control::Mpamhcr, 0, 1 << 31),
        ];
        for (control, of_host, of_guest) in expected {
            let n = control as usize;
            assert_eq!(
                (host[n], guest[n]),
                (of_host, of_guest),
                "{control:?} {:#x} {:#x}",
                host[n],
                guest[n]
            );
        }
        assert_eq!(expected.len() + CONSTANT.len(), CONTROLS);
    }
}
