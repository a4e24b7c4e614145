use super::*;
use crate::events::EventLoop;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;
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

/// A server, its path, and what it is asked.
struct Asked {
    path: std::path::PathBuf,
    notices: mpsc::Receiver<Notice>,
    control: EventLoop,
    _folder: TempDir,
}

impl Asked {
    fn new() -> Self {
        let folder = folder();
        let path = folder.as_path().join("socket");
        let (sender, notices) = mpsc::channel();
        let server = Server::new(&path, sender.clone()).unwrap();
        let control = EventLoop::start("control", vec![Box::new(server)], sender).unwrap();
        Self { path, notices, control, _folder: folder }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// The next request's.
    fn reply(&self) -> Reply {
        let Ok(Notice::Request(Verb::Status, reply)) = self.notices.recv() else { panic!() };
        reply
    }

    /// Whether nothing is asked for a while.
    fn is_quiet(&self) -> bool {
        self.notices.recv_timeout(Duration::from_millis(50)).is_err()
    }
}

#[test]
fn the_longest_silent_one_makes_room() {
    let asked = Asked::new();
    let mut some: Vec<_> = (0..CLIENTS).map(|_| asked.connect()).collect();
    some[0].write_all(b"status\n").unwrap();
    asked.reply().send(&json!({}));
    let _more = asked.connect();
    assert_eq!(some[1].read(&mut [0; 1]).unwrap(), 0);
    // Those before and after it are still there.
    for n in [0, 2] {
        some[n].write_all(b"status\n").unwrap();
        asked.reply().send(&json!({}));
        let mut line = String::new();
        BufReader::new(&some[n]).read_line(&mut line).unwrap();
        assert!(line.starts_with("{}"));
    }
    asked.control.end().join().unwrap();
}

#[test]
fn a_client_has_one_request_at_a_time() {
    let asked = Asked::new();
    let mut client = asked.connect();
    client.write_all(&b"status\n".repeat(100)).unwrap();
    let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
    for n in 0..100 {
        let reply = asked.reply();
        if n < 3 {
            assert!(asked.is_quiet());
        }
        reply.send(&json!(n));
        assert_eq!(lines.next().unwrap().unwrap(), n.to_string());
    }
    // One that nobody answers is over as well.
    client.write_all(b"status\nstatus\n").unwrap();
    drop(asked.reply());
    drop(asked.reply());
    asked.control.end().join().unwrap();
}

#[test]
fn no_more_requests_wait_than_there_are_places() {
    let asked = Asked::new();
    let replies: Vec<_> = (0..CLIENTS)
        .map(|_| {
            asked.connect().write_all(b"status\nstatus\n").unwrap();
            asked.reply()
        })
        .collect();
    // All of them are gone, and keep their places.
    let mut refused = asked.connect();
    assert!(matches!(refused.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert!(asked.is_quiet());
    drop(replies);
    for _ in 0..CLIENTS {
        drop(asked.reply());
    }
    let mut client = asked.connect();
    client.write_all(b"status\n").unwrap();
    asked.reply().send(&json!({}));
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 1);
    asked.control.end().join().unwrap();
}

#[test]
fn half_an_answer_is_the_last() {
    let (near, mut far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let _open = near.try_clone().unwrap();
    let long = "a".repeat(8 << 20);
    Reply::to(near).send(&json!(long));
    let mut got = Vec::new();
    far.read_to_end(&mut got).unwrap();
    assert!(!got.is_empty() && got.len() < long.len());
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

#[test]
fn another_ones_socket_is_left_alone() {
    let folder = folder();
    let path = folder.as_path().join("socket");
    let (sender, _notices) = mpsc::channel();
    let first = Server::new(&path, sender.clone()).unwrap();
    fs::rename(&path, folder.as_path().join("elsewhere")).unwrap();
    let second = Server::new(&path, sender).unwrap();
    drop(first);
    assert!(UnixStream::connect(&path).is_ok());
    drop(second);
    assert!(!path.exists());
}

#[test]
fn one_of_many_takes_a_stale_socket() {
    let folder = folder();
    let path = folder.as_path().join("socket");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let barrier = Barrier::new(4);
        let servers: Vec<_> = thread::scope(|scope| {
            let start = || {
                let (sender, _) = mpsc::channel();
                barrier.wait();
                Server::new(&path, sender).ok()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(servers.len(), 1);
        assert!(UnixStream::connect(&path).is_ok());
        drop(servers);
        assert!(!path.exists());
    }
}
