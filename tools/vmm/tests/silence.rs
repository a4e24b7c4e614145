//! The monitor when nobody reads what it says: it ends as it would otherwise.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, Write, pipe};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;
use vmm_sys_util::tempdir::TempDir;

fn monitor(arguments: &[&str]) -> Command {
    let (stdout, stderr) = (pipe().unwrap().1, pipe().unwrap().1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_umbra-vmm"));
    command.args(arguments).stdout(stdout).stderr(stderr);
    command
}

#[test]
fn complaints() {
    let status = monitor(&["control", "/nonexistent/socket", "status"]).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn answers() {
    let folder = TempDir::new().unwrap();
    let path = folder.as_path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let machine = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut request = String::new();
        BufReader::new(&client).read_line(&mut request).unwrap();
        client.write_all(b"{\"ok\":true}\n").unwrap();
    });
    let status = monitor(&["control", path.to_str().unwrap(), "status"]).status().unwrap();
    assert_eq!(status.code(), Some(1));
    machine.join().unwrap();
}
