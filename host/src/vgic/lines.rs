//! Lines: what devices do.

use super::{Events, PRIVATE, Refused, Vgic, word::Word};

/// An interrupt's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A vCPU's own, 16 to 31.
    Ppi {
        /// Whose.
        vcpu: usize,
        /// Its INTID.
        intid: u16,
    },
    /// Anybody's: its INTID, from 32 on.
    Spi(u16),
}

impl Line {
    /// Whose it is, if it is private, and its INTID: if there can be such a line.
    fn checked(self) -> Result<(usize, u16), Refused> {
        match self {
            Self::Ppi { vcpu, intid } if (16..PRIVATE).contains(&intid) => Ok((vcpu, intid)),
            Self::Spi(intid) if intid >= PRIVATE => Ok((0, intid)),
            _ => Err(Refused::NoInterrupt),
        }
    }
}

impl Vgic<'_> {
    /// The line goes up or down. A level-sensitive interrupt is pending while it is up, an edge-triggered one from the
    /// rise on.
    pub fn set_line(&self, line: Line, up: bool, events: &mut impl Events) -> Result<(), Refused> {
        let (vcpu, intid) = line.checked()?;
        self.change(vcpu, intid, events, |word| word.line(up))
    }

    /// The line, which is down, goes up and down again: an edge-triggered interrupt is pending from now on, and of a
    /// level-sensitive one nothing is seen.
    pub fn pulse(&self, line: Line, events: &mut impl Events) -> Result<(), Refused> {
        let (vcpu, intid) = line.checked()?;
        self.change(vcpu, intid, events, |word| word.line(true).line(false))
    }

    /// Whether [`Events::resample`] says when the guest has ended this one.
    pub fn set_resample(&self, line: Line, wanted: bool) -> Result<(), Refused> {
        let (vcpu, intid) = line.checked()?;
        let cell = self.cell(vcpu, intid).ok_or(Refused::NoInterrupt)?;
        cell.update(|word| Some(word.with(Word::RESAMPLE, wanted)));
        Ok(())
    }
}
