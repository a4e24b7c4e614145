//! A signal frame's records of FP registers (Linux arch/arm64/include/uapi/asm/sigcontext.h).
//!
//! Linux saves the interrupted registers there and loads them from there when the handler returns: a
//! handler that changes the records changes the registers.

use umbra_patterns::pattern::{
    MAX_IMAGE_BYTES, compare, compare_fpsimd, compare_status, compare_za, expected,
    expected_fpsimd, expected_za, fpcr, fpsr,
};
use umbra_patterns::regs::sme::Row;
use umbra_patterns::tag::{Register, Tag};
use umbra_shared::sve::{FPSIMD_BYTES, Layout};
use umbra_shared::vl::Vq;

use crate::fail;
use crate::filled::Filled;
use crate::say::Text;

/// Offset of the records in the ucontext.
const RECORDS: usize = 464;
/// Bytes of records there; more are elsewhere, behind an EXTRA record.
const RECORDS_BYTES: usize = 4096;

const FPSIMD_MAGIC: u32 = 0x4650_8001;
const SVE_MAGIC: u32 = 0x5356_4501;
const ZA_MAGIC: u32 = 0x5436_6345;
const EXTRA_MAGIC: u32 = 0x4558_5401;
/// SVE_SIG_FLAG_SM, in an SVE record's flags: its registers are those of streaming mode.
const STREAMING: u16 = 1;
/// Bytes before the registers in an SVE record, and in a ZA record.
const SVE_HEADER: usize = 16;

/// The records of one frame.
pub struct Frame<'a> {
    status: &'a mut [u8],
    v: &'a mut [u8; FPSIMD_BYTES],
    /// The VL, and the registers: none if nothing but V0-V31 was live.
    sve: Option<(u16, &'a mut [u8])>,
    /// The registers are those of streaming mode.
    streaming: bool,
    /// The SVL, and ZA, if it was on.
    za: Option<(Vq, &'a mut [u8])>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

impl<'a> Frame<'a> {
    /// Finds the records.
    ///
    /// # Safety
    ///
    /// `context` is the third argument of a signal handler, whose frame nothing else uses.
    pub unsafe fn new(context: *mut u8) -> Result<Self, Text> {
        // SAFETY: as the caller promises.
        let mut at: &'a mut [u8] =
            unsafe { core::slice::from_raw_parts_mut(context.add(RECORDS), RECORDS_BYTES) };
        let mut fpsimd = None;
        let mut sve = None;
        let mut za = None;
        let mut extra = None;
        loop {
            let (magic, size) = (word(at, 0), word(at, 4) as usize);
            if magic == 0 {
                // The end of the records here.
                match extra.take() {
                    Some(more) => {
                        at = more;
                        continue;
                    }
                    None => break,
                }
            }
            if size < 8 || size > at.len() {
                fail!("signal frame: record {magic:#x} of {size} bytes");
            }
            let (record, rest) = at.split_at_mut(size);
            at = rest;
            match magic {
                FPSIMD_MAGIC => fpsimd = Some(record),
                // Of two, the one for the mode that was on has registers.
                SVE_MAGIC if sve.is_none() || record.len() > SVE_HEADER => sve = Some(record),
                ZA_MAGIC if record.len() > SVE_HEADER => za = Some(record),
                EXTRA_MAGIC => {
                    let address = u64::from(word(record, 8)) | u64::from(word(record, 12)) << 32;
                    let bytes = word(record, 16) as usize;
                    // SAFETY: Linux put more records of the same frame there.
                    extra =
                        Some(unsafe { core::slice::from_raw_parts_mut(address as *mut u8, bytes) });
                }
                _ => {}
            }
        }
        let Some(fpsimd) = fpsimd else { fail!("signal frame without FP registers") };
        let (status, v) = fpsimd.split_at_mut(16);
        let Some(v) = v.first_chunk_mut() else { fail!("signal frame: short FPSIMD record") };
        let za = match za {
            Some(record) => {
                let vl = word(record, 8) as u16;
                let Some(svq) = Vq::from_vl(vl.into()) else { fail!("signal frame: SVL {vl}") };
                let rows = &mut record[SVE_HEADER..];
                if rows.len() < svq.vl_bytes() * svq.vl_bytes() {
                    fail!("signal frame: ZA record too short for SVL {vl}");
                }
                Some((svq, rows))
            }
            None => None,
        };
        let streaming =
            sve.as_ref().is_some_and(|record| (word(record, 8) >> 16) as u16 & STREAMING != 0);
        let sve = match sve {
            Some(record) if record.len() > SVE_HEADER => {
                let vl = word(record, 8) as u16;
                let registers = &mut record[SVE_HEADER..];
                let Some(vq) = Vq::from_vl(vl.into()) else { fail!("signal frame: VL {vl}") };
                if registers.len() < Layout::new(vq).image_bytes() {
                    fail!("signal frame: SVE record too short for VL {vl}");
                }
                Some((vl, registers))
            }
            _ => None,
        };
        Ok(Self { status, v, sve, streaming, za })
    }

    /// The registers that were interrupted are those of `tag`. `fa64`: streaming mode has FFR.
    pub fn check(&self, tag: Tag, filled: Filled, fa64: bool, known: &[Tag]) -> Result<(), Text> {
        let mut image = [0; MAX_IMAGE_BYTES];
        let of_v: &mut [u8; FPSIMD_BYTES] =
            image.first_chunk_mut().expect("an image is larger than V0-V31");
        expected_fpsimd(tag, of_v);
        let status = compare_status(Register::Fpsr, fpsr(tag), word(self.status, 8))
            .and_then(|()| compare_status(Register::Fpcr, fpcr(tag), word(self.status, 12)));
        if let Err(mismatch) = status.and_then(|()| compare_fpsimd(of_v, self.v, known)) {
            fail!("signal frame: {mismatch}");
        }
        let (vq, streaming) = match filled {
            Filled::Fpsimd => return Ok(()),
            Filled::Sve(vq) => (vq, false),
            Filled::Streaming(vq) => (vq, true),
        };
        let Some((vl, registers)) = &self.sve else { fail!("signal frame without SVE") };
        if usize::from(*vl) != vq.vl_bytes() || self.streaming != streaming {
            fail!("signal frame: VL {vl}, streaming: {}, not {filled}", self.streaming);
        }
        let layout = Layout::new(vq);
        expected(tag, layout, &mut image);
        if streaming && !fa64 {
            let ffr = layout.ffr()..layout.ffr() + layout.p_bytes();
            image[ffr.clone()].copy_from_slice(&registers[ffr]);
        }
        if let Err(mismatch) = compare(layout, &image, registers, known) {
            fail!("signal frame: {mismatch}");
        }
        if streaming { self.check_za(tag, vq, known) } else { Ok(()) }
    }

    fn check_za(&self, tag: Tag, svq: Vq, known: &[Tag]) -> Result<(), Text> {
        let Some((found, rows)) = &self.za else { fail!("signal frame without ZA") };
        if *found != svq {
            fail!("signal frame: SVL {}, not {}", found.vl_bytes(), svq.vl_bytes());
        }
        let mut row = Row::new();
        for (number, found) in rows.chunks_exact(svq.vl_bytes()).take(svq.vl_bytes()).enumerate() {
            expected_za(tag, number, row.in_force(svq));
            if let Err(mismatch) = compare_za(number, row.in_force(svq), found, known) {
                fail!("signal frame: {mismatch}");
            }
        }
        Ok(())
    }

    /// The handler's return is to bring the registers of `tag`.
    pub fn fill(&mut self, tag: Tag) {
        self.status[8..12].copy_from_slice(&fpsr(tag).to_le_bytes());
        self.status[12..16].copy_from_slice(&fpcr(tag).to_le_bytes());
        expected_fpsimd(tag, self.v);
        if let Some((vl, registers)) = &mut self.sve
            && let Some(vq) = Vq::from_vl(u64::from(*vl))
        {
            expected(tag, Layout::new(vq), registers);
        }
        if let Some((svq, rows)) = &mut self.za {
            let bytes = svq.vl_bytes();
            for (number, row) in rows.chunks_exact_mut(bytes).take(bytes).enumerate() {
                expected_za(tag, number, row);
            }
        }
    }
}
