//! What is counted, and how KVM_GET_STATS_FD's files show it (Linux Documentation/virt/kvm/api.rst, "KVM_GET_STATS_FD").

#![forbid(unsafe_code)]

use crate::abi::Errno;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a vCPU has left its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An interrupt of the host's.
    Interrupt,
    /// A call that hyp doesn't answer.
    Hvc,
    /// It waits for an interrupt.
    Wfi,
    /// A load or store that is answered here: the GIC's frames, and doorbells.
    MmioKernel,
    /// One that the VMM answers.
    MmioUser,
    /// Memory is put in place.
    Fault,
    /// Hyp has no pages left for the guest's tables.
    Tables,
    /// A vCPU, or the machine, is turned on, off or reset.
    Power,
    /// A page that the guest has shared is about to be its own, or it has given one back.
    Sharing,
    /// A signal has come, or the VMM wants it back. This is not one of `exits`: something else stopped the guest.
    Signal,
}

/// All of them, with KVM's names where KVM has them.
const EXITS: [(Exit, &str); 10] = [
    (Exit::Interrupt, "irq_exits"),
    (Exit::Hvc, "hvc_exit_stat"),
    (Exit::Wfi, "wfi_exit_stat"),
    (Exit::MmioKernel, "mmio_exit_kernel"),
    (Exit::MmioUser, "mmio_exit_user"),
    (Exit::Fault, "fault_exits"),
    (Exit::Tables, "table_exits"),
    (Exit::Power, "power_exits"),
    (Exit::Sharing, "sharing_exits"),
    (Exit::Signal, "signal_exits"),
];

/// What a vCPU counts.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; EXITS.len()]);

impl Counts {
    /// One more. Only the vCPU's own thread does so.
    pub fn count(&self, exit: Exit) {
        let counter = &self.0[exit as usize];
        counter.store(counter.load(Relaxed) + 1, Relaxed);
    }

    /// Names and values.
    fn values(&self) -> impl Iterator<Item = (&'static str, u64)> + Clone {
        let of = move |exit: Exit| self.0[exit as usize].load(Relaxed);
        let exits = EXITS.iter().filter(|(exit, _)| *exit != Exit::Signal);
        let all = exits.map(|&(exit, _)| of(exit)).sum();
        [("exits", all)].into_iter().chain(EXITS.iter().map(move |&(exit, name)| (name, of(exit))))
    }
}

/// Whether a value only grows, or is what it is now (KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_INSTANT; no unit, powers of
/// 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Cumulative = 0,
    Instant = 1,
}

/// KVM_STATS_NAME_SIZE, which is also room for the file's own name.
const NAME_BYTES: usize = 48;
const HEADER_BYTES: usize = 24;
const DESCRIPTOR_BYTES: usize = 16 + NAME_BYTES;

/// A vCPU's file.
pub fn of_vcpu(index: u32, counts: &Counts) -> Result<Vec<u8>, Errno> {
    image(("kvm-vcpu", index), counts.values().map(|(name, value)| (name, Kind::Cumulative, value)))
}

/// A VM's file: pages that are pinned for it or that hyp keeps it in.
pub fn of_vm(pages: u64) -> Result<Vec<u8>, Errno> {
    image(("kvm", 0), [("pages", Kind::Instant, pages)].into_iter())
}

/// `struct kvm_stats_header`, the file's name, a `struct kvm_stats_desc` with its name for each value, the values.
fn image(
    (name, number): (&str, u32),
    values: impl Iterator<Item = (&'static str, Kind, u64)> + Clone,
) -> Result<Vec<u8>, Errno> {
    let count = values.clone().count();
    let descriptors = HEADER_BYTES + NAME_BYTES;
    let data = descriptors + count * DESCRIPTOR_BYTES;
    let mut out = Vec::new();
    out.try_reserve_exact(data + count * 8).map_err(|_| Errno::ENOMEM)?;
    let header = [0, NAME_BYTES, count, HEADER_BYTES, descriptors, data];
    header.iter().for_each(|&word| out.extend_from_slice(&(word as u32).to_le_bytes()));
    put_name(&mut out, name, Some(number));
    for (n, (name, kind, _)) in values.clone().enumerate() {
        out.extend_from_slice(&(kind as u32).to_le_bytes());
        // The exponent, and one value of it.
        out.extend_from_slice(&0_i16.to_le_bytes());
        out.extend_from_slice(&1_u16.to_le_bytes());
        out.extend_from_slice(&(n as u32 * 8).to_le_bytes());
        // No buckets.
        out.extend_from_slice(&0_u32.to_le_bytes());
        put_name(&mut out, name, None);
    }
    values.for_each(|(_, _, value)| out.extend_from_slice(&value.to_le_bytes()));
    Ok(out)
}

/// A name, a number behind a dash if there is one, and zeroes.
fn put_name(out: &mut Vec<u8>, name: &str, number: Option<u32>) {
    let end = out.len() + NAME_BYTES;
    out.extend_from_slice(name.as_bytes());
    if let Some(number) = number {
        let (mut digits, mut left, mut at) = ([0; 10], number, 10);
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        out.push(b'-');
        out.extend_from_slice(&digits[at..]);
    }
    out.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(image: &[u8], at: usize) -> usize {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
    }

    fn text(image: &[u8], at: usize) -> &str {
        let name = &image[at..at + NAME_BYTES];
        let end = name.iter().position(|&byte| byte == 0).expect("it ends");
        std::str::from_utf8(&name[..end]).unwrap()
    }

    /// As a reader goes about it who knows api.rst alone.
    fn read(image: &[u8]) -> (String, Vec<(String, u64)>) {
        let [name_bytes, count, id, descriptors, data] =
            [4, 8, 12, 16, 20].map(|at| word(image, at));
        assert_eq!((word(image, 0), name_bytes), (0, NAME_BYTES));
        let values = (0..count).map(|n| {
            let at = descriptors + n * (16 + name_bytes);
            let (size, offset) = (word(image, at + 4) >> 16, word(image, at + 8));
            assert_eq!(size, 1);
            let value = &image[data + offset..data + offset + 8];
            (text(image, at + 16).to_owned(), u64::from_le_bytes(value.try_into().unwrap()))
        });
        (text(image, id).to_owned(), values.collect())
    }

    #[test]
    fn a_vcpus_file_has_what_it_counted() {
        let counts = Counts::default();
        for (n, &(exit, _)) in EXITS.iter().enumerate() {
            (0..=n).for_each(|_| counts.count(exit));
        }
        let image = of_vcpu(1023, &counts).unwrap();
        let (name, values) = read(&image);
        assert_eq!(name, "kvm-vcpu-1023");
        let signals = EXITS.len() as u64;
        let all = signals * (signals - 1) / 2;
        assert_eq!(values[0], ("exits".to_owned(), all));
        assert_eq!(values.last(), Some(&("signal_exits".to_owned(), signals)));
        assert_eq!(values.len(), EXITS.len() + 1);
        assert_eq!(image.len(), word(&image, 20) + values.len() * 8);
    }

    #[test]
    fn counters_stand_where_they_are_counted() {
        for (n, (exit, _)) in EXITS.iter().enumerate() {
            assert_eq!(*exit as usize, n);
        }
    }

    #[test]
    fn a_vms_file_has_its_pages() {
        let image = of_vm(7).unwrap();
        assert_eq!(read(&image), ("kvm-0".to_owned(), vec![("pages".to_owned(), 7)]));
        // KVM_STATS_TYPE_INSTANT
        assert_eq!(word(&image, word(&image, 16)), 1);
    }
}
