//! The fuzz kit finds faults with random scripts, in bounded time, and nothing in
//! programs that have none.

#[allow(dead_code, reason = "no listener is needed")]
mod faulty;

use std::io::{Read, Write};
use std::path::Path;
#[cfg(unix)]
use std::{sync::Mutex, time::Duration};

use arbitrary::{Arbitrary, Unstructured};
use faulty::{Fault, Server};
use nbd_check::fuzz::format::{List, Rest, read, write};
use nbd_check::fuzz::messages::{Mutation, OptionScript, RequestScript};
use nbd_check::fuzz::script::{Action, Reaction};
use nbd_check::fuzz::{ClientScript, Failure, Fuzz, ServerScript, example};

/// Numbers that look random: xorshift.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("NBD_FUZZ_SEED").map(|text| text.parse().expect("a number"));
        Self(0x9e37_79b9_7f4a_7c15 ^ seed.unwrap_or(0))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn script<T: for<'a> Arbitrary<'a>>(&mut self) -> T {
        let length = self.next() % 400;
        let bytes: Vec<_> = (0..length).map(|_| (self.next() >> 32) as u8).collect();
        T::arbitrary(&mut Unstructured::new(&bytes)).expect("every string is a script")
    }
}

/// How many scripts programs without faults pass; `NBD_FUZZ_SCRIPTS` for long runs.
fn many() -> usize {
    let scripts = std::env::var("NBD_FUZZ_SCRIPTS");
    scripts.map_or(2000, |text| text.parse().expect("a number"))
}

/// Runs random scripts; the first failure, and the number of its script.
fn fuzz<T: for<'a> Arbitrary<'a>>(
    scripts: usize,
    mut run: impl FnMut(&T) -> Result<(), Failure>,
) -> Option<(usize, Failure)> {
    let mut random = Random::new();
    (1..=scripts).find_map(|number| Some((number, run(&random.script()).err()?)))
}

fn find(fault: Fault, scripts: usize) -> Option<(usize, Failure)> {
    fuzz(scripts, |script: &ServerScript| {
        let server = Server::new(fault);
        Fuzz::new().server(script, |stream| faulty::serve(stream, &server))
    })
}

fn assert_none(found: Option<(usize, Failure)>) {
    if let Some((number, failure)) = found {
        panic!("script {number}: {failure}");
    }
}

#[test]
fn known_bugs_are_found() {
    for (fault, duties) in [
        (Fault::OffsetWraps, &["E1", "E3", "R139", "R159"][..]),
        (Fault::OptionDataNotDrained, &["H17", "B5"]),
        (Fault::NameLengthUnchecked, &["H17", "B5"]),
        (Fault::ListDataNotDrained, &["H17", "B5"]),
        (Fault::DataShort, &["R93"]),
        (Fault::PayloadNotDrained, &["T10", "T14"]),
    ] {
        let (number, failure) = find(fault, 5000).unwrap_or_else(|| panic!("{fault:?}"));
        println!("{fault:?}: script {number}");
        let duties_found = failure.findings().iter().map(|finding| finding.duty.id);
        assert!(
            duties_found.clone().any(|id| duties.contains(&id)),
            "{fault:?}: {failure}"
        );
        assert!(failure.transcript().contains("S: "), "{failure}");
        assert!(
            nbd_check::transcript::parse(failure.transcript()).is_ok(),
            "{failure}"
        );
    }
}

#[test]
fn a_server_without_a_fault_passes() {
    assert_none(find(Fault::None, many()));
}

#[test]
fn the_server_of_nbd_codec_passes() {
    assert_none(fuzz(many(), |script: &ServerScript| {
        let mut disk = vec![7; 1 << 16];
        Fuzz::new()
            .strict(true)
            .server(script, |stream| example::serve(stream, &mut disk))
    }));
}

#[test]
fn the_client_of_nbd_codec_passes() {
    assert_none(fuzz(many(), |script: &ClientScript| {
        Fuzz::new().client(script, |stream, disk| example::write_and_read(stream, disk))
    }));
}

/// What is wrong with a client.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wrong {
    /// It takes what arrives first for all of the data.
    ReadsOnce,
    /// It sends a read past the end of the export.
    PastTheEnd,
    /// It reads when nothing is due.
    Waits,
}

/// A client that knows as little as possible: `EXPORT_NAME`, and one read.
fn simple_client(wrong: Wrong, stream: &mut (impl Read + Write), disk: &[u8]) -> Option<()> {
    stream.read_exact(&mut [0; 18]).ok()?;
    stream
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")
        .ok()?;
    stream.read_exact(&mut [0; 10]).ok()?;
    let mut request = *b"\x25\x60\x95\x13\0\0\0\0cookie78\0\0\0\0\0\0\0\0\0\0\0\x20";
    if wrong == Wrong::PastTheEnd {
        request[20] = 1;
    }
    if wrong != Wrong::Waits {
        stream.write_all(&request).ok()?;
    }
    let (mut header, mut data) = ([0; 16], [0; 32]);
    stream.read_exact(&mut header).ok()?;
    if header != *b"\x67\x44\x66\x98\0\0\0\0cookie78" {
        return None;
    }
    match wrong {
        Wrong::ReadsOnce => drop(stream.read(&mut data)),
        _ => stream.read_exact(&mut data).ok()?,
    }
    assert_eq!(data, disk[..32], "other data than the server has");
    Some(())
}

#[test]
fn wrong_clients_are_found() {
    for (wrong, text) in [
        (Wrong::PastTheEnd, "must be refused"),
        (Wrong::Waits, "nothing is due"),
    ] {
        let found = fuzz(5000, |script: &ClientScript| {
            Fuzz::new().client(script, |stream, disk| simple_client(wrong, stream, disk))
        });
        let (_, failure) = found.unwrap_or_else(|| panic!("{wrong:?}"));
        assert!(failure.to_string().contains(text), "{failure}");
        let transcript = failure.transcript();
        assert!(transcript.contains("NBD_OPT_EXPORT_NAME"), "{transcript}");
        assert!(
            nbd_check::transcript::parse(transcript).is_ok(),
            "{transcript}"
        );
    }
    let found = std::panic::catch_unwind(|| {
        fuzz(5000, |script: &ClientScript| {
            Fuzz::new().client(script, |stream, disk| {
                simple_client(Wrong::ReadsOnce, stream, disk)
            })
        })
    });
    assert!(found.is_err(), "a part of the data is taken for all of it");
}

/// The seed corpus, by name.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let list = |bytes: &[u8]| List(bytes.to_vec());
    let valid = |command| Action::Valid {
        command,
        flags: if command % 2 == 0 { 0 } else { 255 },
        at: command,
        blocks: 2,
        fill: 0x5a,
    };
    let edge = |command, edge| Action::Edge {
        command,
        edge,
        before: 100,
        length: 512,
        fill: 0,
    };
    let options = [
        OptionScript::List {},
        OptionScript::Info {
            export: 0,
            requests: list(&[0, 1, 2, 3]),
        },
        OptionScript::ListMetaContext {
            export: 0,
            queries: list(&[]),
        },
        OptionScript::SetMetaContext {
            export: 0,
            queries: list(&[2]),
        },
        OptionScript::Other {
            option: 77,
            data: vec![1; 20],
        },
        OptionScript::Go {
            export: 1,
            requests: list(&[]),
        },
        OptionScript::StartTls {},
    ];
    let mutations = [
        Mutation::Length { field: 0, value: 1 },
        Mutation::Length { field: 1, value: 3 },
        Mutation::Flip { at: 15, bit: 1 },
        Mutation::Insert {
            at: 20,
            bytes: vec![0; 3],
        },
    ];
    let request = |command| RequestScript {
        command,
        flags: 0,
        offset: 4096,
        length: 512,
        fill: 3,
    };
    let mut servers: Vec<(&str, Vec<Action>)> = vec![
        ("valid", (0..8).chain([0, 0]).map(valid).collect()),
        (
            "edges",
            (0..8)
                .flat_map(|command| (0..4).map(move |one| edge(command, one)))
                .collect(),
        ),
        (
            "options",
            options
                .iter()
                .cloned()
                .map(|option| Action::Option { option })
                .collect(),
        ),
        (
            "data",
            (0..11)
                .map(|option| Action::OptionWithData {
                    option,
                    data: vec![0; 33],
                })
                .collect(),
        ),
        (
            "unknown",
            (8..20)
                .map(|command| Action::Request {
                    request: request(command),
                })
                .collect(),
        ),
    ];
    let mut mutated = Vec::new();
    for mutation in &mutations {
        for option in &options {
            let (option, mutation) = (option.clone(), mutation.clone());
            mutated.push(Action::MutatedOption { option, mutation });
        }
        for command in [0, 1, 7] {
            let (request, mutation) = (request(command), mutation.clone());
            mutated.push(Action::MutatedRequest { request, mutation });
        }
    }
    servers.push(("mutated", mutated));
    let mut seeds = Vec::new();
    for (name, actions) in servers {
        for framing in 0..3 {
            let script = ServerScript {
                client_flags: 0,
                framing,
                status: true,
                export_name: framing == 0,
                pieces: list(if framing == 1 { &[1, 7] } else { &[] }),
                actions: Rest(actions.clone()),
            };
            seeds.push((format!("server/{name}-{framing}"), write(&script)));
        }
    }
    for framing in 0..3 {
        let mutated = |mutation: &Mutation| Reaction::Mutated {
            mutation: mutation.clone(),
        };
        let later = |reaction| vec![Reaction::Correct { messages: 9 }, reaction];
        let mut reactions = vec![
            ("correct", vec![]),
            (
                "fails",
                vec![
                    Reaction::Correct { messages: 7 },
                    Reaction::Fail { error: 0 },
                ],
            ),
            ("cut", later(Reaction::Cut { after: 12 })),
        ];
        for (name, mutation) in ["length", "larger", "flip", "insert"]
            .iter()
            .zip(&mutations)
        {
            reactions.push((name, later(mutated(mutation))));
        }
        for (name, reactions) in reactions {
            let script = ClientScript {
                framing,
                fragments: true,
                export: 0,
                pieces: list(if framing == 1 { &[1, 7] } else { &[] }),
                actions: Rest(reactions),
            };
            seeds.push((format!("client/{name}-{framing}"), write(&script)));
        }
    }
    seeds
}

/// `NBD_FUZZ_UPDATE=1` writes the files.
#[test]
fn the_seed_corpus_is_complete() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let update = std::env::var_os("NBD_FUZZ_UPDATE").is_some();
    for (name, bytes) in seeds() {
        let path = corpus.join(&name);
        if update {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(&path, &bytes).expect("a seed");
        }
        assert_eq!(std::fs::read(&path).expect("a seed"), bytes, "{name}");
    }
}

#[test]
fn the_seeds_find_nothing_in_programs_without_faults() {
    for (name, bytes) in seeds() {
        if name.starts_with("server/") {
            let server = Server::new(Fault::None);
            let script: ServerScript = read(&bytes);
            let result = Fuzz::new().server(&script, |stream| faulty::serve(stream, &server));
            result.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        } else {
            let script: ClientScript = read(&bytes);
            script.attack(|stream, disk| example::write_and_read(stream, disk));
        }
    }
}

/// A server that runs elsewhere: nbd-io with threads, over a socket.
#[cfg(unix)]
#[test]
fn the_server_of_nbd_io_passes() {
    use std::os::unix::net::UnixStream;

    use nbd_io::server::{Config, Export, Exports, Peer, Server};

    let exports = Exports::new().with(Export::new("disk", Memory(Mutex::new(vec![7; 1 << 16]))));
    let server = Server::new(exports, Config::new());
    assert_none(fuzz(many() / 10, |script: &ServerScript| {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        // Far more than a reply takes.
        ours.set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a limit");
        std::thread::scope(|scope| {
            scope.spawn(|| nbd_io::blocking::serve(theirs, Peer::Unix, &server));
            Fuzz::new().export("disk").connection(script, ours)
        })
    }));
}

#[cfg(unix)]
struct Memory(Mutex<Vec<u8>>);

#[cfg(unix)]
impl nbd_io::server::Device for Memory {
    fn size(&self) -> u64 {
        1 << 16
    }

    async fn read(
        &self,
        offset: u64,
        reply: &mut nbd_io::server::ReadReply,
    ) -> std::io::Result<()> {
        let memory = self.0.lock().expect("no thread panics with it");
        reply.put(&memory[offset as usize..][..reply.remaining()]);
        Ok(())
    }

    async fn write(&self, offset: u64, data: nbd_io::server::Bytes) -> std::io::Result<()> {
        let mut memory = self.0.lock().expect("no thread panics with it");
        memory[offset as usize..][..data.len()].copy_from_slice(&data);
        Ok(())
    }
}

/// The dictionary has the magic numbers and every option and command.
#[test]
fn the_dictionary_has_every_magic_number() {
    use nbd_codec::wire::{reply, request};
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/nbd.dict");
    let text = std::fs::read_to_string(path).expect("the dictionary");
    let hex = |magic: u32| {
        let bytes = magic.to_be_bytes();
        bytes.map(|byte| format!("\\x{byte:02x}")).concat()
    };
    for magic in [
        request::REQUEST_MAGIC,
        request::EXTENDED_REQUEST_MAGIC,
        reply::SIMPLE_REPLY_MAGIC,
        reply::STRUCTURED_REPLY_MAGIC,
        reply::EXTENDED_REPLY_MAGIC,
    ] {
        assert!(text.contains(&format!("=\"{}\"", hex(magic))), "{magic:#x}");
    }
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let entry = line.split_once("=\"").and_then(|(name, value)| {
            let value = value.strip_suffix('"')?;
            Some(!name.is_empty() && !value.is_empty())
        });
        assert_eq!(entry, Some(true), "{line}");
    }
}
