//! Device trees: reading one, and editing it for the host.
//!
//! A tree comes from firmware and not from the host. But hyp believes it before it believes anything
//! else, so a damaged one must end in a message and not in a wrong memory map.

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};
use umbra_hyp::arch::MAX_CPUS;
use umbra_hyp::boot::platform::masters::{DeviceRanges, host_devices, survey};
use umbra_hyp::boot::platform::smmus::SmmuNodes;
use umbra_hyp::boot::platform::{self, HostBoot, Platform, PlatformError, Range};
use umbra_hyp::dma::examine::Facts;
use umbra_shared::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;
/// What hyp adds to a tree, and more.
const ROOM: usize = 4096;
/// More than any tree has.
const LARGEST: usize = 64 << 10;

const COMMAND_LINE: &str = "umbra.host-vl=full quiet";

/// Reads a tree, and edits it.
pub fn tree(data: &[u8]) {
    if data.len() > LARGEST {
        return;
    }
    let Ok(fdt) = Fdt::new(data) else { return };
    let console = platform::console(&fdt);
    let platform = match Platform::read(&fdt) {
        Ok(platform) => platform,
        Err(error) => {
            assert_eq!(Platform::read(&fdt).map(|_| ()), Err(error), "the same twice");
            return;
        }
    };
    let again = Platform::read(&fdt).expect("the same twice");
    assert_eq!(format!("{again:?}"), format!("{platform:?}"), "the same twice");
    assert_eq!(platform.uart, console);
    check(&platform);
    places(&platform);
    devices(data, &platform);
    // The host keeps everything, or loses hyp's: a hole at the front, one in the middle, a whole bank.
    let (start, end) = platform.banks[0];
    let middle = (start + (end - start) / 2) / PAGE * PAGE;
    edit(data, &platform, &[]);
    edit(data, &platform, &[(start, start + PAGE)]);
    edit(data, &platform, &[(middle, middle + PAGE), (end - PAGE, end)]);
    edit(data, &platform, &[(start, end)]);
}

/// Sorted, apart from each other, whole pages.
fn check_banks(banks: &[Range]) {
    for &(start, end) in banks {
        assert!(start < end && start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE));
    }
    assert!(banks.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{banks:x?}");
}

fn check(platform: &Platform) {
    assert!(!platform.banks.is_empty());
    check_banks(&platform.banks);
    assert!(platform.reserved.iter().all(|(start, end)| start <= end));
    assert!((1..=MAX_CPUS).contains(&platform.cpus.len()));
}

fn overlap(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}

fn places(platform: &Platform) {
    for &bank in &platform.banks {
        let taken = [(bank.0, bank.0.saturating_add(PAGE))];
        for (bytes, align) in [(PAGE, PAGE), (2 << 20, 2 << 20), (64 << 20, 2 << 20)] {
            let Some(place) = platform.place(bank.0, bytes, align, &taken) else { continue };
            assert_eq!(place.1 - place.0, bytes);
            assert!(place.0.is_multiple_of(align) && bank.0 <= place.0 && place.1 <= bank.1);
            let mut others = platform.reserved.iter().chain(&taken);
            assert!(others.all(|&other| !overlap(place, other)), "{place:x?}");
        }
    }
}

/// `banks` without `holes`.
fn without(banks: &[Range], holes: &[Range]) -> Vec<Range> {
    let mut rest = banks.to_vec();
    for hole in holes {
        rest = rest
            .into_iter()
            .flat_map(|part| [(part.0, part.1.min(hole.0)), (part.0.max(hole.1), part.1)])
            .filter(|part| part.0 < part.1)
            .collect();
    }
    rest
}

/// The tree's SMMUs, each as good as any.
fn smmus(platform: &Platform) -> SmmuNodes {
    let mut smmus = platform.smmus.clone();
    for smmu in &mut smmus {
        smmu.facts = smmu.facts.map(|_| Facts {
            stream_bits: 16,
            output_bits: 44,
            commands: 8,
            events: 8,
            ats: false,
        });
    }
    smmus
}

/// What the host has beside RAM is whole pages and no RAM; what is left of it in a tree that it gets is
/// covered, or counted as reaching everything.
fn devices(data: &[u8], platform: &Platform) {
    let fdt = Fdt::new(data).expect("read before");
    let smmus = smmus(platform);
    let Ok(masters) = survey(&fdt, &smmus) else { return };
    assert!(masters.kinds.iter().all(|kind| kind.count > 0));
    for isolate in [false, true] {
        let mut ranges = Box::new(DeviceRanges::new());
        if host_devices(&fdt, &smmus, isolate, &platform.banks, &mut ranges).is_err() {
            continue;
        }
        for &range in ranges.pieces() {
            assert!(range.0 < range.1 && range.0.is_multiple_of(PAGE));
            assert!(range.1.is_multiple_of(PAGE), "{range:x?}");
            assert!(!platform.banks.iter().any(|&bank| overlap(bank, range)), "{range:x?}");
        }
        let boot = HostBoot { hyp: &[], initrd: None, command_line: "", smmus: &smmus, isolate };
        let mut room = vec![0; data.len() + ROOM];
        let Ok(bytes) = platform::hand_over(data, &mut room, &boot) else { continue };
        let edited = Fdt::new(&room[..bytes]).expect("a tree");
        let left = survey(&edited, &smmus).expect("it was read before");
        assert_eq!(left.uncovered, if isolate { 0 } else { masters.uncovered });
    }
}

fn edit(data: &[u8], platform: &Platform, hyp: &[Range]) {
    let initrd = Some((0x1234_5000, 0x1234_6789));
    let smmus = &smmus(platform);
    let boot = HostBoot { hyp, initrd, command_line: COMMAND_LINE, smmus, isolate: false };
    let mut room = vec![0xa5; data.len() + ROOM];
    let edited = platform::hand_over(data, &mut room, &boot);
    let mut second = vec![0x5a; data.len() + ROOM];
    assert_eq!(platform::hand_over(data, &mut second, &boot), edited, "the same twice");
    let bytes = match edited {
        Ok(bytes) => bytes,
        Err(error) => {
            use PlatformError::{BadTree, NoChosen, NoRoom};
            assert!(matches!(error, NoRoom | NoChosen | BadTree), "{error:?}");
            return;
        }
    };
    assert_eq!(room[..bytes], second[..bytes], "the same twice");
    let fdt = Fdt::new(&room[..bytes]).expect("a tree");
    // Nothing of hyp's is left in it, and nothing else is gone.
    let left = without(&platform.banks, hyp);
    match Platform::read(&fdt) {
        Ok(seen) => {
            check(&seen);
            assert_eq!(seen.banks[..], left, "memory without {hyp:x?}");
            assert_eq!(seen.cpus, platform.cpus);
            assert_eq!(seen.reserved, platform.reserved);
            assert_eq!(&seen.command_line, COMMAND_LINE);
        }
        Err(PlatformError::NoMemory) => assert_eq!(left, [], "there is memory left"),
        // One hole makes two banks of one.
        Err(PlatformError::TooManyBanks) => assert!(left.len() > platform.banks.len()),
        Err(error) => panic!("the host can't read it: {error:?}"),
    }
    let chosen = fdt.chosen().expect("it has one");
    for (name, value) in
        [("linux,initrd-start", 0x1234_5000_u64), ("linux,initrd-end", 0x1234_6789)]
    {
        let property = chosen.property(name).expect("it is there");
        assert_eq!(property.value(), value.to_be_bytes());
    }
}
