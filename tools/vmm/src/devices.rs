//! The virtio devices of a machine, as the command line asks for them, in this order: disks, network cards, the
//! console, random numbers.
#![forbid(unsafe_code)]

use crate::arguments::{Console, Run};
use crate::layout;
use crate::report::DeviceCounters;
use crate::tap;
use crate::terminal::Output;
use crate::virtio::Device;
use crate::virtio::block::Block;
use crate::virtio::console::Console as VirtioConsole;
use crate::virtio::net::{self, Net};
use crate::virtio::rng::Rng;
use anyhow::{Context, Result, ensure};
use rustix::rand::{GetRandomFlags, getrandom};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A device, and its counters.
pub type Counted = (Box<dyn Device>, Arc<DeviceCounters>);

/// How many there are.
pub fn count(arguments: &Run) -> usize {
    let console = usize::from(arguments.console == Some(Console::Virtio));
    arguments.disk.len() + arguments.net.len() + console + 1
}

/// Makes them. `output` is for the console, and so is the end of a pair of sockets that input comes through.
///
/// # Errors
///
/// A file or an interface can't be had, or there are too many devices.
pub fn make(arguments: &Run, input: Option<UnixStream>, output: Output) -> Result<Vec<Counted>> {
    let mut all: Vec<Counted> = Vec::new();
    let counters = |kind: &str, n: usize| Arc::new(DeviceCounters::new(format!("{kind}{n}")));
    for (n, disk) in arguments.disk.iter().enumerate() {
        let counters = counters("block", n);
        let device = Block::open(&disk.path, disk.read_only, counters.clone())?;
        all.push((Box::new(device), counters));
    }
    for (n, card) in arguments.net.iter().enumerate() {
        let counters = counters("net", n);
        let wire = tap::open(&card.tap, net::HEADER)?;
        let mac = card.mac.map_or_else(made_up, Ok)?;
        all.push((Box::new(Net::new(wire, mac, counters.clone())), counters));
    }
    if let (Some(Console::Virtio), Some(input)) = (arguments.console, input) {
        let counters = counters("console", 0);
        let device = VirtioConsole::new(input, output, counters.clone()).context("the console")?;
        all.push((Box::new(device), counters));
    }
    if arguments.unaware {
        // What reads and writes its memory would find nothing there.
        ensure!(all.is_empty(), "a guest that shares no memory can have no virtio devices");
        return Ok(all);
    }
    let rng = counters("rng", 0);
    all.push((Box::new(Rng::new(rng.clone())), rng));
    ensure!(all.len() <= layout::VIRTIO_DEVICES, "{} devices are too many", all.len());
    // The guest is told of so many.
    ensure!(all.len() == count(arguments), "not all devices could be made");
    Ok(all)
}

/// An address for a card, locally administered.
fn made_up() -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    let got = getrandom(&mut mac, GetRandomFlags::empty()).context("random numbers")?;
    ensure!(got == mac.len(), "no random numbers");
    mac[0] = mac[0] & !1 | 2;
    Ok(mac)
}
