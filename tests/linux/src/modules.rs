//! Drivers beside `init`, in the order in which they are listed in `/modules`.

use core::ffi::CStr;

use crate::fail;
use crate::say::{self, Text};
use crate::sys::{self, File};

/// Loads them.
pub fn load() -> Result<(), Text> {
    let mut buffer = [0; 1024];
    let list = match File::read_only(c"/modules") {
        Ok(file) => file.read(&mut buffer),
        Err(error) => fail!("no list of modules: {error:?}"),
    };
    for name in core::str::from_utf8(list).unwrap_or("").lines() {
        let mut path = say::text(format_args!("/{name}.ko"));
        path.push('\0');
        let loaded = CStr::from_bytes_until_nul(path.as_bytes())
            .ok()
            .ok_or(sys::Errno(0))
            .and_then(File::read_only)
            .and_then(|file| file.load_module());
        if let Err(error) = loaded {
            fail!("module {name}: {error:?}");
        }
    }
    Ok(())
}
