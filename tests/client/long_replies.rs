//! Option replies that are longer than the limit.

use nbd_codec::client::Config;

use super::machines::{FIXED_NEWSTYLE, LIMITS, Manual, fixed_newstyle};
use super::options::negotiated_after;
use super::transcript::play;

/// The data of a reply that is longer than the limit is discarded; what its type
/// says holds all the same.
#[test]
fn long_replies_are_discarded() {
    fixed_newstyle(
        r#"
        C: opt LIST
        S: rep LIST SERVER 4:32 "disk" 64*37
        S: rep LIST SERVER 4:32 "disk" 64*36
        S: rep LIST SERVER 4096:32 6e*4096 64*4096
        S: rep LIST ACK
        E: Discarded { reply: NBD_REP_SERVER, length: 45 }
        E: Server { name: "disk", description: "dddddddddddddddddddddddddddddddddddd" }
        E: Discarded { reply: NBD_REP_SERVER, length: 8196 }
        E: Ack(NBD_OPT_LIST)
        C: opt LIST
        S: rep LIST ERR_POLICY 78*300
        E: Refused { option: NBD_OPT_LIST, error: NBD_REP_ERR_POLICY, message: None }
        C: opt LIST
        S: rep LIST ACK len=300 00*20
        ! Decode(Trailing { message: "NBD_REP_ACK" })
        "#,
    );
    let agreed = negotiated_after(
        r#"
        C: opt STRUCTURED_REPLY
        S: rep STRUCTURED_REPLY ACK
        C: opt SET_META_CONTEXT 0:32 1:32 2:32 "x:"
        S: rep SET_META_CONTEXT META_CONTEXT 5:32 78*4096
        S: rep SET_META_CONTEXT META_CONTEXT 6:32 "x:b"
        S: rep SET_META_CONTEXT ACK
        C: opt GO 0:32 0:16
        S: rep GO INFO DESCRIPTION:16 64*4096
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
        "#,
    );
    let ids: Vec<u32> = agreed.contexts.iter().map(|c| c.id.0).collect();
    assert_eq!(ids, [5, 6]);
    assert_eq!(agreed.size, 1 << 20);
}

/// The smallest limit.
#[test]
fn every_reply_is_too_long() {
    let mut limits = LIMITS;
    limits.option_data = 0;
    let transcript = format!(
        r#"{FIXED_NEWSTYLE}
        C: opt STRUCTURED_REPLY
        S: rep STRUCTURED_REPLY ACK
        E: Ack(NBD_OPT_STRUCTURED_REPLY)
        C: opt SET_META_CONTEXT 0:32 1:32 2:32 "x:"
        S: rep SET_META_CONTEXT META_CONTEXT 5:32 "x:a"
        S: rep SET_META_CONTEXT META_CONTEXT 6:32
        S: rep SET_META_CONTEXT ACK
        E: Discarded {{ reply: NBD_REP_META_CONTEXT, length: 7 }}
        E: Discarded {{ reply: NBD_REP_META_CONTEXT, length: 4 }}
        E: Ack(NBD_OPT_SET_META_CONTEXT)
        C: opt LIST
        S: rep LIST ERR_POLICY "x"
        E: Refused {{ option: NBD_OPT_LIST, error: NBD_REP_ERR_POLICY, message: None }}
        C: opt SET_META_CONTEXT 0:32 1:32 2:32 "x:"
        S: rep SET_META_CONTEXT META_CONTEXT 000000
        S: rep SET_META_CONTEXT ACK
        ! Decode(Overrun {{ message: "NBD_REP_META_CONTEXT" }})
        "#
    );
    let start = || Manual::with_limits(Config::new(""), limits).with_buffer(24);
    play(start, &transcript);
}

/// Size and block sizes are taken whatever the limit is: 34 bytes of buffer are
/// enough for any export.
#[test]
fn size_and_block_sizes_are_never_discarded() {
    let mut limits = LIMITS;
    limits.option_data = 0;
    let transcript = format!(
        r#"{FIXED_NEWSTYLE}
        C: opt GO 0:32 1:16 BLOCK_SIZE:16
        S: rep GO INFO DESCRIPTION:16 64*100
        S: rep GO INFO BLOCK_SIZE:16 512:32 4096:32 1M:32
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
        E: Discarded {{ reply: NBD_REP_INFO, length: 102 }}
        E: Info(BlockSize(BlockSizes {{ minimum: 512, preferred: 4096, maximum: 1048576 }}))
        E: Info(Export {{ size: 1048576, flags: TransmissionFlags(HAS_FLAGS) }})
        E: Ack(NBD_OPT_GO)
        E: Ready
        "#
    );
    let start = || Manual::with_limits(Config::new(""), limits).with_buffer(34);
    play(start, &transcript);
}
