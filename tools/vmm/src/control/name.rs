//! The socket's name in the file system.

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{bind, listen, socket_with};
use std::fs::{self, File, Metadata, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// How often, and how far apart, a folder's lock is tried. Monitors have it for a moment.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);
/// Clients that may wait for a place.
const BACKLOG: i32 = 16;

/// A socket's file, which goes with it.
#[derive(Debug)]
pub struct Name {
    path: PathBuf,
    /// Of no other file as long as the socket is there.
    inode: (u64, u64),
}

impl Name {
    /// Listens there. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// Somebody does, or it is something else.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener)> {
        let complain = || path.display().to_string();
        let _lock = lock(path)?;
        if let Ok(there) = fs::symlink_metadata(path) {
            ensure!(there.file_type().is_socket(), "{} is there and is no socket", complain());
            match UnixStream::connect(path).map_err(|error| error.kind()) {
                Err(ErrorKind::ConnectionRefused) => {
                    fs::remove_file(path).with_context(complain)?
                }
                Err(ErrorKind::NotFound) => {}
                _ => bail!("{} is another machine's", complain()),
            }
        }
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .context("a socket")?;
        // The file has the socket's mode from the beginning, less what the process masks.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).with_context(complain)?;
        bind(&socket, &SocketAddrUnix::new(path)?).with_context(complain)?;
        let there = fs::symlink_metadata(path).with_context(complain)?;
        let name = Self { path: path.to_owned(), inode: inode(&there) };
        ensure!(there.mode() & 0o077 == 0, "{} would be others' as well", complain());
        listen(&socket, BACKLOG).with_context(complain)?;
        Ok((name, UnixListener::from(socket)))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _lock = lock(&self.path);
        // Somebody may have moved it away, and another be there.
        if fs::symlink_metadata(&self.path).is_ok_and(|there| inode(&there) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Keeps other monitors from names in the same folder: between looking at a name and taking it, and between making a
/// socket and listening. None if it can't be locked here.
fn lock(path: &Path) -> Result<Option<File>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // What is wrong with it is said by who makes the socket.
    let Ok(file) = File::open(folder) else { return Ok(None) };
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
    bail!("{} is locked by somebody", folder.display())
}
