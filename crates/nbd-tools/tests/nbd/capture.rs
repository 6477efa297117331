//! Captures of packets, made from the lines of a session.

use etherparse::PacketBuilder;

use super::transcripts::Line;

/// The two formats, with a link of its own each.
#[derive(Clone, Copy)]
pub enum Packets {
    /// Ethernet, IPv4.
    Pcap,
    /// IPv6 without a link.
    PcapNg,
}

/// A TCP segment.
#[derive(Clone)]
pub struct Packet {
    from_client: bool,
    syn: bool,
    fin: bool,
    sequence: u32,
    acknowledged: u32,
    data: Vec<u8>,
}

/// The first sequence numbers, close to their end: they start over.
const FIRST: [u32; 2] = [0xffff_fff0, 0xffff_ff00];

/// A connection from SYN on, in segments of at most 1000 bytes.
pub fn in_order(lines: &[Line]) -> Vec<Packet> {
    let mut next = FIRST;
    let mut packets = Vec::new();
    for from_client in [true, false] {
        let at = usize::from(!from_client);
        packets.push(packet(from_client, &next, &[]));
        packets.last_mut().expect("a packet").syn = true;
        next[at] = next[at].wrapping_add(1);
    }
    for (from_client, bytes) in lines {
        let at = usize::from(!*from_client);
        for data in bytes.chunks(1000) {
            packets.push(packet(*from_client, &next, data));
            next[at] = next[at].wrapping_add(u32::try_from(data.len()).expect("a segment"));
        }
    }
    // The client closes first.
    for from_client in [true, false] {
        packets.push(packet(from_client, &next, &[]));
        packets.last_mut().expect("a packet").fin = true;
        let at = usize::from(!from_client);
        next[at] = next[at].wrapping_add(1);
    }
    packets
}

fn packet(from_client: bool, next: &[u32; 2], data: &[u8]) -> Packet {
    let (own, other) = (usize::from(!from_client), usize::from(from_client));
    Packet {
        from_client,
        syn: false,
        fin: false,
        sequence: next[own],
        acknowledged: next[other],
        data: data.to_vec(),
    }
}

/// The same connection as a bad network has it: every third segment after the next
/// one, some twice, some in pieces that overlap. The capture begins without SYN.
pub fn jumbled(lines: &[Line]) -> Vec<Packet> {
    let mut packets = in_order(lines);
    packets.drain(..2);
    let mut jumbled = Vec::new();
    // The first segment says where the stream begins.
    for (n, packet) in packets.iter().enumerate() {
        match n % 3 {
            1 if packet.data.len() > 10 => {
                let split = |from: usize, to: usize| Packet {
                    sequence: packet
                        .sequence
                        .wrapping_add(u32::try_from(from).expect("a place")),
                    data: packet.data[from..to].to_vec(),
                    ..packet.clone()
                };
                jumbled.push(split(0, 8));
                jumbled.push(split(4, packet.data.len()));
            }
            2 => jumbled.extend([packet.clone(), packet.clone()]),
            _ => jumbled.push(packet.clone()),
        }
    }
    for at in (4..jumbled.len().saturating_sub(1)).step_by(3) {
        jumbled.swap(at, at + 1);
    }
    jumbled
}

impl Packets {
    pub fn file(self, packets: &[Packet]) -> Vec<u8> {
        let mut file = match self {
            Self::Pcap => {
                let mut header = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
                header.extend([2, 0, 4, 0]);
                header.extend([0; 8]);
                header.extend(65_535_u32.to_le_bytes());
                header.extend(1_u32.to_le_bytes());
                header
            }
            Self::PcapNg => {
                let mut blocks = block(0x0a0d_0d0a, &{
                    let mut body = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
                    body.extend([1, 0, 0, 0]);
                    body.extend([0xff; 8]);
                    body
                });
                // LINKTYPE_RAW
                blocks.extend(block(1, &[101, 0, 0, 0, 0, 0, 0, 0]));
                blocks
            }
        };
        for packet in packets {
            let bytes = self.bytes(packet);
            let length = u32::try_from(bytes.len()).expect("a packet").to_le_bytes();
            let mut record = Vec::new();
            match self {
                Self::Pcap => {
                    record.extend([0; 8]);
                    record.extend(length);
                    record.extend(length);
                    record.extend(bytes);
                }
                Self::PcapNg => {
                    let mut body = vec![0; 12];
                    body.extend(length);
                    body.extend(length);
                    body.extend(bytes);
                    record = block(6, &body);
                }
            }
            file.extend(record);
        }
        file
    }

    fn bytes(self, packet: &Packet) -> Vec<u8> {
        let ports = if packet.from_client {
            (40_000, 10_809)
        } else {
            (10_809, 40_000)
        };
        let (from, to) = if packet.from_client { (1, 2) } else { (2, 1) };
        let start = match self {
            Self::Pcap => {
                PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([10, 0, 0, from], [10, 0, 0, to], 64)
            }
            Self::PcapNg => {
                let address = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
                PacketBuilder::ipv6(address(from), address(to), 64)
            }
        };
        let mut step = start.tcp(ports.0, ports.1, packet.sequence, 65_535);
        if packet.syn {
            step = step.syn();
        }
        if packet.fin {
            step = step.fin();
        }
        if !packet.syn || !packet.from_client {
            step = step.ack(packet.acknowledged);
        }
        let mut bytes = Vec::new();
        step.write(&mut bytes, &packet.data).expect("a packet");
        bytes
    }
}

/// A block of pcapng, padded.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padding = body.len().next_multiple_of(4) - body.len();
    let length = u32::try_from(body.len() + padding + 12)
        .expect("a block")
        .to_le_bytes();
    let mut block = kind.to_le_bytes().to_vec();
    block.extend(length);
    block.extend(body);
    block.extend(vec![0; padding]);
    block.extend(length);
    block
}
