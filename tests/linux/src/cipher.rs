//! The kernel's own use of FP registers: AES that it does with the CPU's instructions for that, between
//! `kernel_neon_begin` and `kernel_neon_end`, in a system call of a process whose registers are full.

use crate::fail;
use crate::say::Text;
use crate::seen;
use crate::sys::alg::Ctr;

/// Bytes at once: more than one vector's worth, and no more than a socket takes.
const BYTES: usize = 8192;

/// NIST SP 800-38A, F.5.1: key, counter, and the first blocks.
const KEY: [u8; 16] = 0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c_u128.to_be_bytes();
const COUNTER: [u8; 16] = 0xf0f1_f2f3_f4f5_f6f7_f8f9_fafb_fcfd_feff_u128.to_be_bytes();
const PLAIN: [u128; 4] = [
    0x6bc1_bee2_2e40_9f96_e93d_7e11_7393_172a,
    0xae2d_8a57_1e03_ac9c_9eb7_6fac_45af_8e51,
    0x30c8_1c46_a35c_e411_e5fb_c119_1a0a_52ef,
    0xf69f_2445_df4f_9b17_ad2b_417b_e66c_3710,
];
const ENCRYPTED: [u128; 4] = [
    0x874d_6191_b620_e326_1bef_6864_990d_b6ce,
    0x9806_f66b_7970_fdff_8617_187b_b9ff_fdff,
    0x5ae4_df3e_dbd5_d35e_5b4f_0902_0db0_3eab,
    0x1e03_1dda_2fbe_03d1_7921_70a0_f300_9cee,
];

/// A cipher of a process's own.
pub struct Cipher {
    ctr: Ctr,
    plain: [u8; BYTES],
    encrypted: [u8; BYTES],
}

impl Cipher {
    /// A new one.
    pub fn new() -> Result<Self, Text> {
        let ctr = match Ctr::new(&KEY) {
            Ok(ctr) => ctr,
            Err(error) => fail!("the kernel has no AES for user space: {error:?}"),
        };
        let mut plain = [0; BYTES];
        for (to, from) in plain.chunks_exact_mut(16).zip(PLAIN.iter().cycle()) {
            to.copy_from_slice(&from.to_be_bytes());
        }
        Ok(Self { ctr, plain, encrypted: [0; BYTES] })
    }

    /// Encrypts, and in counter mode that is how to decrypt, too.
    pub fn use_it(&mut self) -> Result<(), Text> {
        let Self { ctr, plain, encrypted } = self;
        let mut again = [0; BYTES];
        let done = ctr
            .encrypt(COUNTER, plain, encrypted)
            .and_then(|()| ctr.encrypt(COUNTER, encrypted, &mut again));
        if let Err(error) = done {
            fail!("the kernel doesn't encrypt: {error:?}");
        }
        let blocks = encrypted.chunks_exact(16).zip(ENCRYPTED);
        let right = |(found, wanted): (&[u8], u128)| found == wanted.to_be_bytes();
        if !blocks.into_iter().all(right) || again != *plain {
            fail!("the kernel encrypts wrongly");
        }
        Ok(())
    }
}

/// It is done with FP registers: the best implementation that there is, as /proc/crypto has them.
pub fn check() -> Result<(), Text> {
    // There when somebody has asked for it.
    Cipher::new()?.use_it()?;
    let found = seen::with_file(c"/proc/crypto", |text| {
        let ours = text.split("\n\n").filter(|part| value(part, "name") == "ctr(aes)");
        let priority = |part: &&str| value(part, "priority").parse::<u32>().unwrap_or(0);
        match ours.max_by_key(priority) {
            Some(best) => Ok(crate::say::text(format_args!("{}", value(best, "driver")))),
            None => fail!("/proc/crypto has no ctr(aes)"),
        }
    })?;
    if !(found.contains("-ce") || found.contains("-neon")) {
        fail!("{found} uses no FP registers");
    }
    seen::row("cipher", &found);
    Ok(())
}

/// What a part of /proc/crypto says of something.
fn value<'a>(part: &'a str, key: &str) -> &'a str {
    let mut lines = part.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| name.trim() == key).map_or("", |(_, value)| value.trim())
}
