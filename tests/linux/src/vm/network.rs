//! Datagrams between a host and its guest, over a TAP interface: what is sent comes back.

use crate::fail;
use crate::say::Text;
use crate::sys::{self, Ended, Pid, io::Socket};

/// The two ends.
const HOST: [u8; 4] = [192, 168, 77, 1];
const GUEST: [u8; 4] = [192, 168, 77, 2];
const MASK: [u8; 4] = [255, 255, 255, 0];
const PORT: u16 = 7;
/// Datagrams, and bytes of the largest: what a frame takes.
const COUNT: usize = 64;
const LARGEST: usize = 1472;
/// What hasn't come back after so many naps is sent again; after so many times it never will.
const PATIENCE: u32 = 200;
const TIMES: u32 = 30;
const NAP_MICROS: u64 = 5_000;

/// A process that answers, until [`end`].
pub fn begin() -> Result<Pid, Text> {
    match sys::fork() {
        Ok(Some(pid)) => Ok(pid),
        Ok(None) => answer(),
        Err(error) => fail!("fork: {error:?}"),
    }
}

/// Its end, which has to be this one.
pub fn end(echo: Pid) -> Result<(), Text> {
    sys::kill(echo, sys::SIGKILL);
    match sys::wait(echo) {
        Ok(Ended::Signal(sys::SIGKILL)) => Ok(()),
        ended => fail!("who answers datagrams: {ended:?}"),
    }
}

/// Sends back whatever comes, for as long as this process lives. The interface is there when the monitor has made it.
fn answer() -> ! {
    let Ok(socket) = Socket::new() else { sys::exit(1) };
    while socket.set_up(c"tap0", HOST, MASK).is_err() {
        sys::sleep_micros(NAP_MICROS);
    }
    if socket.listen((HOST, PORT)).is_err() {
        sys::exit(2);
    }
    let mut datagram = [0; 2048];
    loop {
        match socket.receive(&mut datagram) {
            // A guest that asks has asked from there. Whoever is not answered asks again.
            Ok(Some((bytes, from))) => drop(socket.send(&datagram[..bytes], (GUEST, from))),
            _ => sys::sleep_micros(NAP_MICROS),
        }
    }
}

/// A guest's part: datagrams of all sizes, each of which has to come back as it was.
pub fn ask() -> Result<(), Text> {
    let Ok(socket) = Socket::new() else { fail!("no socket") };
    if let Err(error) = socket.set_up(c"eth0", GUEST, MASK) {
        fail!("eth0: {error:?}");
    }
    let (mut sent, mut back) = ([0u8; LARGEST], [0u8; 2048]);
    for number in 0..COUNT {
        let bytes = 1 + number * (LARGEST - 1) / (COUNT - 1);
        for (n, byte) in sent[..bytes].iter_mut().enumerate() {
            *byte = (n * 7 + number * 13) as u8;
        }
        let came = (0..TIMES).any(|_| {
            // It may not have gone: then it does the next time.
            let _ = socket.send(&sent[..bytes], (HOST, PORT));
            (0..PATIENCE).any(|_| match socket.receive(&mut back) {
                Ok(Some((found, PORT))) => back[..found] == sent[..bytes],
                _ => {
                    sys::sleep_micros(NAP_MICROS);
                    false
                }
            })
        });
        if !came {
            fail!("datagram {number} of {bytes} bytes does not come back");
        }
    }
    Ok(())
}
