//! Captures of packets: pcap and pcapng.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow, bail};
use etherparse::{EtherType, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use pcap_parser::data::{PacketData, get_packetdata};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};

use super::stream::{Connection, Segment};
use super::transcript::{Style, Transcript, colours};
use crate::{stderr, stdout};

/// Whether a file begins like a capture.
pub fn is_capture(magic: &[u8]) -> bool {
    const MAGIC: [u32; 5] = [
        0xa1b2_c3d4,
        0xd4c3_b2a1,
        0xa1b2_3c4d,
        0x4d3c_b2a1,
        0x0a0d_0d0a,
    ];
    let word = magic.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    word.is_some_and(|word| MAGIC.contains(&word))
}

/// Longer packets are not captured: more than a segment that a network card splits.
const LONGEST: usize = 1 << 20;

/// Prints the transcripts of all NBD connections; returns how many rules were broken.
pub fn decode(file: impl Read + Send, style: Style) -> Result<u64> {
    let mut reader = create_reader(LONGEST, file).map_err(broken)?;
    let mut connections = Connections::new(style);
    let mut links = Vec::new();
    loop {
        match reader.next() {
            Ok((size, block)) => {
                connections.block(&block, &mut links)?;
                reader.consume(size);
                continue;
            }
            Err(PcapError::Eof) => break,
            Err(PcapError::Incomplete(_) | PcapError::UnexpectedEof) => {}
            Err(error) => return Err(broken(error)),
        }
        if reader.reader_exhausted() {
            stderr::warn("the capture ends within a packet");
            break;
        }
        reader.refill().map_err(broken)?;
    }
    connections.finish()
}

fn broken(error: PcapError<&[u8]>) -> anyhow::Error {
    match error {
        PcapError::BufferTooSmall => anyhow!("a packet of more than {LONGEST} bytes"),
        PcapError::ReadError => anyhow!("cannot read the capture"),
        _ => anyhow!("the capture is damaged"),
    }
}

/// How the transcript of a connection starts.
#[derive(Clone, Copy)]
struct Start {
    style: Style,
    colours: bool,
}

impl Start {
    /// Numbers each connection that is one of NBD.
    fn numbered(self, count: &mut u64) -> impl FnMut() -> Transcript {
        move || {
            *count = count.saturating_add(1);
            Transcript::new(*count, self.style, self.colours)
        }
    }
}

/// The connections of a capture, by the addresses of both ends.
struct Connections {
    start: Start,
    open: BTreeMap<(SocketAddr, SocketAddr), Connection>,
    /// How many spoke NBD.
    count: u64,
    broken: u64,
}

impl Connections {
    fn new(style: Style) -> Self {
        Self {
            start: Start {
                style,
                colours: colours(),
            },
            open: BTreeMap::new(),
            count: 0,
            broken: 0,
        }
    }

    fn block(&mut self, block: &PcapBlockOwned<'_>, links: &mut Vec<Linktype>) -> Result<()> {
        let (link, packet) = match block {
            PcapBlockOwned::LegacyHeader(header) => {
                *links = vec![header.network];
                return Ok(());
            }
            PcapBlockOwned::Legacy(packet) => (links.first(), packet.data),
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                links.clear();
                return Ok(());
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                links.push(interface.linktype);
                return Ok(());
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let interface = usize::try_from(packet.if_id).context("an interface")?;
                let length = usize::try_from(packet.caplen).context("a length")?;
                let data = packet.data.get(..length).unwrap_or(packet.data);
                (links.get(interface), data)
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => (links.first(), packet.data),
            PcapBlockOwned::NG(_) => return Ok(()),
        };
        let Some(link) = link else {
            bail!("a packet of an interface that the capture does not describe");
        };
        self.packet(*link, packet)
    }

    fn packet(&mut self, link: Linktype, data: &[u8]) -> Result<()> {
        let packet = match get_packetdata(data, link, data.len()) {
            Some(PacketData::L2(frame)) => LaxSlicedPacket::from_ethernet(frame).ok(),
            Some(PacketData::L3(kind, packet)) => {
                Some(LaxSlicedPacket::from_ether_type(EtherType(kind), packet))
            }
            Some(PacketData::L4(..)) | None => None,
            Some(PacketData::Unsupported(_)) => {
                bail!("link type {} is not supported", link.0);
            }
        };
        let Some((from, to, segment)) = packet.as_ref().and_then(segment) else {
            return Ok(());
        };
        let key = (from.min(to), from.max(to));
        // The same addresses can be used again.
        if segment.begins && self.open.get(&key).is_some_and(Connection::is_over) {
            self.close(key)?;
        }
        let connection = self.open.entry(key).or_default();
        let mut start = self.start.numbered(&mut self.count);
        connection.segment(from == key.0, &segment, &mut start);
        stdout::write(connection.take().as_bytes())
    }

    fn close(&mut self, key: (SocketAddr, SocketAddr)) -> Result<()> {
        let Some(mut connection) = self.open.remove(&key) else {
            return Ok(());
        };
        connection.finish(&mut self.start.numbered(&mut self.count));
        self.broken = self.broken.saturating_add(connection.broken());
        stdout::write(connection.take().as_bytes())
    }

    fn finish(mut self) -> Result<u64> {
        while let Some(key) = self.open.keys().next() {
            self.close(*key)?;
        }
        match self.count {
            0 => bail!("no NBD connection, seen from its beginning, in the capture"),
            _ => Ok(self.broken),
        }
    }
}

/// The TCP segment in a packet, and its ends.
fn segment<'p>(packet: &LaxSlicedPacket<'p>) -> Option<(SocketAddr, SocketAddr, Segment<'p>)> {
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        return None;
    };
    let (from, to): (IpAddr, IpAddr) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let segment = Segment {
        begins: tcp.syn(),
        ends: tcp.fin() || tcp.rst(),
        sequence: tcp.sequence_number(),
        acknowledged: tcp.ack().then(|| tcp.acknowledgment_number()),
        data: tcp.payload(),
    };
    let from = SocketAddr::new(from, tcp.source_port());
    Some((from, SocketAddr::new(to, tcp.destination_port()), segment))
}
