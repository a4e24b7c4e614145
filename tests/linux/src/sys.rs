//! System calls (Linux, generic 64-bit numbers).

use core::arch::asm;
use core::ffi::{CStr, c_char};
use core::ptr;

/// What a system call says if it fails: Linux's errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// A signal's number.
pub type Signal = i32;

/// SIGABRT
pub const SIGABRT: Signal = 6;
/// SIGBUS
pub const SIGBUS: Signal = 7;
/// SIGKILL
pub const SIGKILL: Signal = 9;
/// SIGUSR1
pub const SIGUSR1: Signal = 10;
/// SIGALRM
pub const SIGALRM: Signal = 14;
/// SIGCHLD
const SIGCHLD: usize = 17;

/// # Safety
///
/// The call must do nothing to this process's memory but what Rust code allows.
unsafe fn call(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let answer: isize;
    // SAFETY: Linux keeps all registers but x0 (and FP registers, which are not the compiler's);
    // what it does to memory is the caller's promise.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") args[0] as isize => answer,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack)
        );
    }
    if (-4095..0).contains(&answer) { Err(Errno(-answer as i32)) } else { Ok(answer as usize) }
}

/// A call whose arguments are plain numbers.
macro_rules! plain {
    ($number:literal $(, $arg:expr)*) => {{
        let mut args = [0; 6];
        let given: &[usize] = &[$($arg as usize),*];
        args[..given.len()].copy_from_slice(given);
        // SAFETY: none of these calls writes to memory, or only where the argument says, which is
        // borrowed for the call.
        unsafe { call($number, args) }
    }};
}

pub mod alg;
pub mod io;
pub mod others;

const AT_FDCWD: usize = -100_isize as usize;

/// An open file. Closed by its drop.
pub struct File(usize);

impl File {
    /// Opens for reading.
    pub fn read_only(path: &CStr) -> Result<Self, Errno> {
        plain!(56, AT_FDCWD, path.as_ptr(), 0, 0).map(Self)
    }

    /// Opens for writing.
    pub fn write_only(path: &CStr) -> Result<Self, Errno> {
        plain!(56, AT_FDCWD, path.as_ptr(), 1, 0).map(Self)
    }

    /// Opens for both, past caches (O_SYNC).
    pub fn device(path: &CStr) -> Result<Self, Errno> {
        plain!(56, AT_FDCWD, path.as_ptr(), 2 | 0o4_010_000, 0).map(Self)
    }

    /// Makes a program: a new file that may be executed.
    pub fn program(path: &CStr) -> Result<Self, Errno> {
        plain!(56, AT_FDCWD, path.as_ptr(), 0o1101, 0o755).map(Self)
    }

    /// Reads until `buffer` is full or the file ends.
    pub fn read<'a>(&self, buffer: &'a mut [u8]) -> &'a [u8] {
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut buffer[done..];
            match plain!(63, self.0, rest.as_mut_ptr(), rest.len()) {
                Ok(0) | Err(_) => break,
                Ok(n) => done += n,
            }
        }
        &buffer[..done]
    }

    /// Reads one byte; waits for it.
    pub fn read_byte(&self) -> Option<u8> {
        let mut byte = [0];
        (self.read(&mut byte).len() == 1).then_some(byte[0])
    }

    /// Writes, once.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        plain!(64, self.0, bytes.as_ptr(), bytes.len())
    }

    /// What this process, and what it executes, hears comes from there.
    pub fn becomes_input(&self) {
        // Nobody could be told.
        let _ = plain!(24, self.0, 0, 0);
    }

    /// What this process, and what it executes, says goes there.
    pub fn becomes_output(&self) {
        for fd in [1, 2] {
            // Nobody could be told.
            let _ = plain!(24, self.0, fd, 0);
        }
    }

    /// Maps a page of it, shared.
    pub fn map_page(&self, offset: u64) -> Result<*mut u64, Errno> {
        plain!(222, 0, 4096, 3, 1, self.0, offset).map(|at| at as *mut u64)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Nothing can be done about a close that fails.
        let _ = plain!(57, self.0);
    }
}

/// A pipe: the end to read from, the end to write to.
pub fn pipe() -> Result<(File, File), Errno> {
    let mut ends = [0u32; 2];
    plain!(59, ends.as_mut_ptr(), 0)?;
    Ok((File(ends[0] as usize), File(ends[1] as usize)))
}

/// Writes to a file that Linux has opened for us.
pub fn write(fd: usize, bytes: &[u8]) {
    // Nobody could be told.
    let _ = plain!(64, fd, bytes.as_ptr(), bytes.len());
}

/// Mounts a file system of the kernel's, where a folder is made for it.
pub fn mount(kind: &CStr, at: &CStr) {
    make_folder(at);
    // It may be there; what is missing later says so itself.
    let _ = mount_at(kind, at, kind);
}

/// Makes a folder, unless it is there.
pub fn make_folder(at: &CStr) {
    // What is missing later says so itself.
    let _ = plain!(34, AT_FDCWD, at.as_ptr(), 0o755);
}

/// Mounts a file system that is on `source` where a folder is.
pub fn mount_at(source: &CStr, at: &CStr, kind: &CStr) -> Result<(), Errno> {
    plain!(40, source.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, 0).map(|_| ())
}

/// From here on this folder is the root of all files, and where this process is.
pub fn enter_root(at: &CStr) -> Result<(), Errno> {
    plain!(51, at.as_ptr())?;
    plain!(49, c"/".as_ptr()).map(|_| ())
}

/// Kernel messages stay in the kernel's log (SYSLOG_ACTION_CONSOLE_LEVEL).
pub fn quiet_kernel() {
    let _ = plain!(116, 8, 0, 1);
}

/// The kernel's log (SYSLOG_ACTION_READ_ALL), as much of its end as fits.
pub fn kernel_log(buffer: &mut [u8]) -> &[u8] {
    let got = plain!(116, 3, buffer.as_mut_ptr(), buffer.len()).unwrap_or(0);
    &buffer[..got]
}

/// Memory that this process and its children share, zeroed.
pub fn shared_memory(bytes: usize) -> Result<*mut u8, Errno> {
    plain!(222, 0, bytes, 3, 0x21, usize::MAX, 0).map(|at| at as *mut u8)
}

/// Memory of this process's own, zeroed.
pub fn own_memory(bytes: usize) -> Result<*mut u8, Errno> {
    plain!(222, 0, bytes, 3, 0x22, usize::MAX, 0).map(|at| at as *mut u8)
}

/// Gives memory back.
///
/// # Safety
///
/// It came from one of the functions above, and nothing refers to it any more.
pub unsafe fn unmap(at: *mut u8, bytes: usize) {
    // SAFETY: as the caller promises.
    let _ = unsafe { call(215, [at as usize, bytes, 0, 0, 0, 0]) };
}

/// A process's number.
pub type Pid = usize;

/// A copy of this process. `None` in the copy.
pub fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: each process has its own memory from here on; what is shared is atomic.
    let pid = unsafe { call(220, [SIGCHLD, 0, 0, 0, 0, 0]) }?;
    Ok((pid != 0).then_some(pid))
}

/// Arguments or an environment: a null pointer ends them.
type Strings<'a> = &'a [*const c_char];

fn execve(path: &CStr, arguments: Strings, environment: Strings) -> Errno {
    for strings in [arguments, environment] {
        assert_eq!(strings.last(), Some(&ptr::null()), "they end");
    }
    match plain!(221, path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) {
        Err(error) => error,
        Ok(_) => Errno(0),
    }
}

/// Runs another program in this process.
pub fn execute(path: &CStr) -> Errno {
    execute_with(path, &[path.as_ptr(), ptr::null()])
}

/// The same with arguments, which end with a null pointer.
pub fn execute_with(path: &CStr, arguments: Strings) -> Errno {
    execve(path, arguments, &[ptr::null()])
}

/// A session of its own for this process, with the console as its terminal (TIOCSCTTY): signals of the keyboard are for it. When
/// it ends the terminal is hung up, and output that has not left yet is lost: it is for people.
pub fn take_terminal() {
    let _ = plain!(157);
    let _ = plain!(29, 0, 0x540e, 1);
}

/// Runs a program as a user would, with a PATH.
pub fn execute_as_user(path: &CStr) -> Errno {
    let environment = [
        c"PATH=/usr/bin:/usr/sbin".as_ptr(),
        c"HOME=/root".as_ptr(),
        c"TERM=vt100".as_ptr(),
        ptr::null(),
    ];
    execve(path, &[path.as_ptr(), ptr::null()], &environment)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exit(u8),
    /// By this signal.
    Signal(Signal),
}

impl From<i32> for Ended {
    /// From what wait4 says.
    fn from(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exit((status >> 8) as u8),
            signal => Self::Signal(signal),
        }
    }
}

/// Waits for a child's end.
pub fn wait(pid: Pid) -> Result<Ended, Errno> {
    const EINTR: Errno = Errno(4);
    let mut status = 0i32;
    loop {
        match plain!(260, pid, &raw mut status, 0, 0) {
            Ok(_) => break,
            Err(EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Ended::from(status))
}

/// How a child has ended, if it has (WNOHANG).
pub fn has_ended(pid: Pid) -> Option<Ended> {
    let mut status = 0i32;
    let ended = plain!(260, pid, &raw mut status, 1, 0) == Ok(pid);
    ended.then(|| Ended::from(status))
}

/// Ends this process.
pub fn exit(status: u8) -> ! {
    let _ = plain!(94, status);
    loop {
        core::hint::spin_loop();
    }
}

/// This process's number.
pub fn process() -> Pid {
    plain!(172).unwrap_or(0)
}

/// The number of this process's parent: the cheapest call that does something.
pub fn parent() -> Pid {
    plain!(173).unwrap_or(0)
}

/// Where this process may run: a set of CPUs.
pub fn set_affinity(cpus: u64) -> Result<(), Errno> {
    plain!(122, 0, 8, &raw const cpus).map(|_| ())
}

/// Which CPU this is.
pub fn cpu() -> u32 {
    let mut cpu = 0u32;
    let _ = plain!(168, &raw mut cpu, 0, 0);
    cpu
}

/// Lets others run.
pub fn yield_now() {
    let _ = plain!(124);
}

/// Sleeps; a signal may end it early.
pub fn sleep_micros(micros: u64) {
    let time = [micros / 1_000_000, micros % 1_000_000 * 1000];
    let _ = plain!(101, time.as_ptr(), 0);
}

/// Times that this process was preempted (RUSAGE_SELF's ru_nivcsw).
pub fn preemptions() -> u64 {
    let mut usage = [0u64; 18];
    let _ = plain!(165, 0, usage.as_mut_ptr());
    usage[17]
}

/// Asks for a vector length (PR_SVE_SET_VL), and says which one it is now. What lies above V0-V31 is
/// gone.
pub fn set_vl(bytes: usize) -> Result<usize, Errno> {
    plain!(167, 50, bytes, 0, 0, 0).map(|answer| answer & 0xffff)
}

/// The same for streaming mode (PR_SME_SET_VL). Streaming mode and ZA are gone.
pub fn set_svl(bytes: usize) -> Result<usize, Errno> {
    plain!(167, 63, bytes, 0, 0, 0).map(|answer| answer & 0xffff)
}

/// SIGALRM in so many microseconds, once (ITIMER_REAL).
pub fn alarm(micros: u64) {
    let timer = [0u64, 0, 0, micros];
    let _ = plain!(103, 0, timer.as_ptr(), 0);
}

/// A signal to a process.
pub fn kill(pid: Pid, signal: Signal) {
    let _ = plain!(129, pid, signal);
}

/// A handler of [`handle`].
pub type Handler = extern "C" fn(Signal, *const u8, *mut u8);

/// What happens at a signal (SA_SIGINFO, SA_RESTART); no other comes meanwhile.
pub fn handle(signal: Signal, handler: Handler) -> Result<(), Errno> {
    let action = [handler as *const () as usize, 0x1000_0004, 0, usize::MAX];
    plain!(134, signal, action.as_ptr(), 0, 8).map(|_| ())
}

/// Waits until what was said has left the console (TCSBRK, tcdrain).
pub fn drain_console() {
    let _ = plain!(29, 1, 0x5409, 1);
}

/// Turns the machine off, or restarts it. What was said has left the console by then: Linux doesn't wait for it.
pub fn end_machine(restart: bool) -> ! {
    drain_console();
    let command = if restart { 0x0123_4567 } else { 0x4321_fedc_usize };
    let _ = plain!(142, 0xfee1_dead_usize, 0x2812_1969, command, 0);
    exit(1)
}
