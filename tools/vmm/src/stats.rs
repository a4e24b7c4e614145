//! What the hypervisor counts of a vCPU (Linux Documentation/virt/kvm/api.rst, "KVM_GET_STATS_FD"): above all why it has left
//! its guest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use vmm_sys_util::ioctl::{_IOC_NONE, ioctl, ioctl_expr};

/// Of KVMIO.
const KVM_GET_STATS_FD: libc::c_ulong = ioctl_expr(_IOC_NONE, 0xae, 0xce, 0);

/// Bytes that such a file has at most: KVM has some sixty values.
const LARGEST: usize = 64 << 10;

/// A vCPU's file. Reading it disturbs nobody.
#[derive(Debug)]
pub struct Stats(File);

impl Stats {
    /// Of what has this descriptor.
    ///
    /// # Errors
    ///
    /// The hypervisor doesn't tell (KVM_CAP_BINARY_STATS_FD).
    pub fn of(vcpu: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: it takes no argument and makes a file.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD as _) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor, which nobody else has.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Names and values as they are now, of what counts exits: `exits`, and what has `exit` in its name.
    ///
    /// # Errors
    ///
    /// It can't be read, or isn't such a file.
    pub fn exits(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut image = Vec::new();
        let mut piece = [0; 4096];
        while image.len() < LARGEST {
            match self.0.read_at(&mut piece, image.len() as u64)? {
                0 => break,
                count => image.extend_from_slice(&piece[..count]),
            }
        }
        let all = values(&image).ok_or(io::ErrorKind::InvalidData)?;
        Ok(all.into_iter().filter(|(name, _)| name.contains("exit")).collect())
    }
}

/// All values of a file that are one number.
fn values(image: &[u8]) -> Option<BTreeMap<String, u64>> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    // `struct kvm_stats_header`
    let (name_bytes, count, descriptors, data) = (word(4)?, word(8)?, word(16)?, word(20)?);
    let mut found = BTreeMap::new();
    for n in 0..count {
        // `struct kvm_stats_desc`
        let at = n.checked_mul(name_bytes.checked_add(16)?)?.checked_add(descriptors)?;
        let (numbers, offset) = (word(at.checked_add(4)?)? >> 16, word(at.checked_add(8)?)?);
        if numbers != 1 {
            continue;
        }
        let name_at = at.checked_add(16)?;
        let name = image.get(name_at..name_at.checked_add(name_bytes)?)?;
        let name = name.split(|&byte| byte == 0).next()?;
        let value_at = data.checked_add(offset)?;
        let value = image.get(value_at..value_at.checked_add(8)?)?;
        let value = u64::from_le_bytes(value.try_into().ok()?);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with two values, of which the second has four numbers.
    fn image() -> Vec<u8> {
        let mut out = Vec::new();
        let words = |out: &mut Vec<u8>, words: &[u32]| {
            words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        };
        let (id, descriptors) = (24, 32);
        words(&mut out, &[0, 8, 2, id, descriptors, descriptors + 2 * 24]);
        out.extend_from_slice(b"kvm-1\0\0\0");
        for (name, numbers, offset) in [(b"exits\0\0\0", 1, 0), (b"halts\0\0\0", 4, 8)] {
            words(&mut out, &[0, numbers << 16, offset, 0]);
            out.extend_from_slice(name);
        }
        out.extend_from_slice(&7_u64.to_le_bytes());
        out.extend_from_slice(&[0xff; 32]);
        out
    }

    #[test]
    fn values_are_found_by_their_descriptors() {
        assert_eq!(values(&image()), Some(BTreeMap::from([("exits".to_owned(), 7)])));
    }

    #[test]
    fn a_file_that_is_cut_off_is_none() {
        let image = image();
        let end_of_the_last_that_counts = image.len() - 32;
        for end in 0..end_of_the_last_that_counts {
            assert_eq!(values(&image[..end]), None, "{end}");
        }
        let mut wild = image;
        wild[16..20].fill(0xff);
        assert_eq!(values(&wild), None);
    }
}
