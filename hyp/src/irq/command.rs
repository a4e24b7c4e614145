//! Commands for an ITS: as the host has written them, and as hyp writes them for the hardware.
//!
//! No word of the host's is ever passed on. What it has written is decoded; what a command names is looked up by
//! the one who carries it out ([`super::its`]); what comes of that is encoded from nothing (IHI 0069, 5.3).

#![forbid(unsafe_code)]

/// The four doublewords of a command.
pub type Raw = [u64; 4];

/// Bytes of a command.
pub const COMMAND: u64 = 32;

/// A device's number on the bus, from the host: not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId(pub u32);

/// Number of an event of a device's, from the host: not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId(pub u32);

/// A collection, from the host: not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icid(pub u16);

/// An interrupt, from the host: not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntId(pub u32);

/// RDbase as the host has written it, bits 51:16: an address or a processor's number, as GITS_TYPER.PTA says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdBase(pub u64);

/// RDbase in its doubleword.
const RD_BASE: u64 = 0xf_ffff_ffff_0000;

/// What the host asks for. What concerns virtual interrupts, and what nobody knows, is none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// MOVI: an event's interrupt goes to another collection.
    Movi(DeviceId, EventId, Icid),
    /// INT: as if the device had sent the event.
    Int(DeviceId, EventId),
    /// CLEAR: it is pending no more.
    Clear(DeviceId, EventId),
    /// SYNC: what was done for a redistributor has been done.
    Sync(RdBase),
    /// MAPD: a device has an ITT for as many events as take `bits` bits. Where the host would have it is no part of
    /// this: it is in hyp's memory.
    MapDevice(DeviceId, u32),
    /// MAPD without Valid.
    UnmapDevice(DeviceId),
    /// MAPC: a collection is at a redistributor.
    MapCollection(Icid, RdBase),
    /// MAPC without Valid.
    UnmapCollection(Icid),
    /// MAPTI, and MAPI, whose interrupt has the event's number.
    MapEvent(DeviceId, EventId, IntId, Icid),
    /// INV: an event's configuration is read again.
    Inv(DeviceId, EventId),
    /// INVALL: a collection's is.
    InvAll(Icid),
    /// MOVALL: all that is pending goes from one redistributor to another.
    MovAll(RdBase, RdBase),
    /// DISCARD: an event is mapped no more.
    Discard(DeviceId, EventId),
}

const MOVI: u64 = 0x01;
const INT: u64 = 0x03;
const CLEAR: u64 = 0x04;
const SYNC: u64 = 0x05;
const MAPD: u64 = 0x08;
const MAPC: u64 = 0x09;
const MAPTI: u64 = 0x0a;
const MAPI: u64 = 0x0b;
const INV: u64 = 0x0c;
const INVALL: u64 = 0x0d;
const MOVALL: u64 = 0x0e;
const DISCARD: u64 = 0x0f;

const VALID: u64 = 1 << 63;

impl Command {
    /// What four doublewords ask for. `None`: nothing that hyp does for the host.
    pub const fn decode(raw: &Raw) -> Option<Self> {
        let device = DeviceId((raw[0] >> 32) as u32);
        let event = EventId(raw[1] as u32);
        let icid = Icid(raw[2] as u16);
        let target = RdBase(raw[2] & RD_BASE);
        let valid = raw[2] & VALID != 0;
        Some(match raw[0] & 0xff {
            MOVI => Self::Movi(device, event, icid),
            INT => Self::Int(device, event),
            CLEAR => Self::Clear(device, event),
            SYNC => Self::Sync(target),
            MAPD if valid => Self::MapDevice(device, (raw[1] & 0x1f) as u32 + 1),
            MAPD => Self::UnmapDevice(device),
            MAPC if valid => Self::MapCollection(icid, target),
            MAPC => Self::UnmapCollection(icid),
            MAPTI => Self::MapEvent(device, event, IntId((raw[1] >> 32) as u32), icid),
            MAPI => Self::MapEvent(device, event, IntId(event.0), icid),
            INV => Self::Inv(device, event),
            INVALL => Self::InvAll(icid),
            MOVALL => Self::MovAll(target, RdBase(raw[3] & RD_BASE)),
            DISCARD => Self::Discard(device, event),
            _ => return None,
        })
    }
}

/// A redistributor that there is, as RDbase names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(u64);

impl Target {
    /// By the address of its RD_base frame, 64 KiB aligned (GITS_TYPER.PTA is 1).
    pub const fn by_address(pa: u64) -> Self {
        Self(pa & RD_BASE)
    }

    /// By GICR_TYPER.Processor_Number (PTA is 0).
    pub const fn by_number(number: u16) -> Self {
        Self((number as u64) << 16)
    }

    /// Whether this is the one that the host has named.
    pub const fn is(self, named: RdBase) -> bool {
        self.0 == named.0
    }
}

/// An event that has been checked: its device has an ITT with an entry for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub(super) device: u32,
    pub(super) event: u32,
}

impl Event {
    const fn words(self, command: u64) -> Raw {
        [(self.device as u64) << 32 | command, self.event as u64, 0, 0]
    }

    /// MOVI.
    pub const fn moved(self, icid: u16) -> Raw {
        let [first, second, ..] = self.words(MOVI);
        [first, second, icid as u64, 0]
    }

    /// INT.
    pub const fn int(self) -> Raw {
        self.words(INT)
    }

    /// CLEAR.
    pub const fn clear(self) -> Raw {
        self.words(CLEAR)
    }

    /// INV.
    pub const fn inv(self) -> Raw {
        self.words(INV)
    }

    /// DISCARD.
    pub const fn discard(self) -> Raw {
        self.words(DISCARD)
    }

    /// MAPTI.
    pub const fn map(self, intid: u32, icid: u16) -> Raw {
        let [first, second, ..] = self.words(MAPTI);
        [first, second | (intid as u64) << 32, icid as u64, 0]
    }
}

/// SYNC.
pub const fn sync(target: Target) -> Raw {
    [SYNC, 0, target.0, 0]
}

/// MAPD: `itt`, 256-byte aligned, for as many events as take `bits` bits.
pub const fn map_device(device: u32, itt: u64, bits: u32) -> Raw {
    [(device as u64) << 32 | MAPD, bits as u64 - 1, VALID | itt, 0]
}

/// MAPD without Valid.
pub const fn unmap_device(device: u32) -> Raw {
    [(device as u64) << 32 | MAPD, 0, 0, 0]
}

/// It is a MAPD, of hyp's.
pub const fn is_about_device(words: &Raw) -> bool {
    words[0] & 0xff == MAPD
}

/// MAPC.
pub const fn map_collection(icid: u16, target: Target) -> Raw {
    [MAPC, 0, VALID | target.0 | icid as u64, 0]
}

/// MAPC without Valid.
pub const fn unmap_collection(icid: u16) -> Raw {
    [MAPC, 0, icid as u64, 0]
}

/// INVALL.
pub const fn inv_all(icid: u16) -> Raw {
    [INVALL, 0, icid as u64, 0]
}

/// MOVALL.
pub const fn mov_all(from: Target, to: Target) -> Raw {
    [MOVALL, 0, from.0, to.0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let event = Event { device: 0x1234_5678, event: 77 };
        let (device, number) = (DeviceId(0x1234_5678), EventId(77));
        let (one, two) = (Target::by_address(0x80a_0000), Target::by_number(3));
        let (first, second) = (RdBase(0x80a_0000), RdBase(0x3_0000));
        assert!(one.is(first) && two.is(second) && !one.is(second));
        let expected = [
            (event.moved(9), Command::Movi(device, number, Icid(9))),
            (event.int(), Command::Int(device, number)),
            (event.clear(), Command::Clear(device, number)),
            (event.inv(), Command::Inv(device, number)),
            (event.discard(), Command::Discard(device, number)),
            (event.map(8200, 3), Command::MapEvent(device, number, IntId(8200), Icid(3))),
            (sync(one), Command::Sync(first)),
            (map_device(0x1234_5678, 0x4000_0100, 5), Command::MapDevice(device, 5)),
            (unmap_device(0x1234_5678), Command::UnmapDevice(device)),
            (map_collection(5, two), Command::MapCollection(Icid(5), second)),
            (unmap_collection(5), Command::UnmapCollection(Icid(5))),
            (inv_all(6), Command::InvAll(Icid(6))),
            (mov_all(one, two), Command::MovAll(first, second)),
        ];
        for (raw, command) in expected {
            assert_eq!(Command::decode(&raw), Some(command), "{raw:x?}");
        }
        let mapi = [7 << 32 | MAPI, 8192, 1, 0];
        let command = Command::MapEvent(DeviceId(7), EventId(8192), IntId(8192), Icid(1));
        assert_eq!(Command::decode(&mapi), Some(command));
    }

    #[test]
    fn nothing_virtual_and_nothing_unknown_is_a_command() {
        let known = [1, 3, 4, 5, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf];
        for command in 0..=0xff {
            let found = Command::decode(&[command, 0, 0, 0]);
            assert_eq!(found.is_some(), known.contains(&command), "{command:#x}");
        }
    }

    proptest! {
        /// An address for an ITT is nowhere in what is decoded.
        #[test]
        fn no_address_of_the_hosts_gets_through(device: u32, bits in 0u64..32, a in 0u64..1 << 52, b in 0u64..1 << 52) {
            let mapd = |itt| [u64::from(device) << 32 | MAPD, bits, VALID | itt & !0xff, 0];
            prop_assert_eq!(Command::decode(&mapd(a)), Command::decode(&mapd(b)));
        }
    }
}
