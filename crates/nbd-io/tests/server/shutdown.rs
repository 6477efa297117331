//! Shutting down: what is in flight is finished, what comes later is refused.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nbd_codec::wire::number::{Command, ErrorValue};
use nbd_io::server::{Bytes, Config, Device, Export, Exports, ReadReply};
use nbd_test_support::peer::poll_for;

use crate::support::{Disk, FACES, Face, MIB, Running};

/// Writes wait at a gate.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    notify: tokio::sync::Notify,
    began: AtomicBool,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
        self.notify.notify_waiters();
        self.notify.notify_one();
    }
}

struct Gated(Face, Arc<Gate>);

impl Device for Gated {
    fn size(&self) -> u64 {
        MIB
    }

    async fn read(&self, _: u64, reply: &mut ReadReply) -> io::Result<()> {
        reply.put_hole(reply.remaining());
        Ok(())
    }

    async fn write(&self, _: u64, _: Bytes) -> io::Result<()> {
        self.1.began.store(true, Ordering::SeqCst);
        if self.0 == Face::Tokio {
            self.1.notify.notified().await;
            return Ok(());
        }
        let mut open = self.1.open.lock().unwrap();
        while !*open {
            open = self.1.opened.wait(open).unwrap();
        }
        Ok(())
    }
}

fn gated(face: Face, config: Config) -> (Running, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let exports = Exports::new().with(Export::new("disk", Gated(face, Arc::clone(&gate))));
    (Running::start(face, exports, config), gate)
}

#[test]
fn what_is_in_flight_is_finished() {
    // The longest time cannot be added to the clock.
    let graces = [Duration::from_secs(10), Duration::MAX];
    for (face, grace) in FACES
        .into_iter()
        .flat_map(|face| graces.map(|it| (face, it)))
    {
        let (running, gate) = gated(face, Config::new().grace(grace));
        let mut client = running.client("disk");
        let idle = running.client("disk");
        let sent = client.send(Command::WRITE, 0, 4, b"data");
        poll_for("the write", || {
            gate.began.load(Ordering::SeqCst).then_some(())
        });
        running.server.shut_down();
        thread::sleep(Duration::from_millis(50));
        gate.open();
        assert_eq!(client.reply(&mut []), (sent, Ok(())));
        client.closed();
        let mut idle = idle;
        idle.closed();
        running.stop();
    }
}

#[test]
fn what_does_not_end_is_dropped_after_the_grace() {
    let (running, gate) = gated(Face::Tokio, Config::new().grace(Duration::from_millis(100)));
    let mut client = running.client("disk");
    client.send(Command::WRITE, 0, 4, b"data");
    poll_for("the write", || {
        gate.began.load(Ordering::SeqCst).then_some(())
    });
    let began = Instant::now();
    running.stop();
    assert!(began.elapsed() < Duration::from_secs(10));
    client.closed();
}

#[test]
fn requests_that_arrive_later_are_refused() {
    // One in flight at most: the second request waits.
    for face in FACES {
        let (running, gate) = gated(face, Config::new().in_flight(1));
        let mut client = running.client("disk");
        let first = client.send(Command::WRITE, 0, 4, b"data");
        poll_for("the write", || {
            gate.began.load(Ordering::SeqCst).then_some(())
        });
        let second = client.send(Command::READ, 0, 4, &[]);
        thread::sleep(Duration::from_millis(50));
        running.server.shut_down();
        thread::sleep(Duration::from_millis(50));
        gate.open();
        assert_eq!(client.reply(&mut []), (first, Ok(())));
        // It had arrived, and is answered.
        let refused = (second, Err(ErrorValue::ESHUTDOWN));
        assert_eq!(client.reply(&mut []), refused);
        client.closed();
    }
}

#[test]
fn a_handshake_is_cut_short() {
    for face in FACES {
        let running = Running::disk(face, Disk::new(MIB));
        let mut stream = running.connect();
        let mut greeting = [0; 18];
        io::Read::read_exact(&mut stream, &mut greeting).expect("the greeting");
        running.stop();
        assert_eq!(
            io::Read::read(&mut stream, &mut greeting).expect("the end"),
            0
        );
    }
}

#[test]
fn a_tcp_listener_of_any_address_ends() {
    use std::net::TcpListener;

    use nbd_io::server::Server;

    for address in ["0.0.0.0:0", "127.0.0.1:0"] {
        let listener = TcpListener::bind(address).expect("a listener");
        let server = Server::new(Exports::new(), Config::new());
        let own = server.clone();
        let listening = thread::spawn(move || nbd_io::blocking::listen(listener, &own));
        thread::sleep(Duration::from_millis(50));
        server.shut_down();
        listening.join().expect("no panic").expect("it ends");
    }
}
