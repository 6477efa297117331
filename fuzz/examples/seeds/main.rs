//! Writes the seed corpora, the same bytes every time: scripts, and recorded
//! sessions. `cargo run --example seeds CORPORA SESSIONS`

mod client_handshake;
mod client_transmission;
mod messages;
mod pair;
mod server_handshake;
mod server_transmission;

use std::fs;
use std::path::{Path, PathBuf};

use nbd_codec_fuzz::delivery::{Delivery, Reading};
use nbd_codec_fuzz::format::{List, Stored, write};
use nbd_codec_fuzz::script::{ContextSetup, LimitsSetup, Setup};
use nbd_codec_fuzz::{client, recorded, server, steps};

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(directory), Some(recorded)) = (args.next(), args.next()) else {
        eprintln!("usage: seeds CORPORA SESSIONS");
        std::process::exit(2);
    };
    let corpora = Corpora(Path::new(&directory));
    let mut client_handshakes = client_handshake::scripts();
    let mut client_transmissions = client_transmission::scripts();
    let mut server_handshakes = server_handshake::scripts();
    let mut server_transmissions = server_transmission::scripts();
    for (name, text) in recordings(Path::new(&recorded)) {
        corpora.add_bytes(
            "monitor",
            &format!("session-{name}"),
            &recorded::pieces(&text),
        );
        let (handshake, transmission) = recorded::client_scripts(&text);
        client_handshakes.push((name.clone(), handshake));
        client_transmissions.extend(transmission.map(|script| (name.clone(), script)));
        let (handshake, transmission) = recorded::server_scripts(&text);
        server_handshakes.push((name.clone(), handshake));
        server_transmissions.extend(transmission.map(|script| (name, script)));
    }
    for (delivery, first) in deliveries() {
        let both = || (first.clone(), Delivery::whole());
        for (name, script) in &client_transmissions {
            let ((first, second), script) = (both(), script.clone());
            let run = client::Run::Transmission {
                first,
                second,
                script,
            };
            corpora.add_client(&format!("transmission-{name}-{delivery}"), run);
        }
        for (name, script) in &client_handshakes {
            let ((first, second), script) = (both(), script.clone());
            let run = client::Run::Handshake {
                first: first.clone(),
                second: second.clone(),
                script: script.clone(),
            };
            corpora.add_client(&format!("handshake-{name}-{delivery}"), run);
            let run = client::Run::Connector {
                first,
                second,
                script,
            };
            corpora.add_client(&format!("connector-{name}-{delivery}"), run);
        }
        for (name, script) in &server_transmissions {
            let ((first, second), script) = (both(), script.clone());
            let run = server::Run::Transmission {
                first,
                second,
                script,
            };
            corpora.add_server(&format!("transmission-{name}-{delivery}"), run);
        }
        for (name, script) in &server_handshakes {
            let ((first, second), script) = (both(), script.clone());
            let run = server::Run::Handshake {
                first,
                second,
                script,
            };
            corpora.add_server(&format!("handshake-{name}-{delivery}"), run);
        }
    }
    let mut lengths = 0;
    let mut add = |run| {
        // A part of the thousands of scripts.
        if lengths % 11 == 0 {
            corpora.add(&["step"], &format!("lengths-{lengths}"), &run);
        }
        lengths += 1;
    };
    steps::scripts::client_transmission(&mut add);
    steps::scripts::client_handshake(&mut add);
    steps::scripts::server_transmission(&mut add);
    steps::scripts::server_handshake(&mut add);
    for (name, script) in pair::scripts() {
        corpora.add(&["pair"], &name, &script);
    }
    for (name, bytes) in messages::messages() {
        corpora.add_bytes("wire_decode", name, &bytes);
        corpora.add_bytes("wire_roundtrip", name, &bytes);
    }
}

/// Names and texts of the recorded sessions, sorted by name.
fn recordings(directory: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory).expect("the directory of recorded sessions");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no recorded sessions");
    let read = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(path).expect("a readable session");
        (name.into_owned(), text)
    };
    files.iter().map(read).collect()
}

struct Corpora<'a>(&'a Path);

impl Corpora<'_> {
    fn add_client(&self, name: &str, run: client::Run) {
        self.add(
            &["client", "client_split", "differential", "monitor"],
            name,
            &run,
        );
        let run = steps::Run::Client { run };
        self.add(&["step"], &format!("client-{name}"), &run);
    }

    fn add_server(&self, name: &str, run: server::Run) {
        self.add(
            &["server", "server_split", "differential_server"],
            name,
            &run,
        );
        let run = steps::Run::Server { run };
        self.add(&["step"], &format!("server-{name}"), &run);
    }

    fn add(&self, targets: &[&str], name: &str, script: &impl Stored) {
        for target in targets {
            self.add_bytes(target, name, &write(script));
        }
    }

    fn add_bytes(&self, target: &str, name: &str, bytes: &[u8]) {
        let directory = self.0.join(target);
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join(name), bytes).expect("a file");
    }
}

fn deliveries() -> [(&'static str, Delivery); 5] {
    let delivery = |reading, sizes: &[u8], direct, extra_buffer| Delivery {
        reading,
        sizes: List(sizes.to_vec()),
        direct,
        extra_buffer,
    };
    [
        ("whole", Delivery::whole()),
        ("bytes", delivery(Reading::ReadAhead {}, &[1], false, 1)),
        ("ahead", delivery(Reading::ReadAhead {}, &[], true, 0)),
        ("exact", delivery(Reading::Exact {}, &[0, 7], true, 0)),
        ("twice", delivery(Reading::ExactTwice {}, &[], true, 0)),
    ]
}

/// The negotiated parameters of most scripts.
fn setup(framing: u8) -> Setup {
    let context = |id, wide| ContextSetup { id, wide };
    Setup {
        framing,
        size: 1 << 20,
        flags: 0x1ffd,
        block_sizes: 0,
        minimum: 1,
        maximum: 1 << 25,
        contexts: List(vec![context(1, false), context(7, true)]),
        limits: limits(),
        slots: 4,
        lenient: false,
        strict: false,
    }
}

/// The default limits, unless a mutation turns on the others.
fn limits() -> LimitsSetup {
    LimitsSetup {
        custom: false,
        option_data: 100,
        error_message: 5,
        payload: 100,
        extents: 2,
    }
}
