//! Programs without resources, and with clients that take what they can: servers made of
//! this crate, and `nbd-serve`. Nothing here depends on the server but how it is started.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nbd_codec::wire::flags::{CommandFlags, TransmissionFlags};
use nbd_codec::wire::number::Command as Operation;
use nbd_test_support::needs;
use nbd_test_support::peer::poll_for;
use nbd_test_support::program::{example, run, tool};
use nbd_test_support::server::Server as Program;
use tempfile::TempDir;

use crate::support::{Client, TIME};

const SIZE: usize = 16 << 20;

/// How a server is started, and what it promises.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    arg: &'static str,
    export: &'static str,
    /// It makes threads for each client.
    threads: bool,
    /// The most memory for a client that never reads, in MiB.
    memory: u64,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "file_server",
        arg: "tokio",
        export: "file",
        threads: false,
        // An eighth of what is free.
        memory: 32,
    },
    Kind {
        name: "file_server",
        arg: "blocking",
        export: "file",
        threads: true,
        memory: 32,
    },
    Kind {
        name: "nbd-serve",
        arg: "--verbose",
        export: "",
        threads: true,
        memory: 64,
    },
];

struct Server {
    kind: Kind,
    running: Program,
    folder: TempDir,
}

/// Runs a test for every server, side by side.
fn for_each_server(test: fn(&Server)) {
    thread::scope(|scope| {
        for kind in KINDS {
            let thread = thread::Builder::new().name(format!("{} {}", kind.name, kind.arg));
            let started = thread.spawn_scoped(scope, move || test(&Server::start(kind)));
            started.expect("a thread");
        }
    });
}

impl Server {
    fn start(kind: Kind) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (image, socket) = (folder.path().join("image"), folder.path().join("socket"));
        fs::write(&image, vec![0; SIZE]).expect("an image");
        let mut command = match kind.name {
            "nbd-serve" => {
                let mut command = tool(kind.name);
                command.args([kind.arg, "--unix"]).arg(socket).arg(image);
                command
            }
            name => {
                let mut command = example(name);
                command.arg(kind.arg).arg(image).arg(socket);
                command
            }
        };
        Self {
            kind,
            running: Program::start(&mut command),
            folder,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join("socket"));
        let stream = stream.expect("a connection");
        stream.set_read_timeout(Some(TIME)).expect("a timeout");
        stream.set_write_timeout(Some(TIME)).expect("a timeout");
        stream
    }

    /// A client in transmission.
    fn ready(&self) -> Client<UnixStream> {
        Client::start(self.connect(), self.kind.export).expect("the export")
    }

    /// A correct client gets the whole export.
    #[track_caller]
    fn assert_serves(&self) {
        let client = nbd_io::blocking::Client::connect(&self.running.uri).expect("a client");
        let data = client.read_at(0, SIZE).expect("a read");
        assert!(data == vec![0; SIZE]);
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.running.id());
        fs::read_to_string(path).expect("the server runs")
    }

    /// A number from its status.
    fn status(&self, key: &str) -> u64 {
        let text = self.proc("status");
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
        number.expect("a field").parse().expect("a number")
    }

    /// How much processor time it takes in a second.
    fn load(&self) -> Duration {
        let time = || {
            let stat = self.proc("stat");
            let (_, fields) = stat.rsplit_once(") ").expect("the name of the program");
            // User and system time, in hundredths of a second.
            let times = fields.split(' ').skip(11).take(2);
            let times = times.map(|ticks| ticks.parse::<u64>().expect("a number"));
            Duration::from_millis(10 * times.sum::<u64>())
        };
        let before = time();
        thread::sleep(Duration::from_secs(1));
        time() - before
    }
}

/// The limit is five more than the server has now.
#[test]
fn without_file_descriptors_a_server_waits_for_them() {
    needs!("prlimit");
    for_each_server(|server| {
        let folder = format!("/proc/{}/fd", server.running.id());
        let open = fs::read_dir(folder).expect("its descriptors").count();
        let mut limit = Command::new("prlimit");
        limit.args(["--pid", &server.running.id().to_string()]);
        run(limit.arg(format!("--nofile={}", open + 5))).ok();
        let stalled: Vec<_> = (0..30).map(|_| server.connect()).collect();
        thread::sleep(Duration::from_millis(300));
        let load = server.load();
        assert!(load < Duration::from_millis(300), "{load:?} in a second");
        drop(stalled);
        server.assert_serves();
    });
}

/// Fails all calls that make threads of a process, until it is dropped.
struct NoThreads(Child);

impl NoThreads {
    fn of(server: &Server, log: &str) -> Self {
        let id = server.running.id().to_string();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-q", "-p", &id, "-o", log, "-e", "trace=clone,clone3"]);
        strace.args(["-e", "inject=clone,clone3:error=EAGAIN"]);
        let strace = strace.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let this = Self(strace.expect("strace starts"));
        poll_for("strace is attached", || {
            let tasks = fs::read_dir(format!("/proc/{id}/task")).ok()?;
            let mut states =
                tasks.map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
            let traced =
                |status: Option<String>| status.is_some_and(|text| !text.contains("TracerPid:\t0"));
            states.all(traced).then_some(())
        });
        this
    }
}

impl Drop for NoThreads {
    fn drop(&mut self) {
        // It detaches from the server.
        let id = self.0.id().to_string();
        let _ = Command::new("kill").args(["-s", "TERM", &id]).status();
        let _ = self.0.wait();
    }
}

#[test]
fn without_threads_a_server_drops_the_client_and_goes_on() {
    needs!("strace");
    for_each_server(|server| {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let no_threads = NoThreads::of(server, log.to_str().expect("UTF-8"));
        let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
        for client in &mut clients {
            let mut received = Vec::new();
            if server.kind.threads {
                // `nbd-serve` has sent a greeting if only a second thread is missing.
                let end = client.read_to_end(&mut received);
                end.expect("the server closes the connection");
            } else {
                received = vec![0; 18];
                client.read_exact(&mut received).expect("a greeting");
            }
        }
        drop(no_threads);
        let failed = fs::read_to_string(&log)
            .expect("a log")
            .contains("INJECTED");
        assert_eq!(failed, server.kind.threads, "threads are made");
        server.assert_serves();
    });
}

/// The client sends a legal option, a byte now and then, and again.
#[test]
fn a_handshake_has_one_deadline() {
    for_each_server(|server| {
        let start = Instant::now();
        let mut stream = server.connect();
        let limit = Some(Duration::from_millis(300));
        stream.set_read_timeout(limit).expect("a timeout");
        let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
        let mut bytes = b"\0\0\0\x03".iter().chain(list.iter().cycle());
        let ended = loop {
            let next = *bytes.next().expect("there is always more");
            // A connection that the server has closed is an error, or its end.
            let read = match stream.write_all(&[next]) {
                Err(_) => break start.elapsed(),
                Ok(()) => stream.read(&mut [0; 1024]),
            };
            match read {
                Ok(0) => break start.elapsed(),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break start.elapsed(),
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no deadline");
        };
        let seconds = ended.as_secs_f64();
        assert!((8.0..13.0).contains(&seconds), "after {seconds} s");
        server.assert_serves();
    });
}

#[test]
fn a_client_that_never_reads_gets_little_memory() {
    for_each_server(|server| {
        let mut client = server.ready();
        let before = server.status("VmHWM");
        // Replies of 800 MiB. What the server does not take stays in the socket.
        for _ in 0..200 {
            client.send(Operation::READ, 0, 4 << 20, &[]);
        }
        thread::sleep(Duration::from_secs(1));
        let taken = (server.status("VmHWM") - before) / 1024;
        assert!(taken <= server.kind.memory + 8, "{taken} MiB");
        server.assert_serves();
    });
}

#[test]
fn writes_with_fua_are_offered_and_succeed() {
    for_each_server(|server| {
        let mut client = server.ready();
        let offered = client.negotiated.flags;
        assert!(offered.contains(TransmissionFlags::SEND_FUA));
        let write = client.request(Operation::WRITE, CommandFlags::FUA, 4096, 512);
        client.stream.write_all(&[7; 512]).expect("sent");
        assert_eq!(client.reply(&mut []), (write, Ok(())));
        assert_eq!(client.read(4096, 512), Ok(vec![7; 512]));
    });
}
