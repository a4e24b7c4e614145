use super::id::{IdRegister, IdRegisters, Order, REGISTERS, Shown};
use super::*;
use std::collections::BTreeMap;

#[test]
fn names_are_in_order() {
    for (n, feature) in ALL.iter().enumerate() {
        assert_eq!(feature.name as usize, n, "{}", feature.arm);
    }
}

/// No bit of a control is two features', and none is said twice for one world.
#[test]
fn no_bit_is_in_two_files() {
    for control in Control::ALL {
        let (mut host, mut guest) = (0, 0);
        for bits in ALL.iter().flat_map(|f| f.bits).filter(|bits| bits.of == control) {
            assert_eq!(
                (bits.host & host, bits.guest & guest),
                (0, 0),
                "{control:?}: {}",
                bits.what
            );
            host |= bits.host;
            guest |= bits.guest;
        }
    }
}

#[test]
fn no_field_is_in_two_files() {
    let mut taken = [0u64; REGISTERS];
    for field in ALL.iter().flat_map(|f| f.fields) {
        let mask = field.mask() << field.low;
        assert_eq!(taken[field.of as usize] & mask, 0, "{:?}.{}", field.of, field.name);
        taken[field.of as usize] |= mask;
    }
}

/// The fields that the Arm ARM (issue L.a, D24.2) names, by their lowest bits.
const NAMED: &[(IdRegister, &[u32])] = &[
    (IdRegister::Aa64Pfr0, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
    (IdRegister::Aa64Pfr1, &[0, 4, 8, 12, 16, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
    (IdRegister::Aa64Pfr2, &[0, 4, 8, 12, 16, 32]),
    (IdRegister::Aa64Zfr0, &[0, 4, 12, 16, 20, 24, 32, 40, 44, 48, 52, 56]),
    (IdRegister::Aa64Smfr0, &[0, 32, 33, 34, 35, 36, 40, 44, 48, 52, 56, 60, 63]),
    (IdRegister::Aa64Fpfr0, &[0, 1, 28, 29, 30, 31]),
    (IdRegister::Aa64Dfr0, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
    (IdRegister::Aa64Dfr1, &[0, 8, 16, 24, 32, 36, 40, 44, 48, 52, 56]),
    (IdRegister::Aa64Isar0, &[4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
    (IdRegister::Aa64Isar1, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
    (IdRegister::Aa64Isar2, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
    (IdRegister::Aa64Isar3, &[0, 4, 8, 12, 16, 20, 24, 28]),
    (IdRegister::Aa64Mmfr0, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 56, 60]),
    (IdRegister::Aa64Mmfr1, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
    (IdRegister::Aa64Mmfr2, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 52, 56, 60]),
    (IdRegister::Aa64Mmfr3, &[0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 52, 56, 60]),
    (IdRegister::Aa64Mmfr4, &[0, 4, 8, 12, 16, 20, 24, 36]),
    (IdRegister::Pfr0, &[0, 4, 8, 12, 16, 20, 24, 28]),
    (IdRegister::Pfr1, &[0, 4, 8, 12, 16, 20, 24, 28]),
    (IdRegister::Pfr2, &[0, 4, 8]),
    (IdRegister::Dfr0, &[0, 4, 8, 12, 16, 20, 24, 28]),
    (IdRegister::Dfr1, &[0, 4]),
    (IdRegister::Afr0, &[0]),
    (IdRegister::Mmfr0, &[0, 4, 8, 12, 16, 20, 24, 28]),
    (IdRegister::Mmfr1, &[0, 28]),
    (IdRegister::Mmfr2, &[0, 16, 20, 24, 28]),
    (IdRegister::Mmfr3, &[0, 4, 8, 12, 16, 20, 24, 28]),
    (IdRegister::Mmfr4, &[0, 4, 8, 12, 16, 20, 24, 28]),
    (IdRegister::Mmfr5, &[0, 4]),
    (IdRegister::Isar0, &[0]),
    (IdRegister::Isar1, &[0]),
    (IdRegister::Isar2, &[0]),
    (IdRegister::Isar3, &[0]),
    (IdRegister::Isar4, &[0, 12, 16]),
    (IdRegister::Isar5, &[0]),
    (IdRegister::Isar6, &[0]),
    (IdRegister::Mvfr0, &[0]),
    (IdRegister::Mvfr1, &[0]),
    (IdRegister::Mvfr2, &[0]),
];

/// A feature that somebody forgot shows here.
#[test]
fn every_field_is_decided_about() {
    let mut decided = [0u64; REGISTERS];
    for field in ALL.iter().flat_map(|f| f.fields) {
        decided[field.of as usize] |= field.mask() << field.low;
    }
    for (register, fields) in NAMED {
        for low in *fields {
            assert!(decided[*register as usize] >> low & 1 != 0, "{register:?} from bit {low}");
        }
    }
}

#[test]
fn no_register_is_in_two_files() {
    let mut by_name = BTreeMap::new();
    for feature in &ALL {
        for register in feature.registers {
            let before = by_name.insert(register.name, feature.name);
            assert_eq!(before, None, "{}", register.name);
        }
    }
}

/// What can't be used must not be shown: a feature whose registers a guest is trapped on, in every case, shows
/// none of the fields that tell of it.
#[test]
fn what_is_trapped_from_all_guests_is_hidden() {
    for feature in &ALL {
        let trapped = feature.registers.iter().any(|r| matches!(r.how, How::Trapped(_)));
        let switched = feature.registers.iter().any(|r| !matches!(r.how, How::Trapped(_)));
        if trapped && !switched && feature.name != Name::Translation {
            for field in feature.fields {
                let hidden = matches!(field.shown, Shown::Hidden | Shown::Is(_));
                // What a CPU says of its speculation comes with SCXTNUM_ELx in one field.
                assert!(hidden || feature.name == Name::Csv2, "{}", field.name);
            }
        }
    }
}

fn with(register: IdRegister, low: u32, value: u64) -> IdRegisters {
    let mut id = IdRegisters::default();
    id.registers[register as usize] = value << low;
    id
}

#[test]
fn aarch32_at_el0_is_not_enough() {
    for (pfr0, expected) in [(0x11, false), (0x12, false), (0x22, true)] {
        let id = with(IdRegister::Aa64Pfr0, 0, pfr0);
        assert_eq!(Features::read(&id).has(Name::Aarch32), expected, "{pfr0:#x}");
    }
}

#[test]
fn boundaries() {
    use IdRegister::*;
    for (register, low, value, name, expected) in [
        (Aa64Pfr1, 24, 1, Name::Sme, true),
        (Aa64Pfr1, 24, 1, Name::Sme2, false),
        (Aa64Pfr1, 24, 2, Name::Sme2, true),
        (Aa64Smfr0, 63, 1, Name::SmeFa64, true),
        (Aa64Smfr0, 62, 1, Name::SmeFa64, false),
        (Aa64Pfr1, 8, 1, Name::Mte, false),
        (Aa64Pfr1, 8, 2, Name::Mte, true),
        (Aa64Pfr0, 56, 1, Name::Csv2, false),
        (Aa64Pfr0, 56, 2, Name::Csv2, true),
        (Aa64Pfr0, 28, 1, Name::Ras, true),
        (Aa64Pfr0, 28, 1, Name::RasFaultInjection, false),
        (Aa64Pfr0, 28, 2, Name::RasFaultInjection, true),
        (Aa64Mmfr0, 56, 1, Name::Fgt, true),
        (Aa64Mmfr0, 56, 1, Name::Fgt2, false),
        (Aa64Mmfr0, 56, 2, Name::Fgt2, true),
        (Aa64Pfr0, 40, 1, Name::Mpam, true),
        (Aa64Pfr1, 16, 1, Name::Mpam, true),
        // A PMU of the implementer's own has none of the architecture's registers.
        (Aa64Dfr0, 8, 0xf, Name::Pmu, false),
        (Aa64Dfr0, 8, 0xf, Name::PmuHpmd, false),
        (Aa64Dfr0, 8, 1, Name::Pmu, true),
        (Aa64Dfr0, 8, 1, Name::PmuHpmd, false),
        (Aa64Dfr0, 8, 4, Name::PmuHpmd, true),
        (Aa64Isar1, 4, 1, Name::Pauth, true),
        (Aa64Isar1, 8, 1, Name::Pauth, true),
        (Aa64Isar2, 12, 1, Name::Pauth, true),
        (Aa64Isar1, 24, 1, Name::Pauth, false),
        (Aa64Dfr0, 40, 1, Name::TraceFilter, true),
        (Aa64Dfr0, 52, 1, Name::Brbe, true),
        (Aa64Pfr2, 32, 1, Name::Fpmr, true),
        (Aa64Mmfr1, 40, 1, Name::Hcx, true),
        (Aa64Pfr0, 44, 1, Name::Amu, true),
        (Aa64Dfr0, 32, 1, Name::Spe, true),
    ] {
        let features = Features::read(&with(register, low, value));
        assert_eq!(features.has(name), expected, "{register:?} {low}: {value}");
    }
    let mut id = with(IdRegister::Aa64Pfr0, 28, 1);
    id.registers[Aa64Pfr1 as usize] = 1 << 12;
    assert!(Features::read(&id).has(Name::RasFaultInjection), "by RAS_frac");
    let id = IdRegisters { mpamidr: MPAMIDR_HAS_HCR, ..Default::default() };
    assert!(Features::read(&id).has(Name::MpamHcr));
}

/// Of what not all CPUs have, what is left looks like a CPU without it, and like nothing else.
#[test]
fn what_not_all_cpus_have_is_taken_out() {
    let everything = IdRegisters {
        registers: {
            let mut all = [0x1111_1111_1111_1111; REGISTERS];
            all[IdRegister::Aa64Pfr0 as usize] = 0x2211_1111_1111_1121 | 2 << 28;
            all[IdRegister::Aa64Pfr1 as usize] = 2 << 24 | 2 << 8 | 0x11;
            all[IdRegister::Aa64Smfr0 as usize] = 1 << 63 | 1 << 56 | 5;
            all
        },
        ..Default::default()
    };
    let all = Features::read(&everything);
    for name in [
        Name::Csv2,
        Name::Sme2,
        Name::SmeFa64,
        Name::Fpmr,
        Name::Aarch32,
        Name::Pauth,
        Name::RasFaultInjection,
    ] {
        assert!(all.has(name), "{name:?}");
        let less = everything.without(Features::NONE.with(name));
        assert_eq!(Features::read(&less), all.less(Features::NONE.with(name)), "{name:?}");
    }
    let less = everything.without(Features::NONE.with(Name::Sme2));
    assert_eq!(less.get(IdRegister::Aa64Smfr0), 1 << 63 | 5);
    assert_eq!(less.field(IdRegister::Aa64Pfr1, 24), 1);
    let less = everything.without(Features::NONE.with(Name::Fpmr));
    assert_eq!(less.get(IdRegister::Aa64Fpfr0), 0);
    // CSV2 is CSV2 without the numbers of SCXTNUM, and CSV3 is another matter.
    let less = everything.without(Features::NONE.with(Name::Csv2));
    assert_eq!((less.get(IdRegister::Aa64Pfr0) >> 56) & 0xff, 0x21);
    // What tells of instructions in streaming mode stays.
    let less = everything.without(Features::NONE.with(Name::Sve));
    assert_eq!(less.field(IdRegister::Aa64Pfr0, 32), 0);
    assert_eq!(less.field(IdRegister::Aa64Zfr0, 20), 1, "BF16");
    assert_eq!(less.field(IdRegister::Aa64Zfr0, 56), 0, "F64MM");
}

#[test]
fn who_relies_on_what() {
    use umbra_shared::vl::Vq;
    let relied = |vcpu| Features::ALL.relied_on_by(vcpu);
    let fpsimd = relied(VcpuFeatures::FPSIMD);
    for name in [Name::Fpmr, Name::Pauth, Name::Mops] {
        assert!(fpsimd.has(name), "{name:?}");
    }
    let sme = relied(VcpuFeatures { svq: Some(Vq::MIN), ..VcpuFeatures::FPSIMD });
    let aarch32 = relied(VcpuFeatures::AARCH32);
    for name in [Name::Sme2, Name::SmeFa64] {
        assert!(sme.has(name) && !fpsimd.has(name) && !aarch32.has(name), "{name:?}");
    }
    assert!(aarch32.has(Name::Aarch32) && !sme.has(Name::Aarch32));
    assert!(!aarch32.has(Name::Pauth), "it has no use for it");
    assert_eq!(Features::NONE.relied_on_by(VcpuFeatures::AARCH32), Features::NONE);
}

#[test]
fn fields_compare_as_the_architecture_says() {
    use super::id::Order::*;
    // FP and AdvSIMD: 0 is there, 1 has half precision, 0xf is none.
    assert_eq!(Signed.common(0xf, 1, 4), 0xf);
    assert_eq!(Signed.common(0, 1, 4), 0);
    assert_eq!(Unsigned.common(2, 1, 4), 1);
    // Several fields of four bits in one: each by itself.
    assert_eq!(Unsigned.common(0x21_0f12, 0x12_0011, 32), 0x11_0011);
    assert_eq!(Flags.common(0b0101, 0b0011, 56), 0b0001);
    assert_eq!(Exact.common(3, 5, 4), 0);
    assert_eq!(Exact.common(5, 5, 4), 5);
    assert_eq!(Unsigned.common(0b11, 0b01, 3), 1);
}

/// CPUs of two kinds: guests are shown what both have, whichever of them boots.
#[test]
fn what_cpus_of_two_kinds_have_in_common() {
    use IdRegister::*;
    let big = {
        let mut id = IdRegisters::default();
        id.registers[Aa64Pfr0 as usize] = 0x11_0000 | 1 << 32 | 0x22;
        id.registers[Aa64Zfr0 as usize] = 1 << 52 | 1 << 44 | 2;
        id.registers[Aa64Smfr0 as usize] = 0b11 << 40 | 0xf << 36;
        id.registers[Aa64Isar0 as usize] = 2 << 4 | 1 << 60;
        id.registers[Aa64Isar1 as usize] = 5 << 4;
        id.registers[Aa64Mmfr0 as usize] = 4;
        id.registers[Isar5 as usize] = 0x0001_1121;
        id
    };
    let little = {
        let mut id = big;
        id.registers[Aa64Pfr0 as usize] = 0x22 | 1 << 32;
        id.registers[Aa64Zfr0 as usize] = 1 << 44 | 1;
        id.registers[Aa64Smfr0 as usize] = 0b01 << 40 | 0xf << 36;
        id.registers[Aa64Isar0 as usize] = 1 << 4;
        id.registers[Aa64Isar1 as usize] = 3 << 4;
        id.registers[Aa64Mmfr0 as usize] = 2;
        id.registers[Isar5 as usize] = 0x0001_0011;
        id
    };
    let common = big.common(&little);
    assert_eq!(common.registers, little.common(&big).registers);
    assert_eq!(common.get(Aa64Pfr0), 0x22 | 1 << 32);
    assert_eq!(common.get(Aa64Zfr0), 1 << 44 | 1);
    assert_eq!(common.get(Aa64Smfr0), 0b01 << 40 | 0xf << 36);
    assert_eq!(common.get(Aa64Isar0), 1 << 4, "no RNDR");
    assert_eq!(common.get(Aa64Isar1), 0, "two algorithms of pointer authentication");
    assert_eq!(common.pa_bits(), 40);
    assert_eq!(common.get(Isar5), 0x0001_0011);
    for id in [big, little] {
        assert_eq!(id.lacks(&common), Features::NONE, "{id:?}");
    }
}

/// A CPU that comes late is refused the guests that would find less than they were shown, and no others.
#[test]
fn a_late_cpu_lacks_what_guests_were_shown() {
    use IdRegister::*;
    let everything =
        IdRegisters { registers: [0x1111_1111_1111_1111; REGISTERS], ..Default::default() };
    let without = |register: IdRegister, low: u32| {
        let mut id = everything;
        id.registers[register as usize] &= !(0xf << low);
        id.lacks(&everything)
    };
    let only = |names: &[Name]| names.iter().fold(Features::NONE, |set, &name| set.with(name));
    assert_eq!(everything.lacks(&everything), Features::NONE);
    for (register, low, names) in [
        (Aa64Isar0, 4, &[Name::Shown64][..]),
        (Aa64Isar0, 60, &[Name::Shown64]),
        (Aa64Mmfr2, 0, &[Name::Shown64]),
        (Aa64Mmfr0, 0, &[Name::Shown64, Name::Shown32]),
        (Isar0, 8, &[Name::Shown32]),
        (Mvfr1, 12, &[Name::Shown32]),
        (Aa64Zfr0, 52, &[Name::ShownSve]),
        (Aa64Zfr0, 20, &[Name::ShownSve, Name::ShownSme]),
        (Aa64Smfr0, 32, &[Name::ShownSme]),
        // No guest is shown these.
        (Aa64Pfr1, 8, &[]),
        (Aa64Dfr0, 8, &[]),
        (Aa64Mmfr3, 0, &[]),
    ] {
        assert_eq!(without(register, low), only(names), "{register:?} {low}");
    }
    // More than the machine has is no less.
    let mut more = everything;
    more.registers[Aa64Isar0 as usize] |= 2 << 4;
    assert_eq!(more.lacks(&everything), Features::NONE);
    // And who counts on what is missing.
    use umbra_shared::vl::Vq;
    let sve = VcpuFeatures { vq: Some(Vq::MIN), ..VcpuFeatures::FPSIMD };
    let sme = VcpuFeatures { svq: Some(Vq::MIN), ..VcpuFeatures::FPSIMD };
    let relied = |vcpu| Features::SHOWN.relied_on_by(vcpu);
    assert_eq!(relied(VcpuFeatures::FPSIMD), only(&[Name::Shown64]));
    assert_eq!(relied(VcpuFeatures::AARCH32), only(&[Name::Shown32]));
    assert_eq!(relied(sve), only(&[Name::Shown64, Name::ShownSve]));
    assert_eq!(relied(sme), only(&[Name::Shown64, Name::ShownSme]));
}

proptest::proptest! {
    /// What is taken out of the ID registers is what a CPU has too much, and of that only what tells of it: of
    /// what no CPU has, nothing is left to take.
    #[test]
    fn taking_out_what_is_missing_takes_out_nothing_else(
        registers in proptest::collection::vec(proptest::prelude::any::<u64>(), REGISTERS), missing: u64,
    ) {
        let mut id = IdRegisters::default();
        id.registers.copy_from_slice(&registers);
        let has = Features::read(&id);
        let missing = Features::from_bits(missing).and(has);
        let left = id.without(missing);
        for feature in &ALL {
            for field in feature.fields {
                let at = |id: &IdRegisters| id.get(field.of) >> field.low & field.mask();
                let told = ALL.iter().filter(|f| missing.has(f.name)).any(|f| {
                    f.levels.iter().any(|level| (level.of, level.low) == (field.of, field.low))
                });
                let taken = missing.has(feature.name) && field.tells;
                if !told && !taken {
                    proptest::prop_assert_eq!(at(&left), at(&id), "{}", field.name);
                }
                proptest::prop_assert!(at(&left) <= at(&id), "{}", field.name);
            }
        }
        // Nobody counts on what is gone.
        let after = Features::read(&left);
        for feature in ALL.iter().filter(|f| {
            let shown = Features::SHOWN.has(f.name);
            f.relied_on != Relied::ByNone && missing.has(f.name) && !shown
        }) {
            proptest::prop_assert!(!after.has(feature.name), "{}", feature.arm);
        }
    }
}

/// Of fields in which less is more, the greater value is what two CPUs have in common.
#[test]
fn what_less_is_more_of() {
    assert_eq!(Order::Inverse.common(0, 1, 4), 1);
    assert_eq!(Order::Inverse.common(0xf, 0, 4), 0xf);
    assert_eq!(Order::Unsigned.common(0xf, 0, 4), 0);
    let inverse = |of, low| {
        let fields = ALL.iter().flat_map(|feature| feature.fields);
        let field = fields.clone().find(|field| field.of == of && field.low == low);
        field.is_some_and(|field| field.order == Order::Inverse)
    };
    for (of, low) in [(IdRegister::Aa64Mmfr1, 24), (IdRegister::Mmfr3, 28), (IdRegister::Mmfr4, 0)]
    {
        assert!(inverse(of, low), "{of:?} {low}");
    }
}
