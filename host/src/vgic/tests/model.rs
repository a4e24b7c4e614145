//! What a GICv3 does, from IHI 0069: no list registers, no words, nothing that is atomic.
//!
//! One security state (GICD_CTLR.DS), affinity routing, 32 SPIs, and what a register is after reset is as KVM has it.

use crate::vgic::{Frame, SgiRegister, registers::Width};

#[derive(Clone, Copy, Debug, Default)]
pub struct Interrupt {
    pub enabled: bool,
    pub group1: bool,
    pub edge: bool,
    pub latch: bool,
    pub line: bool,
    pub active: bool,
    pub resample: bool,
    pub priority: u8,
    pub irouter: u32,
}

impl Interrupt {
    pub fn pending(&self) -> bool {
        self.latch || !self.edge && self.line
    }

    pub fn one_of_n(&self) -> bool {
        self.irouter >> 31 != 0
    }

    pub fn set_line(&mut self, up: bool) {
        self.latch |= self.edge && up && !self.line;
        self.line = up;
    }
}

#[derive(Clone, Debug)]
pub struct Model {
    pub affinities: Vec<u32>,
    pub private: Vec<[Interrupt; 32]>,
    pub spis: Vec<Interrupt>,
    pub gicd_ctlr: u32,
    pub gicr_ctlr: Vec<u32>,
    pub asleep: Vec<bool>,
    pub off: Vec<bool>,
}

impl Model {
    pub fn new(affinities: &[u32]) -> Self {
        let reset = Interrupt { group1: true, ..Interrupt::default() };
        let private = std::array::from_fn(|n| Interrupt { enabled: n < 16, edge: n < 16, ..reset });
        let count = affinities.len();
        Self {
            affinities: affinities.to_vec(),
            private: vec![private; count],
            spis: vec![Interrupt { irouter: affinities[0], ..reset }; 32],
            gicd_ctlr: 0,
            gicr_ctlr: vec![0; count],
            asleep: vec![false; count],
            off: vec![false; count],
        }
    }

    pub fn get(&self, v: usize, intid: u16) -> &Interrupt {
        let n = usize::from(intid);
        if n < 32 { &self.private[v][n] } else { &self.spis[n - 32] }
    }

    pub fn get_mut(&mut self, v: usize, intid: u16) -> &mut Interrupt {
        let n = usize::from(intid);
        if n < 32 { &mut self.private[v][n] } else { &mut self.spis[n - 32] }
    }

    /// Whether it would be forwarded to this CPU interface, were the redistributor awake.
    pub fn forwarded(&self, v: usize, intid: u16) -> bool {
        let i = self.get(v, intid);
        let group = if i.group1 { 1 } else { 0 };
        let dpg = if i.group1 { 25 } else { 24 };
        let takes = !self.off[v] && !self.asleep[v] && self.gicr_ctlr[v] >> dpg & 1 == 0;
        let here = intid < 32
            || if i.one_of_n() { takes } else { i.irouter & 0xff_ffff == self.affinities[v] };
        i.pending() && !i.active && i.enabled && self.gicd_ctlr >> group & 1 != 0 && here
    }

    pub fn all_forwarded(&self, v: usize) -> Vec<u16> {
        (0..64).filter(|&intid| self.forwarded(v, intid)).collect()
    }

    pub fn acknowledge(&mut self, v: usize, intid: u16) {
        let i = self.get_mut(v, intid);
        (i.active, i.latch) = (true, false);
    }

    /// Ended; whether a device is told.
    pub fn end(&mut self, v: usize, intid: u16) -> bool {
        let i = self.get_mut(v, intid);
        let told = i.active && !i.edge && i.resample;
        i.active = false;
        i.line &= !told;
        told
    }

    pub fn sgi(&mut self, from: usize, register: SgiRegister, value: u64) {
        for v in 0..self.affinities.len() {
            let [aff0, aff1, aff2, _] = self.affinities[v].to_le_bytes().map(u64::from);
            let listed = value >> 16 & 0xff == aff1
                && value >> 32 & 0xff == aff2
                && value >> 48 & 0xff == 0
                && value >> 44 & 0xf == aff0 / 16
                && value >> (aff0 % 16) & 1 != 0;
            let i = &mut self.private[v][(value >> 24 & 0xf) as usize];
            let named = if value >> 40 & 1 != 0 { v != from } else { listed };
            i.latch |= named && (register == SgiRegister::Sgi1 || !i.group1);
        }
    }

    /// The interrupts of a 32-bit register, with the place of their fields, and the bank's offset.
    fn fields(&self, frame: Frame, at: u32) -> (usize, u32, Vec<(u16, u32)>) {
        let (v, at, ids) = match frame {
            Frame::Distributor => (0, at, 32..64),
            Frame::Redistributor(v) => (v, at.wrapping_sub(0x1_0000), 0..32),
        };
        let (base, width) = match at {
            0x080..0x400 => (at & !0x7f, 1),
            0x400..0x800 => (0x400, 8),
            0xc00..0xd00 => (0xc00, 2),
            0x6000..0x8000 => (0x6000, 64),
            _ => return (v, u32::MAX, Vec::new()),
        };
        let first = (at - base) * 8 / width;
        let here = (0..32 / width.min(32)).map(|n| ((first + n) as u16, n * width));
        let whole = width != 64 || at % 8 == 0 && frame == Frame::Distributor;
        (v, base, here.filter(|(id, _)| whole && ids.contains(id)).collect())
    }

    /// A 32-bit register.
    fn register(&self, frame: Frame, at: u32) -> u32 {
        match (frame, at) {
            (Frame::Distributor, 0) => return self.gicd_ctlr | 1 << 4 | 1 << 6,
            // One more 32 INTIDs, ten bits of INTID, SGIs to an Aff0 above 15.
            (Frame::Distributor, 4) => return 1 | 9 << 19 | 1 << 26,
            (Frame::Distributor, 8) | (Frame::Redistributor(_), 4) => return 0x5500_043b,
            (_, 0xffe8) | (Frame::Redistributor(_), 0x1_ffe8) => return 0x3b,
            (Frame::Redistributor(v), 0) => return self.gicr_ctlr[v],
            (Frame::Redistributor(v), 8) => {
                let last = v + 1 == self.affinities.len();
                return u32::from(last) << 4 | 1 << 5 | (v as u32) << 8;
            }
            (Frame::Redistributor(v), 0xc) => return self.affinities[v],
            (Frame::Redistributor(v), 0x14) => return if self.asleep[v] { 6 } else { 0 },
            _ => {}
        }
        let (v, base, fields) = self.fields(frame, at);
        let field = |id| {
            let i = self.get(v, id);
            match base {
                0x080 => i.group1.into(),
                0x100 | 0x180 => i.enabled.into(),
                0x200 | 0x280 => i.pending().into(),
                0x300 | 0x380 => i.active.into(),
                0x400 => i.priority.into(),
                0xc00 => u32::from(i.edge) << 1,
                _ => i.irouter,
            }
        };
        fields.into_iter().fold(0, |all, (id, place)| all | field(id) << place)
    }

    /// Whether there is an access of this kind.
    fn allowed(frame: Frame, at: u32, width: Width) -> bool {
        let sgi_base = 0x1_0000;
        let (priority, wide) = match frame {
            Frame::Distributor => (0x400..0x800, (0x6000..0x8000).contains(&at)),
            Frame::Redistributor(_) => (sgi_base + 0x400..sgi_base + 0x800, at == 8),
        };
        match width {
            Width::Byte => priority.contains(&at),
            Width::Halfword => false,
            Width::Word => at.is_multiple_of(4),
            Width::Doubleword => at.is_multiple_of(8) && wide,
        }
    }

    pub fn read(&self, frame: Frame, at: u32, width: Width) -> u64 {
        let word = |at| u64::from(self.register(frame, at));
        match width {
            _ if !Self::allowed(frame, at, width) => 0,
            Width::Byte => word(at & !3) >> (8 * (at & 3)) & 0xff,
            Width::Doubleword => word(at) | word(at + 4) << 32,
            _ => word(at),
        }
    }

    pub fn write(&mut self, frame: Frame, at: u32, width: Width, value: u64) {
        if !Self::allowed(frame, at, width) {
            return;
        }
        let value = value as u32;
        match (frame, at) {
            (Frame::Distributor, 0) => self.gicd_ctlr = value & 3,
            (Frame::Redistributor(v), 0) => self.gicr_ctlr[v] = value & 3 << 24,
            (Frame::Redistributor(v), 0x14) => self.asleep[v] = value & 2 != 0,
            _ => {}
        }
        let byte = (width == Width::Byte).then_some(8 * (at & 3));
        let (v, base, fields) = self.fields(frame, at & !3);
        for (id, place) in fields.into_iter().filter(|f| byte.is_none_or(|byte| f.1 == byte)) {
            let i = self.get_mut(v, id);
            let field = if byte.is_some() { value } else { value >> place };
            let bit = field & 1 != 0;
            match base {
                0x080 => i.group1 = bit,
                0x100 => i.enabled |= bit,
                0x180 => i.enabled &= !bit,
                0x200 => i.latch |= bit,
                0x280 => i.latch &= !bit,
                0x300 => i.active |= bit,
                0x380 => i.active &= !bit,
                // Five bits of priority.
                0x400 => i.priority = field as u8 & 0xf8,
                0xc00 if id >= 32 => i.edge = field & 2 != 0,
                0x6000 => i.irouter = value & 0x80ff_ffff,
                _ => {}
            }
        }
    }
}
