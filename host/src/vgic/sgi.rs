//! SGIs, as a guest sends them by its system registers (IHI 0069, 12.2).

use super::{Events, Refused, Vgic, word::Word};

/// Which register was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiRegister {
    /// ICC_SGI0R_EL1.
    Sgi0,
    /// ICC_SGI1R_EL1.
    Sgi1,
    /// ICC_ASGI1R_EL1: there is no other security state, and it does what ICC_SGI0R_EL1 does.
    Asgi1,
}

impl SgiRegister {
    /// As an exit names it ([`umbra_shared::exit`]).
    pub const fn from_exit(x3: u64) -> Option<Self> {
        match x3 {
            0 => Some(Self::Sgi1),
            1 => Some(Self::Asgi1),
            2 => Some(Self::Sgi0),
            _ => None,
        }
    }

    /// Whether it makes an SGI pending that its receiver has in this group. With one security state ICC_SGI1R_EL1 reaches
    /// both, and the others group 0.
    const fn reaches(self, group1: bool) -> bool {
        matches!(self, Self::Sgi1) || !group1
    }
}

/// A value of these registers: all three have the same fields.
#[derive(Clone, Copy, Debug)]
struct Sgi(u64);

impl Sgi {
    const fn field(self, shift: u32, mask: u64) -> u64 {
        self.0 >> shift & mask
    }

    const fn intid(self) -> u16 {
        self.field(24, 0xf) as u16
    }

    /// Everybody but the sender.
    const fn is_broadcast(self) -> bool {
        self.field(40, 1) != 0
    }

    /// Whether TargetList and the affinities name this vCPU. None has an Aff3.
    fn names(self, affinity: u32) -> bool {
        let affinity = u64::from(affinity);
        let cluster =
            self.field(48, 0xff) << 24 | self.field(32, 0xff) << 16 | self.field(16, 0xff) << 8;
        // RS is which 16 of Aff0 the list is of.
        let listed = self.field(0, 0xffff) >> (affinity & 0xf) & 1 != 0;
        affinity & !0xff == cluster && affinity >> 4 & 0xf == self.field(44, 0xf) && listed
    }
}

impl Vgic<'_> {
    /// `vcpu` has written `value` to that register. Those of a sender that there is not go nowhere.
    pub fn send_sgi(
        &self,
        vcpu: usize,
        register: SgiRegister,
        value: u64,
        events: &mut impl Events,
    ) -> Result<(), Refused> {
        if vcpu >= self.vcpus.len() {
            return Err(Refused::NoVcpu);
        }
        let sgi = Sgi(value);
        for (n, cell) in self.vcpus.iter().enumerate() {
            let named = if sgi.is_broadcast() { n != vcpu } else { sgi.names(cell.affinity()) };
            if named {
                self.change(n, sgi.intid(), events, |word| {
                    match register.reaches(word.contains(Word::GROUP1)) {
                        true => word.latched(),
                        false => word,
                    }
                })?;
            }
        }
        Ok(())
    }
}
