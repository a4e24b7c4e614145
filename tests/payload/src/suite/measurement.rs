//! What a protected VM is measured by, computed here from what is put into it as the interface documents it
//! (`umbra_shared::measurement`), and as its guest is told.

use crate::{
    ledger::PAGE,
    puppet::{BASE, Event, MEMORY_PAGES, Machine, PROTECTED, Puppet, Routine},
    runner::Skip,
    tests,
};
use sha2::{Digest, Sha256};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{mmu, sysreg},
};
use umbra_shared::{
    PAGE_SIZE,
    measurement::{Record, Value, input},
    rsi::{ERROR_INPUT, RsiFunction, SUCCESS},
    vcpu::{UntrustedFeatures, VcpuFeatures},
};

tests![
    measurement_is_of_what_is_put_in_place,
    measurement_tells_contents_addresses_and_orders_apart,
    measurement_is_the_same_whatever_the_calls,
    measurement_ends_with_the_seal,
    measurement_of_the_guests_own,
];

/// A page of the test's, which no guest has.
fn content(page: u64) -> &'static mut [u8] {
    // SAFETY: until it is a guest's it is this test's alone.
    unsafe { core::slice::from_raw_parts_mut(mmu::linear::<u8>(page), PAGE_SIZE) }
}

/// What it comes to.
#[derive(Clone, Copy)]
struct Measurement(Value);

impl Measurement {
    fn begin(ipa_width: u64) -> Self {
        Self([0; 32]).with(&Record::Create { ipa_width })
    }

    fn with(self, record: &Record) -> Self {
        Self(Sha256::digest(input(&self.0, record)).into())
    }

    fn with_page(self, ipa: u64, page: u64) -> Self {
        let content = Sha256::digest(&*content(page)).into();
        self.with(&Record::Page { ipa, content })
    }

    fn with_vcpu(self, index: u64, features: VcpuFeatures) -> Self {
        let UntrustedFeatures(features) = features.into();
        let start = (index == 0).then_some([BASE, 0]);
        self.with(&Record::Vcpu { index, affinity: index, features, start })
    }
}

/// What the guest finds.
#[track_caller]
fn read(guest: &Puppet, index: u64) -> Value {
    let function = RsiFunction::MeasurementRead.id();
    let Event::Done([SUCCESS, words @ ..]) = guest.smccc(Routine::Smc, function, [index, 7, 8])
    else {
        panic!("MEASUREMENT_READ of {index}");
    };
    let mut value = [0; 32];
    for (bytes, word) in value.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    value
}

/// Bits of a guest's address, as it finds them by REALM_CONFIG.
fn ipa_width(guest: &Puppet) -> u64 {
    let ipa = guest.scratch();
    let [x0, ..] = guest.answered(Routine::Smc, RsiFunction::RealmConfig.id(), [ipa, 0, 0]);
    assert_eq!(x0, SUCCESS);
    super::sharing::load(guest, ipa)
}

/// A VM whose pages are put in place by `order`, and what they come to behind what it begins with.
fn built(order: impl FnOnce(&Machine, &mut dyn FnMut(u64)), width: u64) -> (Machine, Measurement) {
    let mut measured = Measurement::begin(width);
    let machine = Machine::with_memory(PROTECTED, |machine| {
        order(machine, &mut |n| {
            let ipa = BASE + n * PAGE;
            measured = measured.with_page(ipa, machine.page(ipa));
            Hvc.vm_map(machine.vm, machine.page(ipa), ipa).expect("VM_MAP");
        });
    });
    (machine, measured)
}

fn in_order(_: &Machine, map: &mut dyn FnMut(u64)) {
    (0..MEMORY_PAGES).for_each(map);
}

/// The bits of an address on this machine.
fn width() -> u64 {
    let guest = Machine::new(PROTECTED).started(None);
    let width = ipa_width(&guest);
    guest.put();
    width
}

fn measurement_is_of_what_is_put_in_place() -> Result<(), Skip> {
    let width = width();
    let (machine, measured) = built(in_order, width);
    let (a, b) = (machine.vcpu(None), machine.vcpu(None));
    let measured = measured.with_vcpu(0, VcpuFeatures::FPSIMD).with_vcpu(1, VcpuFeatures::FPSIMD);
    a.load();
    a.start();
    assert_eq!(read(&a, 0), measured.0);
    a.put();
    b.load();
    b.start();
    assert_eq!(read(&b, 0), measured.0, "for every vCPU");
    b.put();
    Ok(())
}

fn measurement_tells_contents_addresses_and_orders_apart() -> Result<(), Skip> {
    let width = width();
    let last = MEMORY_PAGES - 1;
    type Order<'a> = &'a dyn Fn(&Machine, &mut dyn FnMut(u64));
    let touched = |byte: usize| {
        move |machine: &Machine, map: &mut dyn FnMut(u64)| {
            content(machine.page(BASE + last * PAGE))[byte] ^= 0x10;
            in_order(machine, map);
        }
    };
    let backwards = |_: &Machine, map: &mut dyn FnMut(u64)| (0..MEMORY_PAGES).rev().for_each(map);
    let without = |_: &Machine, map: &mut dyn FnMut(u64)| (0..last).for_each(map);
    let (first, end) = (touched(0), touched(PAGE_SIZE - 1));
    let orders: [Order; 5] = [&in_order, &first, &end, &backwards, &without];
    let mut seen = [[0; 32]; 5];
    for (order, seen) in orders.into_iter().zip(&mut seen) {
        let (machine, measured) = built(order, width);
        let guest = machine.started(None);
        *seen = read(&guest, 0);
        assert_eq!(*seen, measured.with_vcpu(0, VcpuFeatures::FPSIMD).0);
        guest.put();
    }
    for n in 0..seen.len() {
        assert!(!seen[n + 1..].contains(&seen[n]), "build {n}");
    }
    Ok(())
}

/// One range, pages one by one, with an interrupt that waits: it is the same memory.
fn measurement_is_the_same_whatever_the_calls() -> Result<(), Skip> {
    let mut seen = [[0; 32]; 3];
    for (n, seen) in seen.iter_mut().enumerate() {
        let machine = Machine::with_memory(PROTECTED, |machine| {
            let daif = (n == 2).then(crate::host::pend_interrupt);
            let mut done = 0;
            let mut calls = 0;
            while done < MEMORY_PAGES {
                let (ipa, left) = (BASE + done * PAGE, MEMORY_PAGES - done);
                let count = if n == 0 { 1 } else { left };
                let more = Hvc.vm_map_range(machine.vm, machine.page(ipa), count, ipa);
                done += more.expect("VM_MAP");
                calls += 1;
            }
            if let Some(daif) = daif {
                assert_eq!(calls, MEMORY_PAGES, "each page is looked behind");
                crate::host::release_interrupt(daif);
            }
        });
        let guest = machine.started(None);
        *seen = read(&guest, 0);
        guest.put();
    }
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:x?}");
    Ok(())
}

fn measurement_ends_with_the_seal() -> Result<(), Skip> {
    let guest = Machine::new(PROTECTED).started(None);
    let before = read(&guest, 0);
    let page = crate::ledger::take(1);
    content(page).fill(0x5a);
    sysreg::clean_to_poc(mmu::linear::<u8>(page) as usize, PAGE_SIZE);
    Hvc.vm_map(guest.machine.vm, page, BASE + MEMORY_PAGES * PAGE).expect("VM_MAP");
    assert_eq!(read(&guest, 0), before, "it came empty");
    assert_eq!(super::sharing::load(&guest, BASE + MEMORY_PAGES * PAGE), 0);
    guest.put();
    Ok(())
}

fn measurement_of_the_guests_own() -> Result<(), Skip> {
    let guest = Machine::new(PROTECTED).started(None);
    let extend = |index: u64, bytes: u64, word: u64| {
        let function = RsiFunction::MeasurementExtend.id();
        guest.answered(Routine::Hvc, function, [index, bytes, word])[0]
    };
    let initial = read(&guest, 0);
    let mut own = [[0; 32]; 5];
    for round in 0..3u64 {
        for index in 1..=4 {
            let (bytes, word) = (8 - round * 4, 0x0123_4567_89ab_cdef + index + round);
            assert_eq!(extend(index, bytes, word), SUCCESS);
            let value = &mut own[index as usize];
            let extended = Sha256::new()
                .chain_update(*value)
                .chain_update(&word.to_le_bytes()[..bytes as usize]);
            *value = extended.finalize().into();
            for (index, value) in own.iter().enumerate().skip(1) {
                assert_eq!(read(&guest, index as u64), *value, "number {index}");
            }
        }
    }
    // The host's is nobody's to extend, and there are no others.
    for (index, bytes) in [(0, 8), (5, 8), (u64::MAX, 8), (1, 65), (1, u64::MAX)] {
        assert_eq!(extend(index, bytes, 7), ERROR_INPUT, "{bytes} bytes to {index}");
    }
    for index in [5, 6, u64::MAX] {
        let function = RsiFunction::MeasurementRead.id();
        let x = guest.answered(Routine::Hvc, function, [index, 7, 8]);
        assert_eq!(x, [ERROR_INPUT, index, 7, 8]);
    }
    assert_eq!((read(&guest, 0), read(&guest, 1)), (initial, own[1]));
    guest.put();
    Ok(())
}
