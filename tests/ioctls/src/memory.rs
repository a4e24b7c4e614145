//! A guest's memory, from [`MEMORY`] on, as this process has it mapped; and what the kernel does there for it.

use crate::code::Code;
use crate::kvm::*;

/// It is unmapped with this.
pub struct Memory {
    start: *mut u8,
    bytes: usize,
}

impl Memory {
    /// A mapping, of a file or of nothing.
    pub fn new(bytes: usize, flags: i32, file: i32) -> Self {
        Self { start: map(bytes, flags, file), bytes }
    }

    /// Where it is in this process.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Instructions at its beginning, and the VM's vCPU 0, which begins there.
    pub fn begin(&self, vm: i32, code: &Code) -> Vcpu {
        for (n, &word) in code.words().iter().enumerate() {
            // SAFETY: inside the memory.
            unsafe { self.start.cast::<u32>().add(n).write_volatile(word) };
        }
        let vcpu = Vcpu::new(vm, 0);
        vcpu.init(false);
        vcpu.set(PC, MEMORY);
        vcpu
    }

    pub fn at(&self, address: u64) -> *mut u64 {
        // SAFETY: inside the memory.
        unsafe { self.start.add((address - MEMORY) as usize).cast() }
    }

    pub fn read(&self, address: u64) -> u64 {
        // SAFETY: inside the memory, which is there.
        unsafe { self.at(address).read_volatile() }
    }

    pub fn write(&self, address: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.at(address).write_volatile(value) };
    }

    /// How a process that has the same memory and reads there ends: a signal, if any. It may not read `secret`.
    #[track_caller]
    pub fn touch(&self, address: u64, secret: Option<u64>) -> i32 {
        // SAFETY: a child that reads one word, and ends.
        unsafe {
            match libc::fork() {
                0 => {
                    let found = self.at(address).read_volatile();
                    libc::_exit(i32::from(secret == Some(found)))
                }
                child => {
                    let mut status = 0;
                    assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
                    assert_ne!(status, 1 << 8, "{address:#x}: it has read the secret");
                    if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 }
                }
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        unmap(self.start, self.bytes);
    }
}

/// A pipe, closed with this.
struct Pipe([i32; 2]);

impl Pipe {
    fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: it makes two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        Self(ends)
    }

    /// write(2) of eight bytes from there, which may not be there.
    fn write(&self, place: *const u64) -> Answer {
        // SAFETY: whether something is there is the kernel's to find out.
        answer(unsafe { libc::write(self.0[1], place.cast(), 8) })
    }

    /// read(2) to there.
    fn read(&self, place: *mut u64) -> Answer {
        // SAFETY: a variable's, or memory that no Rust code refers to.
        answer(unsafe { libc::read(self.0[0], place.cast(), 8) })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.0.into_iter().for_each(close);
    }
}

fn answer(result: isize) -> Answer {
    // SAFETY: this thread's own.
    if result < 0 { Err(unsafe { *libc::__errno_location() }) } else { Ok(result as i32) }
}

/// The kernel reads there for this process.
pub fn copy_from(place: *const u64) -> Answer {
    Pipe::new().write(place)
}

/// What it reads there, where something is.
#[track_caller]
pub fn copied(place: *const u64) -> u64 {
    let (pipe, mut word) = (Pipe::new(), 0);
    assert_eq!((pipe.write(place), pipe.read(&raw mut word)), (Ok(8), Ok(8)));
    word
}

/// It writes there.
#[track_caller]
pub fn copy_to(place: *mut u64, word: u64) {
    let pipe = Pipe::new();
    assert_eq!((pipe.write(&raw const word), pipe.read(place)), (Ok(8), Ok(8)));
}
