//! Lines on the console.

use core::ffi::CStr;
use core::fmt::{self, Write};
use core::ops::Deref;

use arrayvec::{ArrayString, ArrayVec};

use crate::{fail, sys};

/// A line, or why something is wrong.
pub type Text = ArrayString<400>;

/// Formats; what doesn't fit is cut.
pub fn text(args: fmt::Arguments<'_>) -> Text {
    let mut text = Text::new();
    // An error means that it is full.
    let _ = Cut(&mut text).write_fmt(args);
    text
}

/// Text for Linux: whole, and a zero behind it.
pub struct CText(Text);

impl CText {
    /// Formats.
    ///
    /// # Errors
    ///
    /// It doesn't fit.
    pub fn new(args: fmt::Arguments<'_>) -> Result<Self, Text> {
        let mut text = text(args);
        match text.try_push('\0') {
            Ok(()) => Ok(Self(text)),
            Err(_) => fail!("too long: {text}"),
        }
    }
}

impl Deref for CText {
    type Target = CStr;

    fn deref(&self) -> &CStr {
        // There is a zero, and no other: `text` takes no control characters.
        CStr::from_bytes_with_nul(self.0.as_bytes()).unwrap_or_default()
    }
}

struct Cut<'a>(&'a mut Text);

impl Write for Cut<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            self.0.try_push(if c.is_control() { ' ' } else { c }).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

/// One line in one write, so that no other process's line gets between.
pub fn line(args: fmt::Arguments<'_>) {
    let mut text = text(args);
    if text.is_full() {
        text.pop();
    }
    text.push('\n');
    sys::write(1, text.as_bytes());
}

/// A longer line of somebody else's, with a name before it, in one write, too.
pub fn passed_on(name: &str, text: &[u8]) {
    let mut line = ArrayVec::<u8, { LONGEST + 64 }>::new();
    for part in [name.as_bytes(), b": ", text, b"\n"] {
        // What doesn't fit is cut.
        let some = &part[..part.len().min(line.remaining_capacity())];
        let _ = line.try_extend_from_slice(some);
    }
    sys::write(1, &line);
}

/// Bytes of the longest line that is passed on.
pub const LONGEST: usize = 4096;

/// `Err` with a formatted reason.
#[macro_export]
macro_rules! fail {
    ($($args:tt)*) => { return Err($crate::say::text(format_args!($($args)*))) };
}
