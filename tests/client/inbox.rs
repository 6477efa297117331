//! The receive buffers of the crate, as a driver uses them.

use std::num::NonZeroUsize;

use nbd_codec::client::{Config, ConnectEvent, Connector, Handshake, Request, TransmissionEvent};
use nbd_codec::inbox::Inbox;
use nbd_codec::wire::number::OptionType;
use nbd_codec::{Error, Framing, Limits, Misuse, Step};

use super::connect::{GREETED, connect};
use super::machines::{Client, export};
use super::script::{self, NoCommands};
use super::transcript::once;

/// After a read of 4 bytes.
fn reading(framing: Framing) -> (Client, Vec<u8>) {
    let mut client = Client::new(export(framing));
    once(&mut client, "C: READ 0 4");
    let reply = script::server("last OFFSET_DATA #0 0:64 01020304", &client);
    (client, reply)
}

/// A buffer that is too small: the error says how large it has to be, and the
/// session goes on with a larger one.
#[test]
fn a_full_buffer_is_not_the_end() {
    let (mut client, reply) = reading(Framing::Structured);
    let mut small = Inbox::new([0; 16]);
    small.space().copy_from_slice(&reply[..16]);
    assert_eq!(small.filled(16), Ok(()));
    for _ in 0..2 {
        // The header alone has 20 bytes.
        let full = small.receive(&mut client.machine).unwrap_err();
        assert_eq!(full, Error::BufferFull { needed: 20 });
        assert!(!full.is_fatal());
        assert_eq!(small.held(), &reply[..16]);
    }
    let mut large = Inbox::new(vec![0; 64]);
    large.space()[..reply.len()].copy_from_slice(&reply);
    assert_eq!(large.filled(reply.len()), Ok(()));
    let mut block = [0; 4];
    loop {
        match large.receive(&mut client.machine).unwrap() {
            Step::Content(content) => assert!(content.copy_to(0, &mut block)),
            Step::Event(event) => {
                assert!(matches!(
                    event,
                    TransmissionEvent::Done { result: Ok(()), .. }
                ));
                break;
            }
            step => panic!("{:?}", step.unexpected()),
        }
    }
    assert_eq!(block, [1, 2, 3, 4]);
    assert!(large.held().is_empty());
}

/// More bytes than there was space for.
#[test]
fn overfilled() {
    let mut inbox = Inbox::new([0; 16]);
    let refused = Err(Misuse::Overfilled { space: 16 });
    assert_eq!(inbox.filled(17), refused);
    assert_eq!(inbox.filled(usize::MAX), refused);
    assert_eq!(inbox.filled(10), Ok(()));
    assert_eq!(inbox.filled(7), Err(Misuse::Overfilled { space: 6 }));
    assert_eq!(inbox.held().len(), 10);
    assert_eq!(inbox.space().len(), 6);
    let n = NonZeroUsize::new(4).unwrap();
    assert_eq!(inbox.space_for(n).len(), 4);
    assert_eq!(inbox.filled(6), Ok(()));
    assert!(inbox.space_for(n).is_empty());
    // No space: zero bytes are not the end of the input.
    assert_eq!(inbox.filled(0), Ok(()));
    let mut handshake = Handshake::new(&Config::new(""));
    assert_ne!(inbox.receive(&mut handshake), Err(Error::Closed));
}

/// Without space nothing is read, and the connection is not taken for closed.
#[test]
fn no_space_to_fill() {
    let mut inbox = Inbox::new([0; 16]);
    let n = NonZeroUsize::new(40).unwrap();
    let read = |space: &mut [u8]| {
        assert_eq!(space.len(), 16);
        Ok::<_, ()>(16)
    };
    assert_eq!(inbox.fill(n, read), Ok(16));
    assert_eq!(
        inbox.fill(n, |_| -> Result<_, ()> { panic!("read without space") }),
        Ok(0)
    );
    let mut handshake = Handshake::new(&Config::new(""));
    assert_ne!(inbox.receive(&mut handshake), Err(Error::Closed));
}

/// Zero bytes that are reported close the connection, as a read of zero bytes
/// does; an error of the reader does not.
#[test]
fn zero_bytes_close() {
    let closed = |close: fn(&mut Inbox<[u8; 64]>)| {
        let mut inbox = Inbox::new([0; 64]);
        close(&mut inbox);
        let mut handshake = Handshake::new(&Config::new(""));
        let step = inbox.receive(&mut handshake);
        step == Err(Error::Closed)
    };
    assert!(closed(|inbox| assert_eq!(inbox.filled(0), Ok(()))));
    assert!(closed(|inbox| {
        assert_eq!(inbox.fill(NonZeroUsize::MIN, |_| Ok::<_, ()>(0)), Ok(0));
    }));
    assert!(!closed(|inbox| {
        assert_eq!(
            inbox.fill(NonZeroUsize::MIN, |_| Err("interrupted")),
            Err("interrupted")
        );
    }));
    assert!(!closed(|_| {}));
}

/// Events and content borrow the inbox, not the state machine: a command is
/// submitted while one is held.
#[test]
fn submitting_while_an_event_is_held() {
    let (mut client, reply) = reading(Framing::Structured);
    let mut inbox = Inbox::new([0; 64]);
    inbox.space()[..reply.len()].copy_from_slice(&reply);
    inbox.filled(reply.len()).unwrap();
    let Ok(Step::Content(content)) = inbox.receive(&mut client.machine) else {
        panic!("no content");
    };
    assert!(client.machine.submit(Request::flush()).is_ok());
    let Ok(Step::Event(event)) = inbox.receive(&mut client.machine) else {
        panic!("no event");
    };
    assert!(client.machine.submit(Request::read(0, 512)).is_ok());
    assert!(matches!(
        event,
        TransmissionEvent::Done { result: Ok(()), .. }
    ));
    let mut block = [0; 4];
    assert!(content.copy_to(0, &mut block));
    assert_eq!(block, [1, 2, 3, 4]);
    assert_eq!(client.machine.in_flight(), 2);
}

/// A read of zero bytes, wherever the connection is.
#[test]
fn the_peer_closes_the_connection() {
    let zero = |inbox: &mut Inbox<[u8; 64]>| {
        let n = inbox.fill(NonZeroUsize::MIN, |_| Ok::<_, ()>(0));
        assert_eq!(n, Ok(0));
    };
    // Before the greeting.
    let mut inbox = Inbox::new([0; 64]);
    let mut connector = Connector::new(Config::new("")).unwrap();
    zero(&mut inbox);
    for _ in 0..2 {
        assert_eq!(inbox.receive(&mut connector), Err(Error::Closed));
    }
    // During an option.
    let mut inbox = Inbox::new([0; 64]);
    let sent = format!("{GREETED}C: opt EXTENDED_HEADERS\n");
    let mut connector = connect(Config::new(""), &sent);
    zero(&mut inbox);
    let during = Error::ClosedDuring(OptionType::EXTENDED_HEADERS);
    for _ in 0..2 {
        assert_eq!(inbox.receive(&mut connector), Err(during));
    }
    // In every byte of a reply. What arrived before is still delivered.
    for framing in [Framing::Structured, Framing::Extended] {
        for end in 0..reading(framing).1.len() {
            let (mut client, reply) = reading(framing);
            let mut inbox = Inbox::new([0; 64]);
            inbox.space()[..end].copy_from_slice(&reply[..end]);
            inbox.filled(end).unwrap();
            zero(&mut inbox);
            let mut content = 0;
            let closed = loop {
                match inbox.receive(&mut client.machine) {
                    Ok(Step::Content(piece)) => content += piece.length(),
                    Ok(step) => panic!("{step:?}"),
                    Err(error) => break error,
                }
            };
            assert_eq!(closed, Error::Closed);
            let payload = reply.len() - 4;
            assert_eq!(content, end.saturating_sub(payload) as u64);
            let unanswered = client.machine.pop_unanswered();
            assert_eq!(unanswered, Some(client.sent[0].0));
        }
    }
}

/// The loop of the documentation, with a server that replies byte by byte.
#[test]
fn a_handshake_through_an_inbox() {
    let mut replies = [
        r#""NBDMAGIC" "IHAVEOPT" 3:16"#,
        "",
        "rep EXTENDED_HEADERS ACK",
        "rep GO INFO EXPORT:16 1M:64 1:16\nrep GO ACK",
    ]
    .iter()
    .map(|lines| -> Vec<u8> {
        let lines = lines.lines();
        lines
            .flat_map(|line| script::server(line, &NoCommands))
            .collect()
    });
    let limits = Limits::for_buffer(64);
    let mut connector = Connector::new(Config::new("disk").limits(limits)).unwrap();
    let mut inbox = Inbox::new([0; 64]);
    let mut unread = replies.next().unwrap();
    let mut messages = 0;
    let mut ready = false;
    loop {
        match inbox.receive(&mut connector).unwrap() {
            Step::Event(event) => ready |= event == ConnectEvent::Ready,
            Step::Transmit => {
                let mut out = [0; 64];
                messages += usize::from(connector.transmit(&mut &mut out[..]).unwrap() > 0);
                unread.extend(replies.next().unwrap());
            }
            Step::Read(n) => {
                let read = |space: &mut [u8]| {
                    assert!(!space.is_empty() && space.len() <= n.get());
                    space[0] = unread.remove(0);
                    Ok::<_, ()>(1)
                };
                assert_eq!(inbox.fill(n, read), Ok(1));
            }
            Step::Finished => break,
            step => panic!("{:?}", step.unexpected()),
        }
    }
    assert!(ready && unread.is_empty());
    assert_eq!(messages, 3);
    assert_eq!(connector.into_negotiated().unwrap().size, 1 << 20);
}

/// Where the client has to send first, the error is returned again and is not
/// fatal.
#[test]
fn unanswered_is_not_the_end() {
    let mut inbox = Inbox::new([0; 64]);
    let greeting = script::server(r#""NBDMAGIC" "IHAVEOPT" 3:16"#, &NoCommands);
    inbox.space()[..18].copy_from_slice(&greeting);
    inbox.filled(18).unwrap();
    let mut handshake = Handshake::new(&Config::new(""));
    assert!(matches!(inbox.receive(&mut handshake), Ok(Step::Event(_))));
    for _ in 0..3 {
        let error = inbox.receive(&mut handshake).unwrap_err();
        assert_eq!(error, Error::Unanswered);
        assert!(!error.is_fatal());
    }
}

#[cfg(feature = "alloc")]
mod owned {
    use bytes::{Bytes, BytesMut};
    use nbd_codec::client::OwnedTransmissionEvent as Owned;
    use nbd_codec::inbox::{BytesInbox, Payloads, receive_owned};
    use nbd_codec::wire::extent::{Extent32, Extents32};
    use nbd_codec::{Content, Error, Framing, Step};

    use super::super::machines::{Client, with_contexts};
    use super::super::script;
    use super::super::transcript::once;

    /// A read, block status and a failed flush, and the replies to them.
    fn session() -> (Client, Vec<u8>) {
        let mut client = Client::new(with_contexts(Framing::Structured, 1));
        once(&mut client, "C: READ 4K 1K\nC: STATUS 0 1M\nC: FLUSH");
        let replies = [
            "chunk OFFSET_DATA #0 4096:64 01*500",
            "chunk OFFSET_HOLE #0 4596:64 24:32",
            "last OFFSET_DATA #0 4620:64 02*500",
            "last BLOCK_STATUS #1 1:32 4K:32 3:32 60K:32 0:32",
            "last ERROR #2 EIO:32 4:16 \"oops\"",
        ];
        let replies = replies
            .iter()
            .flat_map(|line| script::server(line, &client));
        let replies = replies.collect();
        (client, replies)
    }

    /// What the steps brought: content in place, its pieces, extents, messages,
    /// and how many commands are done.
    #[derive(Debug, PartialEq, Default)]
    struct Seen {
        block: Vec<u8>,
        pieces: Vec<u64>,
        extents: Vec<Extent32>,
        messages: Vec<Option<Bytes>>,
        done: usize,
    }

    impl Seen {
        fn take(&mut self, step: Step<Owned, Bytes>) {
            match step {
                Step::Content(content) => {
                    self.block.resize(1024, 0xff);
                    assert!(content.copy_to(4096, &mut self.block));
                    if let Content::Data { data, .. } = content {
                        self.pieces.push(data.len() as u64);
                    }
                }
                Step::Event(Owned::Extents32 { extents, .. }) => {
                    let (list, left) = Extents32::split(&extents);
                    assert!(left.is_empty());
                    self.extents.extend(list);
                }
                Step::Event(Owned::Error { message, .. }) => self.messages.push(message),
                Step::Event(Owned::Done { .. }) => self.done += 1,
                other => panic!("{:?}", other.unexpected()),
            }
        }
    }

    /// Owned events say what borrowed ones say, in every fragmentation.
    #[test]
    fn owned_events_in_every_fragmentation() {
        let length = session().1.len();
        for payloads in [Payloads::Fragments, Payloads::Whole] {
            for size in [1, 3, 7, 64, 300, length] {
                let (mut client, replies) = session();
                let mut inbox = BytesInbox::new(payloads);
                let mut seen = Seen::default();
                for piece in replies.chunks(size) {
                    inbox.buffer().extend_from_slice(piece);
                    loop {
                        match inbox.receive(&mut client.machine).unwrap() {
                            step @ (Step::Event(_) | Step::Content(_)) => seen.take(step),
                            step => {
                                assert!(step.read_limit().is_some(), "{step:?}");
                                break;
                            }
                        }
                    }
                }
                let case = format!("{payloads:?} in pieces of {size}");
                let block = [[1; 500].as_slice(), &[0; 24], &[2; 500]].concat();
                assert_eq!(seen.block, block, "{case}");
                let extent = |length, flags| Extent32 { length, flags };
                assert_eq!(seen.extents, [extent(4096, 3), extent(61_440, 0)], "{case}");
                assert_eq!(seen.messages, [Some(Bytes::from_static(b"oops"))], "{case}");
                assert_eq!(seen.done, 3, "{case}");
                assert!(inbox.buffer().is_empty());
                if payloads == Payloads::Whole || size == length {
                    assert_eq!(seen.pieces, [500, 500], "{case}");
                }
                inbox.close();
                let step = inbox.receive(&mut client.machine);
                assert_eq!(step, Ok(Step::Finished));
            }
        }
    }

    /// No payload is copied: the data shares the memory of the buffer.
    #[test]
    fn data_shares_the_memory_of_the_buffer() {
        let (mut client, replies) = session();
        let mut buffer = BytesMut::from(&replies[..]);
        let memory = buffer.as_ptr_range();
        let step = receive_owned(&mut client.machine, &mut buffer, Payloads::Fragments);
        let Ok(Step::Content(Content::Data { data, offset, .. })) = step else {
            panic!("{step:?}");
        };
        assert_eq!((offset, data.len()), (4096, 500));
        // 20 bytes of header, 8 of offset.
        assert_eq!(data.as_ptr(), memory.start.wrapping_add(28));
    }

    /// A whole payload that arrived in many pieces is one piece, in the memory
    /// of the buffer.
    #[test]
    fn a_whole_payload_shares_the_memory_of_the_buffer() {
        for size in [1, 3, 100, 527, 528] {
            let (mut client, replies) = session();
            let mut buffer = BytesMut::with_capacity(8192);
            let memory = buffer.as_ptr_range().start;
            let mut seen = None;
            // Header, offset and data.
            for piece in replies[..528].chunks(size) {
                buffer.extend_from_slice(piece);
                assert_eq!(seen, None, "before the payload is whole");
                match receive_owned(&mut client.machine, &mut buffer, Payloads::Whole).unwrap() {
                    Step::Content(Content::Data { offset, data, .. }) => {
                        assert_eq!(data.as_ptr(), memory.wrapping_add(28));
                        seen = Some((offset, data));
                    }
                    // What is missing of the payload, or of its header.
                    step => assert!(step.read_limit().unwrap().get() <= 500, "{step:?}"),
                }
            }
            assert_eq!(seen, Some((4096, Bytes::from(vec![1; 500]))), "{size}");
            assert!(buffer.is_empty());
        }
    }

    /// A connection that is closed within a payload.
    #[test]
    fn closed_in_a_payload() {
        for payloads in [Payloads::Fragments, Payloads::Whole] {
            let (mut client, replies) = session();
            let mut inbox = BytesInbox::new(payloads);
            inbox.buffer().extend_from_slice(&replies[..128]);
            inbox.close();
            let mut closed = None;
            while closed.is_none() {
                closed = inbox.receive(&mut client.machine).err();
            }
            assert_eq!(closed, Some(Error::Closed));
        }
    }
}
