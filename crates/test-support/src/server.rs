//! Servers of ours: programs whose first line of output is their URI.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A server of ours. Dropping the value ends the server.
pub struct Server {
    child: Child,
    /// Its URI, which is its first line of output.
    pub uri: String,
}

impl Server {
    /// Starts a server, and waits for its URI.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command
            .stderr(Stdio::null())
            .spawn()
            .expect("a server starts");
        let stdout = child.stdout.take().expect("a pipe");
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = send.send(line);
        });
        let mut this = Self {
            child,
            uri: String::new(),
        };
        let line = receive.recv_timeout(Duration::from_secs(30));
        line.expect("a line within thirty seconds")
            .trim()
            .clone_into(&mut this.uri);
        assert!(
            this.uri.starts_with("nbd"),
            "{command:?} first wrote {:?}",
            this.uri
        );
        this
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its `ADDR:PORT`, if it listens on TCP.
    pub fn address(&self) -> &str {
        let (_, authority) = self.uri.split_once("://").expect("a URI");
        authority.split('/').next().unwrap_or_default()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
