//! A file from QEMU's user network, by TFTP (RFC 1350): no other network is asked.

use umbra_patterns::digest::{self, PIECE_BYTES};

use super::disk::{Buffer, Content};
use super::{LOOKS, NAP_MICROS, wait_for};
use crate::fail;
use crate::say::Text;
use crate::sys;
use crate::sys::io::Socket;

/// This machine and the other one, as QEMU has them if nobody says otherwise.
const OURS: [u8; 4] = [10, 0, 2, 15];
const MASK: [u8; 4] = [255, 255, 255, 0];
const SERVER: [u8; 4] = [10, 0, 2, 2];
const PORT: u16 = 69;

const DATA: u16 = 3;
const ACK: u16 = 4;
/// Bytes of a block; a shorter one is the last.
const BLOCK_BYTES: usize = 512;
/// What was not answered after so many naps is sent again.
const PATIENCE: u32 = 200;

/// The interface has an address from now on.
pub fn set_up() -> Result<(), Text> {
    wait_for("a network", || {
        let socket = Socket::new().ok()?;
        socket.set_up(c"eth0", OURS, MASK).ok()
    })
}

/// Fetches the file, and looks at what it holds.
pub fn fetch(expected: &Content) -> Result<(), Text> {
    let Ok(socket) = Socket::new() else { fail!("no socket") };
    let mut piece = Buffer::new()?;
    let (mut packet, mut answer) = ([0u8; BLOCK_BYTES + 4], [0, ACK as u8, 0, 0]);
    let (mut digest, mut number, mut filled, mut total) = (0u64, 0, 0, 0u64);
    let mut port = PORT;
    for block in 1u16.. {
        let request: &[u8] = if block == 1 { b"\0\x01file\0octet\0" } else { &answer };
        let (length, from) = ask(&socket, request, port, block, &mut packet)?;
        let data = &packet[4..length];
        port = from;
        total += data.len() as u64;
        // Pieces are whole blocks.
        piece.bytes()[filled..filled + data.len()].copy_from_slice(data);
        filled += data.len();
        let last = data.len() < BLOCK_BYTES;
        if filled == PIECE_BYTES || last && filled != 0 {
            digest = digest.wrapping_add(digest::piece(number, &piece.bytes()[..filled]));
            (number, filled) = (number + 1, 0);
        }
        answer[2..].copy_from_slice(&block.to_be_bytes());
        if last {
            break;
        }
    }
    // Nothing comes of the last acknowledgement.
    let _ = socket.send(&answer, (SERVER, port));
    if total != expected.bytes {
        fail!("{total} bytes of {} came over the network", expected.bytes);
    }
    expected.check("network", digest)
}

/// Sends a request until the block comes that it is for: bytes of the packet, and its port.
fn ask(
    socket: &Socket,
    request: &[u8],
    port: u16,
    block: u16,
    packet: &mut [u8],
) -> Result<(usize, u16), Text> {
    for look in 0..LOOKS {
        if look % PATIENCE == 0
            && let Err(error) = socket.send(request, (SERVER, port))
        {
            fail!("block {block}: {error:?}");
        }
        match socket.receive(packet) {
            Ok(Some((length, from))) => {
                let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
                if length < 4 || word(0) != DATA {
                    fail!("block {block}: the server says {:?}", &packet[..length]);
                }
                // Another one is what was sent twice.
                if word(2) == block {
                    return Ok((length, from));
                }
            }
            Ok(None) if look < 20 => sys::yield_now(),
            Ok(None) => sys::sleep_micros(NAP_MICROS),
            Err(error) => fail!("block {block}: {error:?}"),
        }
    }
    fail!("block {block} does not come")
}
