//! Servers without resources, and with clients that take what they can: the examples
//! and `nbd-serve`. Nothing here depends on the server but how it is started.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use nbd_test_support::certificates;
use nbd_test_support::needs;
use nbd_test_support::peer::poll_for;
use nbd_test_support::program::{example, run, tool};
use nbd_test_support::skipped::skip;
use tempfile::TempDir;

use crate::place::Example;
use crate::raw::{FUA, READ, Raw, SEND_FUA, WRITE, request};

const SIZE: &str = "16777216";

/// How a server is started, and what it promises.
struct Kind {
    name: &'static str,
    args: &'static [&'static str],
    tls: bool,
    /// It makes threads for each client.
    threads: bool,
    /// The most memory for a client that never reads, in MiB.
    memory: u64,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "tokio_server",
        args: &["127.0.0.1:0", SIZE],
        tls: false,
        threads: false,
        // 16 requests of 4 MiB.
        memory: 64,
    },
    Kind {
        name: "tls_server",
        args: &["127.0.0.1:0", SIZE],
        tls: true,
        threads: true,
        // One reply.
        memory: 32,
    },
    Kind {
        name: "nbd-serve",
        args: &["--tcp=127.0.0.1:0", "--memory", SIZE],
        tls: false,
        threads: true,
        memory: 64,
    },
    Kind {
        name: "nbd-serve",
        args: &["--tcp=127.0.0.1:0", "--memory", SIZE, "--driver=uring"],
        tls: false,
        threads: false,
        memory: 64,
    },
];

static CERTIFICATES: LazyLock<TempDir> = LazyLock::new(certificates::folder);

struct Server {
    kind: &'static Kind,
    running: Example,
}

/// Runs a test for every server, side by side.
fn for_each_server(test: fn(&Server)) {
    thread::scope(|scope| {
        for kind in &KINDS {
            if kind.args.contains(&"--driver=uring") && !uring_is_permitted() {
                skip("io_uring");
                continue;
            }
            let thread = thread::Builder::new().name(format!("{} {:?}", kind.name, kind.args));
            let started = thread.spawn_scoped(scope, move || test(&Server::start(kind)));
            started.expect("a thread");
        }
    });
}

impl Server {
    fn start(kind: &'static Kind) -> Self {
        let mut args = kind.args.to_vec();
        if kind.tls {
            args.push(CERTIFICATES.path().to_str().expect("UTF-8"));
        }
        let running = match kind.name {
            "nbd-serve" => Example::nbd_serve(&args),
            name => Example::start(name, &args),
        };
        Self { kind, running }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.running.address()).expect("a connection");
        let limit = Some(Duration::from_secs(30));
        stream.set_read_timeout(limit).expect("a timeout");
        stream.set_write_timeout(limit).expect("a timeout");
        stream
    }

    /// A client in transmission.
    fn ready(&self) -> Raw {
        let certificates = self.kind.tls.then(|| CERTIFICATES.path());
        Raw::ready(self.connect(), certificates)
    }

    /// A correct client gets the whole export.
    #[track_caller]
    fn assert_serves(&self) {
        let client = if self.kind.tls {
            "tls_client"
        } else {
            "blocking_client"
        };
        let mut command = example(client);
        command.args([self.running.address(), ""]);
        if self.kind.tls {
            command.arg(CERTIFICATES.path());
        }
        let pulled = run(&mut command).ok();
        assert_eq!(pulled.stdout.len().to_string(), SIZE);
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

fn uring_is_permitted() -> bool {
    let args = ["--memory=1M", "--driver=uring", "--unix=/dev/null/socket"];
    let ended = run(tool("nbd-serve").args(args));
    !ended.stderr.contains("cannot serve with io_uring")
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
        let requests = vec![request(READ, 0, 0, 0, 4 << 20); 200].concat();
        client.stream.write_all(&requests).expect("sent");
        thread::sleep(Duration::from_secs(1));
        let taken = (server.status("VmHWM") - before) / 1024;
        assert!(taken <= server.kind.memory + 8, "{taken} MiB");
        server.assert_serves();
    });
}

/// Memory is as durable as it can be when it is written.
#[test]
fn writes_with_fua_are_offered_and_succeed() {
    for_each_server(|server| {
        let mut client = server.ready();
        assert_ne!(client.flags & SEND_FUA, 0, "FUA is not offered");
        let write = request(WRITE, FUA, 1, 4096, 512);
        client.stream.write_all(&write).expect("sent");
        client.stream.write_all(&[7; 512]).expect("sent");
        client.stream.flush().expect("sent");
        assert_eq!(client.reply().expect("a reply"), (0, 1));
        client
            .stream
            .write_all(&request(READ, 0, 2, 4096, 512))
            .expect("sent");
        client.stream.flush().expect("sent");
        assert_eq!(client.reply().expect("a reply"), (0, 2));
        let mut data = [0; 512];
        client.stream.read_exact(&mut data).expect("data");
        assert_eq!(data, [7; 512]);
    });
}

/// A certificate or a key that is missing or invalid: the error names the file.
#[test]
fn errors_of_certificates_name_the_file() {
    for kind in KINDS.iter().filter(|kind| kind.tls) {
        for file in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
            for invalid in [false, true] {
                let folder = certificates::folder();
                let path = folder.path().join(file);
                if invalid {
                    fs::write(&path, "not PEM\n").expect("written");
                } else {
                    fs::remove_file(&path).expect("removed");
                }
                let ended = run(example(kind.name).args(kind.args).arg(folder.path()));
                assert_eq!(ended.code, Some(1), "{ended:?}");
                assert!(ended.stderr.contains(file), "{invalid}: {ended:?}");
            }
        }
    }
}
