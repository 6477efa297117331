//! Every option of a manual handshake, with every reply it has.

use nbd_codec::client::Config;
use nbd_codec::wire::number::ContextId;
use nbd_codec::{Framing, Negotiated, SelectedContext, SelectedContexts, StatusWidth, Step};

use super::greetings::negotiated;
use super::machines::{FIXED_NEWSTYLE, Manual, fixed_newstyle};
use super::transcript::{Machine, once};

/// What is negotiated after these lines, which follow the client flags.
pub(crate) fn negotiated_after(lines: &str) -> Negotiated {
    negotiated(&format!("{FIXED_NEWSTYLE}{lines}"))
}

#[test]
fn list() {
    fixed_newstyle(
        r#"
        C: opt LIST
        S: rep LIST SERVER 4:32 "disk" "a small disk"
        S: rep LIST SERVER 0:32
        S: rep LIST SERVER 5:32 "other"
        S: rep LIST ACK
        E: Server { name: "disk", description: "a small disk" }
        E: Server { name: "", description: "" }
        E: Server { name: "other", description: "" }
        E: Ack(NBD_OPT_LIST)
        "#,
    );
}

#[test]
fn list_of_nothing_and_refused() {
    fixed_newstyle(
        r#"
        C: opt LIST
        S: rep LIST ACK
        E: Ack(NBD_OPT_LIST)
        C: opt LIST
        S: rep LIST ERR_POLICY "no lists here"
        E: Refused { option: NBD_OPT_LIST, error: NBD_REP_ERR_POLICY, message: Some("no lists here") }
        "#,
    );
}

/// After INFO the handshake continues; GO ends it. Unknown information is
/// reported.
#[test]
fn info_and_go() {
    fixed_newstyle(
        r#"
        C: opt INFO 4:32 "disk" 4:16 EXPORT:16 NAME:16 DESCRIPTION:16 BLOCK_SIZE:16
        S: rep INFO INFO NAME:16 "DISK"
        S: rep INFO INFO DESCRIPTION:16 "a disk"
        S: rep INFO INFO BLOCK_SIZE:16 512:32 4096:32 1M:32
        S: rep INFO INFO 0xbeef:16 "?"
        S: rep INFO INFO EXPORT:16 2^64-1:64 0x8003:16
        S: rep INFO ACK
        E: Info(Name("DISK"))
        E: Info(Description("a disk"))
        E: Info(BlockSize(BlockSizes { minimum: 512, preferred: 4096, maximum: 1048576 }))
        E: Info(Other { info: InfoType(0xbeef), data: [63] })
        E: Info(Export { size: 18446744073709551615, flags: TransmissionFlags(HAS_FLAGS | READ_ONLY | 0x8000) })
        E: Ack(NBD_OPT_INFO)
        C: opt GO 4:32 "disk" 0:16
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
        E: Info(Export { size: 1048576, flags: TransmissionFlags(HAS_FLAGS) })
        E: Ack(NBD_OPT_GO)
        E: Ready
        "#,
    );
}

/// The information of GO replaces the information of INFO.
#[test]
fn go_replaces_info() {
    let agreed = negotiated_after(
        r#"
        C: opt INFO 0:32 1:16 BLOCK_SIZE:16
        S: rep INFO INFO BLOCK_SIZE:16 512:32 4096:32 1M:32
        S: rep INFO INFO EXPORT:16 2M:64 3:16
        S: rep INFO ACK
        C: opt GO 0:32 0:16
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
        "#,
    );
    assert_eq!((agreed.size, agreed.flags.0), (1 << 20, 1));
    assert_eq!(agreed.block_sizes, None);
    assert_eq!(agreed.constraints().minimum, 1);
}

/// GO must report the size, even where INFO reported it before.
#[test]
fn info_does_not_replace_go() {
    fixed_newstyle(
        r#"
        C: opt INFO 0:32 0:16
        S: rep INFO INFO EXPORT:16 2M:64 3:16
        S: rep INFO ACK
        E: Info(Export { size: 2097152, flags: TransmissionFlags(HAS_FLAGS | READ_ONLY) })
        E: Ack(NBD_OPT_INFO)
        C: opt GO 0:32 0:16
        S: rep GO ACK
        ! Violation(NoExportInfo)
        "#,
    );
}

/// What follows GO belongs to the transmission phase, in the same input too.
#[test]
fn ready_consumes_nothing_after_go() {
    fixed_newstyle(
        r#"
        C: opt GO 0:32 0:16
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
        S: 67446698 0:32
        E: Info(Export { size: 1048576, flags: TransmissionFlags(HAS_FLAGS) })
        E: Ack(NBD_OPT_GO)
        E: Ready
        "#,
    );
}

/// Every error that can refuse an option; the next option may follow.
#[test]
fn refusals() {
    for (error, name) in [
        ("ERR_UNSUP", "NBD_REP_ERR_UNSUP"),
        ("ERR_POLICY", "NBD_REP_ERR_POLICY"),
        ("ERR_INVALID", "NBD_REP_ERR_INVALID"),
        ("ERR_PLATFORM", "NBD_REP_ERR_PLATFORM"),
        ("ERR_TLS_REQD", "NBD_REP_ERR_TLS_REQD"),
        ("ERR_UNKNOWN", "NBD_REP_ERR_UNKNOWN"),
        ("ERR_SHUTDOWN", "NBD_REP_ERR_SHUTDOWN"),
        ("ERR_BLOCK_SIZE_REQD", "NBD_REP_ERR_BLOCK_SIZE_REQD"),
        ("ERR_TOO_BIG", "NBD_REP_ERR_TOO_BIG"),
        ("ERR_EXT_HEADER_REQD", "NBD_REP_ERR_EXT_HEADER_REQD"),
        ("0xffffffff", "OptionReplyType(0xffffffff)"),
    ] {
        fixed_newstyle(&format!(
            r#"
            C: opt GO 4:32 "disk" 0:16
            S: rep GO INFO BLOCK_SIZE:16 512:32 512:32 64K:32
            S: rep GO {error} "why"
            E: Info(BlockSize(BlockSizes {{ minimum: 512, preferred: 512, maximum: 65536 }}))
            E: Refused {{ option: NBD_OPT_GO, error: {name}, message: Some("why") }}
            C: opt STRUCTURED_REPLY
            S: rep STRUCTURED_REPLY {error}
            E: Refused {{ option: NBD_OPT_STRUCTURED_REPLY, error: {name}, message: Some("") }}
            "#
        ));
    }
}

#[test]
fn framing_options() {
    let go = r#"
        C: opt GO 0:32 0:16
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
    "#;
    let structured = "C: opt STRUCTURED_REPLY\nS: rep STRUCTURED_REPLY ACK\n";
    let extended = "C: opt EXTENDED_HEADERS\nS: rep EXTENDED_HEADERS ACK\n";
    let unsupported = "C: opt EXTENDED_HEADERS\nS: rep EXTENDED_HEADERS ERR_UNSUP\n";
    let downgrade = "C: opt STRUCTURED_REPLY\nS: rep STRUCTURED_REPLY ERR_EXT_HEADER_REQD\n";
    for (options, framing) in [
        (vec![], Framing::Simple),
        (vec![structured], Framing::Structured),
        (vec![unsupported], Framing::Simple),
        (vec![unsupported, structured], Framing::Structured),
        (vec![extended], Framing::Extended),
        (vec![structured, extended], Framing::Extended),
        (vec![extended, downgrade], Framing::Extended),
        (vec![extended, structured], Framing::Extended),
    ] {
        let agreed = negotiated_after(&(options.concat() + go));
        assert_eq!(agreed.framing, framing, "{options:?}");
    }
}

#[test]
fn meta_contexts() {
    fixed_newstyle(
        r#"
        C: opt STRUCTURED_REPLY
        S: rep STRUCTURED_REPLY ACK
        E: Ack(NBD_OPT_STRUCTURED_REPLY)
        C: opt LIST_META_CONTEXT 4:32 "disk" 0:32
        S: rep LIST_META_CONTEXT META_CONTEXT 0:32 "base:allocation"
        S: rep LIST_META_CONTEXT META_CONTEXT 0:32 "qemu:dirty-bitmap:"
        S: rep LIST_META_CONTEXT ACK
        E: MetaContext { id: ContextId(0), name: "base:allocation" }
        E: MetaContext { id: ContextId(0), name: "qemu:dirty-bitmap:" }
        E: Ack(NBD_OPT_LIST_META_CONTEXT)
        C: opt SET_META_CONTEXT 4:32 "disk" 2:32 15:32 "base:allocation" 19:32 "qemu:dirty-bitmap:b"
        S: rep SET_META_CONTEXT META_CONTEXT 7:32 "qemu:dirty-bitmap:b"
        S: rep SET_META_CONTEXT META_CONTEXT 0xffffffff:32 "base:allocation"
        S: rep SET_META_CONTEXT ACK
        E: MetaContext { id: ContextId(7), name: "qemu:dirty-bitmap:b" }
        E: MetaContext { id: ContextId(4294967295), name: "base:allocation" }
        E: Ack(NBD_OPT_SET_META_CONTEXT)
        "#,
    );
}

/// The last SET_META_CONTEXT selects the contexts, for the export that it names.
#[test]
fn selected_contexts() {
    let structured = "C: opt STRUCTURED_REPLY\nS: rep STRUCTURED_REPLY ACK\n";
    let set = |export: &str, id: u32| {
        format!(
            r#"
            C: opt SET_META_CONTEXT 4:32 "{export}" 1:32 6:32 "base:a"
            S: rep SET_META_CONTEXT META_CONTEXT {id}:32 "base:a"
            S: rep SET_META_CONTEXT ACK
            "#
        )
    };
    let none = r#"
        C: opt SET_META_CONTEXT 4:32 "disk" 0:32
        S: rep SET_META_CONTEXT ACK
    "#;
    let fails = r#"
        C: opt SET_META_CONTEXT 4:32 "disk" 1:32 6:32 "base:a"
        S: rep SET_META_CONTEXT META_CONTEXT 9:32 "base:a"
        S: rep SET_META_CONTEXT ERR_TOO_BIG
    "#;
    let go = r#"
        C: opt GO 4:32 "disk" 0:16
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
    "#;
    let export_name = r#"
        C: opt EXPORT_NAME "disk"
        S: 1M:64 1:16
    "#;
    let ids = |lines: String| -> Vec<u32> {
        let agreed = negotiated_after(&lines);
        agreed.contexts.iter().map(|c| c.id.0).collect()
    };
    for end in [go, export_name] {
        let all = |lines: &[&str]| ids([&[structured], lines, &[end]].concat().concat());
        let none_selected: [u32; 0] = [];
        assert_eq!(all(&[]), none_selected);
        assert_eq!(all(&[&set("disk", 3)]), [3]);
        assert_eq!(all(&[&set("disk", 3), &set("disk", 4)]), [4]);
        assert_eq!(all(&[&set("DISK", 3)]), none_selected, "for another export");
        assert_eq!(all(&[&set("disk", 3), &set("DISK", 4)]), none_selected);
        assert_eq!(all(&[&set("DISK", 4), &set("disk", 3)]), [3]);
        assert_eq!(all(&[&set("disk", 3), none]), none_selected);
        assert_eq!(all(&[&set("disk", 3), fails]), none_selected);
        assert_eq!(all(&[fails, &set("disk", 3)]), [3]);
    }
}

/// A GO that is refused for one export does not choose it.
#[test]
fn another_export_after_a_refusal() {
    let agreed = negotiated_after(
        r#"
        C: opt STRUCTURED_REPLY
        S: rep STRUCTURED_REPLY ACK
        C: opt SET_META_CONTEXT 1:32 "a" 1:32 6:32 "base:a"
        S: rep SET_META_CONTEXT META_CONTEXT 3:32 "base:a"
        S: rep SET_META_CONTEXT ACK
        C: opt GO 1:32 "a" 0:16
        S: rep GO ERR_UNKNOWN
        C: opt GO 1:32 "b" 0:16
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
        "#,
    );
    assert!(agreed.contexts.is_empty());
}

#[test]
fn abort() {
    fixed_newstyle(
        r#"
        C: opt ABORT
        S: rep ABORT ACK
        E: Ack(NBD_OPT_ABORT)
        "#,
    );
    fixed_newstyle("C: opt ABORT");
    fixed_newstyle(
        r#"
        C: opt ABORT
        S: rep ABORT ACK
        S: 00
        E: Ack(NBD_OPT_ABORT)
        ! Violation(Unsolicited)
        "#,
    );
}

/// A server need not reply to ABORT: closing the connection ends the handshake
/// as well, also within a refusal that is longer than the limit.
#[test]
fn the_end_after_abort() {
    let long = "S: rep ABORT ERR_POLICY len=300 78*20";
    for reply in ["", "S: rep ABORT ACK", long] {
        let mut manual = Manual::greeted(Config::new(""));
        once(&mut manual, &format!("C: opt ABORT\n{reply}"));
        for _ in 0..2 {
            assert_eq!(manual.end_of_input(), Ok(()));
            assert_eq!(manual.receive(&mut &b""[..]), Ok(Step::Finished));
        }
    }
}

/// An unknown option may have any reply.
#[test]
fn unknown_option() {
    fixed_newstyle(
        r#"
        C: opt 0x1234 "anything"
        S: rep 0x1234 77 0102
        S: rep 0x1234 SERVER 1:32 "x"
        S: rep 0x1234 ACK
        E: Other { reply: OptionReplyType(0x4d), data: [1, 2] }
        E: Server { name: "x", description: "" }
        E: Ack(OptionType(0x1234))
        C: opt PEEK_EXPORT
        S: rep PEEK_EXPORT ERR_UNSUP
        E: Refused { option: NBD_OPT_PEEK_EXPORT, error: NBD_REP_ERR_UNSUP, message: Some("") }
        "#,
    );
}

/// Replies that the option does not have.
#[test]
fn replies_to_other_options() {
    for (option, reply, error) in [
        (
            "LIST",
            "rep GO ACK",
            "Violation(OtherOption { sent: NBD_OPT_LIST, answered: NBD_OPT_GO })",
        ),
        (
            "LIST",
            "rep LIST INFO EXPORT:16 0:64 0:16",
            "Violation(UnexpectedReply { option: NBD_OPT_LIST, reply: NBD_REP_INFO })",
        ),
        (
            "STRUCTURED_REPLY",
            "rep STRUCTURED_REPLY SERVER 0:32",
            "Violation(UnexpectedReply { option: NBD_OPT_STRUCTURED_REPLY, reply: NBD_REP_SERVER })",
        ),
        (
            "GO 0:32 0:16",
            "rep GO META_CONTEXT 0:32",
            "Violation(UnexpectedReply { option: NBD_OPT_GO, reply: NBD_REP_META_CONTEXT })",
        ),
        (
            "GO 0:32 0:16",
            "rep GO 5",
            "Violation(UnexpectedReply { option: NBD_OPT_GO, reply: OptionReplyType(0x5) })",
        ),
        ("GO 0:32 0:16", "rep GO ACK", "Violation(NoExportInfo)"),
        ("INFO 0:32 0:16", "rep INFO ACK", "Violation(NoExportInfo)"),
        (
            "LIST",
            "rep LIST ACK 00",
            r#"Decode(Trailing { message: "NBD_REP_ACK" })"#,
        ),
        (
            "LIST",
            "rep LIST SERVER 5:32 \"disk\"",
            r#"Decode(Overrun { message: "NBD_REP_SERVER" })"#,
        ),
        (
            "LIST",
            "rep LIST SERVER 000000",
            r#"Decode(Overrun { message: "NBD_REP_SERVER" })"#,
        ),
        (
            "GO 0:32 0:16",
            "rep GO INFO 00",
            r#"Decode(Overrun { message: "NBD_REP_INFO" })"#,
        ),
        (
            "GO 0:32 0:16",
            "rep GO INFO EXPORT:16 0:64 0:8",
            r#"Decode(Overrun { message: "NBD_INFO_EXPORT" })"#,
        ),
        (
            "GO 0:32 0:16",
            "rep GO INFO EXPORT:16 0:64 0:32",
            r#"Decode(Trailing { message: "NBD_INFO_EXPORT" })"#,
        ),
        (
            "GO 0:32 0:16",
            "rep GO INFO BLOCK_SIZE:16 1:32 512:32",
            r#"Decode(Overrun { message: "NBD_INFO_BLOCK_SIZE" })"#,
        ),
        (
            "LIST_META_CONTEXT 0:32 0:32",
            "rep LIST_META_CONTEXT META_CONTEXT 000000",
            r#"Decode(Overrun { message: "NBD_REP_META_CONTEXT" })"#,
        ),
        (
            "LIST",
            r#""IHAVEOPT" 3:32"#,
            r#"Decode(Magic { message: "option reply" })"#,
        ),
    ] {
        let agreed = if option.starts_with("LIST_META") {
            "C: opt STRUCTURED_REPLY\nS: rep STRUCTURED_REPLY ACK\n\
                     E: Ack(NBD_OPT_STRUCTURED_REPLY)\n"
        } else {
            ""
        };
        fixed_newstyle(&format!("{agreed}C: opt {option}\nS: {reply}\n! {error}"));
    }
}

/// Valid and invalid block sizes. (A preferred size below 512 breaks a rule, is
/// harmless, and real servers send it.)
#[test]
fn block_sizes() {
    for (minimum, preferred, maximum, good) in [
        (1, 512, 512, true),
        (1, 4096, u32::MAX, true),
        (512, 4096, 33_554_432, true),
        (65_536, 65_536, 65_536, true),
        (1, 1, 33_554_432, true),
        (1, 256, 256, true),
        (1, 512, 100_000, true),
        (0, 4096, 33_554_432, false),
        (3, 4096, 33_554_432, false),
        (131_072, 131_072, 33_554_432, false),
        (512, 4097, 33_554_432, false),
        (4096, 512, 33_554_432, false),
        (512, 4096, 512, false),
        (512, 0, 33_554_432, false),
        (1, 4096, 0, false),
    ] {
        let sizes = format!(
            "BlockSizes {{ minimum: {minimum}, preferred: {preferred}, maximum: {maximum} }}"
        );
        let outcome = if good {
            format!("E: Info(BlockSize({sizes}))")
        } else {
            format!("! Violation(BlockSizes({sizes}))")
        };
        fixed_newstyle(&format!(
            r#"
            C: opt INFO 0:32 1:16 BLOCK_SIZE:16
            S: rep INFO INFO BLOCK_SIZE:16 {minimum}:32 {preferred}:32 {maximum}:32
            {outcome}
            "#
        ));
    }
}

/// Contexts are equal if they have the same numbers and widths, in the same
/// order.
#[test]
fn contexts_are_equal_by_content() {
    let of = |held: &[(u32, StatusWidth)]| {
        let mut contexts = SelectedContexts::new();
        for (id, width) in held {
            let (id, width) = (ContextId(*id), *width);
            contexts.push(SelectedContext { id, width }).unwrap();
        }
        contexts
    };
    let (narrow, wide) = (StatusWidth::Narrow, StatusWidth::Wide);
    let both = of(&[(1, narrow), (2, wide)]);
    let mut same = SelectedContexts::default();
    for context in both.iter() {
        same.push(context).unwrap();
    }
    assert_eq!(both, same);
    for other in [
        of(&[]),
        of(&[(1, narrow)]),
        of(&[(2, wide), (1, narrow)]),
        of(&[(1, narrow), (2, narrow)]),
        of(&[(1, narrow), (3, wide)]),
    ] {
        assert_ne!(both, other);
    }
    assert_eq!(
        format!("{both:?}"),
        "[SelectedContext { id: ContextId(1), width: Narrow }, \
         SelectedContext { id: ContextId(2), width: Wide }]"
    );
}

/// All contexts of the namespace `base:` have at most 32 bits of status. Of others
/// nothing is known.
#[test]
fn contexts_of_the_namespace_base_are_narrow() {
    let agreed = negotiated_after(
        r#"
        C: opt EXTENDED_HEADERS
        S: rep EXTENDED_HEADERS ACK
        C: opt SET_META_CONTEXT 0:32 2:32 5:32 "base:" 5:32 "x-db:"
        S: rep SET_META_CONTEXT META_CONTEXT 1:32 "base:allocation"
        S: rep SET_META_CONTEXT META_CONTEXT 2:32 "x-db:base:a"
        S: rep SET_META_CONTEXT META_CONTEXT 3:32 "base:"
        S: rep SET_META_CONTEXT META_CONTEXT 4:32 "base"
        S: rep SET_META_CONTEXT ACK
        C: opt GO 0:32 0:16
        S: rep GO INFO EXPORT:16 1M:64 1:16
        S: rep GO ACK
        "#,
    );
    let (narrow, wide) = (StatusWidth::Narrow, StatusWidth::Wide);
    let widths: Vec<_> = agreed.contexts.iter().map(|c| c.width).collect();
    assert_eq!(widths, [narrow, wide, narrow, wide]);
}

/// Contexts that a server must not select.
#[test]
fn impossible_contexts() {
    let select = r#"
        C: opt STRUCTURED_REPLY
        S: rep STRUCTURED_REPLY ACK
        E: Ack(NBD_OPT_STRUCTURED_REPLY)
        C: opt SET_META_CONTEXT 0:32 1:32 2:32 "x:"
    "#;
    fixed_newstyle(&format!(
        r#"{select}
        S: rep SET_META_CONTEXT META_CONTEXT 5:32 "x:a"
        S: rep SET_META_CONTEXT META_CONTEXT 5:32 "x:b"
        E: MetaContext {{ id: ContextId(5), name: "x:a" }}
        ! Violation(SelectedContexts(Repeated(ContextId(5))))
        "#
    ));
    let many: String = (0..33)
        .map(|id| format!("S: rep SET_META_CONTEXT META_CONTEXT {id}:32\n"))
        .collect();
    let due: String = (0..32)
        .map(|id| format!("E: MetaContext {{ id: ContextId({id}), name: \"\" }}\n"))
        .collect();
    fixed_newstyle(&format!(
        "{select}{many}{due}! Violation(SelectedContexts(Full))"
    ));
}

/// EXPORT_NAME reports no block sizes, and those of INFO were not negotiated.
#[test]
fn export_name_has_no_block_sizes() {
    let agreed = negotiated_after(
        r#"
        C: opt INFO 0:32 1:16 BLOCK_SIZE:16
        S: rep INFO INFO BLOCK_SIZE:16 512:32 4096:32 1M:32
        S: rep INFO INFO EXPORT:16 2M:64 3:16
        S: rep INFO ACK
        C: opt EXPORT_NAME ""
        S: 1M:64 1:16
        "#,
    );
    assert_eq!((agreed.size, agreed.block_sizes), (1 << 20, None));
}
