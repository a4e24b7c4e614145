//! Running other programs: with a clear error when they fail, and without leaving any behind.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use anyhow::{Context, Result, bail};
use shared_child::SharedChild;

/// Children to kill when this process is told to end. An entry is taken out by [`Running`]'s drop.
static RUNNING: Mutex<Vec<Arc<SharedChild>>> = Mutex::new(Vec::new());

/// A child process that does not outlive this one: it is killed on drop, on Ctrl-C (also SIGTERM
/// and SIGHUP), and by the kernel should this process die in any other way.
pub struct Running(Arc<SharedChild>);

impl Running {
    /// Starts `command`. The calling thread must live as long as the child: the kernel counts its
    /// end as the parent's death.
    pub fn start(command: &mut Command) -> Result<Self> {
        install_handler();
        tie_to_parent(command);
        let child = SharedChild::spawn(command)
            .with_context(|| format!("could not start {}", line(command)))?;
        let child = Arc::new(child);
        running().push(Arc::clone(&child));
        Ok(Self(child))
    }

    /// The child, for threads that wait for it or kill it.
    pub fn child(&self) -> &Arc<SharedChild> {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        stop(&self.0);
        running().retain(|child| !Arc::ptr_eq(child, &self.0));
    }
}

/// From here on Ctrl-C belongs to a child that has the terminal, such as a debugger: this process
/// waits for that child to end.
pub fn leave_interrupts_to_child() {
    INTERRUPTS_LEFT.store(true, Ordering::Relaxed);
}

static INTERRUPTS_LEFT: AtomicBool = AtomicBool::new(false);

fn running() -> std::sync::MutexGuard<'static, Vec<Arc<SharedChild>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills and reaps. Both do nothing for a child that already ended, and there is nobody to tell of
/// any other failure.
fn stop(child: &SharedChild) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Makes Ctrl-C end the children before this process.
fn install_handler() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let result = ctrlc::set_handler(|| {
            if INTERRUPTS_LEFT.load(Ordering::Relaxed) {
                return;
            }
            // The lock stays held: nobody starts another child between here and the exit.
            let children = running();
            children.iter().for_each(|child| stop(child));
            eprintln!("interrupted");
            std::process::exit(130);
        });
        // Without a handler the signal's default action ends this process, and the kernel then
        // ends the children (see `tie_to_parent`).
        if let Err(error) = result {
            eprintln!("no Ctrl-C handler: {error}");
        }
    });
}

/// Asks the kernel to kill the child when the thread that starts it dies.
#[cfg(target_os = "linux")]
fn tie_to_parent(command: &mut Command) {
    use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
    use std::os::unix::process::CommandExt;

    let parent = getpid();
    let hook = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the request was made.
        if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run; the hook makes two
    // system calls, and allocates nothing.
    unsafe {
        command.pre_exec(hook);
    }
}

#[cfg(not(target_os = "linux"))]
fn tie_to_parent(_command: &mut Command) {}

/// Makes this process end when the one that started it does. For the test harness, which cargo
/// starts: should cargo be killed, so are the harness and its machines.
pub fn end_with_parent() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, set_parent_process_death_signal};
        if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
            eprintln!("could not tie this process to its parent: {error}");
        }
    }
}

/// `command` as one would type it, without its environment.
pub fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+%@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs `command` with this process's terminal; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let running = Running::start(command)?;
    let status = running.child().wait()?;
    if !status.success() {
        bail!("{status}: {}", line(command));
    }
    Ok(())
}

/// Runs `command` to its end and returns what it printed, whether it succeeded or not.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start {}", line(command)))
}

/// What `command` printed on its standard output; an error, with what it said, if it fails.
pub fn stdout(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{}: {}\n{}",
            output.status,
            line(command),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The program `name` on PATH.
pub fn find_on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("qemu");
        command.args(["-append", "two words", "it's", ""]);
        assert_eq!(line(&command), r"qemu -append 'two words' 'it'\''s' ''");
    }

    #[test]
    fn a_failing_command_is_an_error_with_its_words() {
        let error = stdout(Command::new("sh").args(["-c", "echo reason >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("reason"), "{error}");
        assert!(error.to_string().contains('3'), "{error}");
    }

    #[test]
    fn dropping_ends_the_child() {
        let running = Running::start(Command::new("sleep").arg("1000")).unwrap();
        let child = Arc::clone(running.child());
        drop(running);
        assert!(!child.try_wait().unwrap().expect("ended").success());
    }
}
