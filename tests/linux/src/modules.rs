//! Drivers beside `init`, in the order in which they are listed in `/modules`.

use crate::fail;
use crate::say::{CText, Text};
use crate::sys::File;

/// Loads them.
pub fn load() -> Result<(), Text> {
    let mut buffer = [0; 1024];
    let list = match File::read_only(c"/modules") {
        Ok(file) => file.read(&mut buffer),
        Err(error) => fail!("no list of modules: {error:?}"),
    };
    for name in core::str::from_utf8(list).unwrap_or("").lines() {
        let path = CText::new(format_args!("/{name}.ko"))?;
        let loaded = File::read_only(&path).and_then(|file| file.load_module());
        if let Err(error) = loaded {
            fail!("module {name}: {error:?}");
        }
    }
    Ok(())
}
