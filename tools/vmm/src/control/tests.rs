use super::*;
use crate::events::EventLoop;
use std::sync::mpsc;
use std::thread;
use vmm_sys_util::tempdir::TempDir;

fn folder() -> TempDir {
    TempDir::new().unwrap()
}

#[test]
fn requests_and_answers() {
    let folder = folder();
    let path = folder.as_path().join("socket");
    let (sender, notices) = mpsc::channel();
    let server = Server::new(&path, sender.clone()).unwrap();
    let control = EventLoop::start("control", vec![Box::new(server)], sender).unwrap();
    let machine = thread::spawn(move || {
        let mut asked = Vec::new();
        while let Ok(Notice::Request(verb, reply)) = notices.recv() {
            asked.push(verb);
            reply.send(&json!({ "ok": verb != Verb::Resume }));
        }
        asked
    });
    assert_eq!(ask(&path, Verb::Pause).unwrap(), ("{\"ok\":true}".to_owned(), true));
    assert_eq!(ask(&path, Verb::Resume).unwrap(), ("{\"ok\":false}".to_owned(), false));
    // One that says nothing, one that goes on for ever, and one that says what isn't known, in pieces.
    let silent = UnixStream::connect(&path).unwrap();
    let mut endless = UnixStream::connect(&path).unwrap();
    endless.write_all(&[b'a'; 2 * REQUEST]).unwrap();
    assert!(matches!(endless.read(&mut [0; 8]), Ok(0) | Err(_)));
    let mut other = UnixStream::connect(&path).unwrap();
    other.write_all(b"sta").unwrap();
    other.write_all(b"rt\nstatus\n").unwrap();
    let mut lines = BufReader::new(other).lines();
    let wrong: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(wrong["ok"], false);
    assert_eq!(lines.next().unwrap().unwrap(), "{\"ok\":true}");
    drop(silent);
    control.end().join().unwrap();
    assert_eq!(machine.join().unwrap(), [Verb::Pause, Verb::Resume, Verb::Status]);
    assert!(!path.exists());
}

#[test]
fn only_so_many_clients() {
    let folder = folder();
    let path = folder.as_path().join("socket");
    let (sender, _notices) = mpsc::channel();
    let server = Server::new(&path, sender.clone()).unwrap();
    let control = EventLoop::start("control", vec![Box::new(server)], sender).unwrap();
    let some: Vec<_> = (0..CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut more = UnixStream::connect(&path).unwrap();
    assert_eq!(more.read(&mut [0; 1]).unwrap(), 0);
    drop(some);
    control.end().join().unwrap();
}

#[test]
fn whose_socket_it_is() {
    let folder = folder();
    let path = folder.as_path().join("socket");
    let (sender, _notices) = mpsc::channel();
    let first = Server::new(&path, sender.clone()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Server::new(&path, sender.clone()).is_err());
    drop(first);
    assert!(!path.exists());
    // One that was left behind.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Server::new(&path, sender.clone()).unwrap());
    fs::write(&path, "text").unwrap();
    assert!(Server::new(&path, sender).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"text");
}
