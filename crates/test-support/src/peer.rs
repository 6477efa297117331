//! Servers of other projects, running while a test needs them.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A server on a Unix socket of its own. Dropping the value ends the server.
pub struct Peer {
    running: Running,
    socket: PathBuf,
    /// Holds the socket.
    _folder: TempDir,
}

enum Running {
    Child(Child),
    /// A server that runs in the background.
    Daemon(Pid),
}

impl Peer {
    /// `qemu-nbd` with arguments that end with the image.
    pub fn qemu(args: &[&str], image: &Path) -> Self {
        Self::start("qemu-nbd", |command, socket| {
            command.args(["--persistent", "--shared=8", "--socket"]);
            command.arg(socket).args(args).arg(image);
        })
    }

    /// `nbdkit` with arguments that begin with options or the plugin.
    pub fn nbdkit(args: &[&str]) -> Self {
        Self::start("nbdkit", |command, socket| {
            command.args(["--foreground", "--exit-with-parent", "--unix"]);
            command.arg(socket).args(args);
        })
    }

    /// `nbd-server` with the export "disk".
    pub fn nbd_server(image: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name| folder.path().join(name);
        let (socket, config, pid) = (path("socket"), path("config"), path("pid"));
        let text = format!(
            "[generic]\nunixsock = {}\nallowlist = true\n\
             [disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
            socket.display(),
            image.display()
        );
        fs::write(&config, text).expect("a configuration");
        let mut command = Command::new("nbd-server");
        command.arg("-C").arg(&config).arg("-p").arg(&pid);
        let status = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("nbd-server starts");
        assert!(status.success(), "nbd-server: {status}");
        let pid = poll_for("the process id of nbd-server", || {
            let text = fs::read_to_string(&pid).ok()?;
            Pid::from_raw(text.trim().parse().ok()?)
        });
        let peer = Self {
            running: Running::Daemon(pid),
            socket,
            _folder: folder,
        };
        peer.ready()
    }

    fn start(program: &str, args: impl FnOnce(&mut Command, &Path)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("socket");
        let mut command = Command::new(program);
        args(&mut command, &socket);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let peer = Self {
            running: Running::Child(child),
            socket,
            _folder: folder,
        };
        peer.ready()
    }

    /// Waits until the server listens.
    fn ready(mut self) -> Self {
        poll_for("a server that listens", || {
            if let Running::Child(child) = &mut self.running {
                let ended = child.try_wait().expect("wait for a server");
                assert!(ended.is_none(), "the server ended at once: {ended:?}");
            }
            UnixStream::connect(&self.socket).ok()
        });
        self
    }

    /// The path of its Unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Ends the server at once, whatever it is doing.
    pub fn kill(&mut self) {
        match &mut self.running {
            Running::Child(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Running::Daemon(pid) => {
                let _ = kill_process(*pid, Signal::TERM);
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls `look` until it returns something, for thirty seconds at most.
pub fn poll_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "{what}: not within thirty seconds"
        );
        thread::sleep(Duration::from_millis(10));
    }
}
