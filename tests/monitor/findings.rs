//! Which side broke which duty: at least one transcript for every fault of
//! other programs that can be seen on the wire.

use super::see::{FIXED, extended, findings, flagged, request, simple, structured, wide};

#[track_caller]
fn broken(text: String, expected: &[&str]) {
    assert_eq!(findings(&text), expected, "{text}");
}

const ONE: &str = "0000_0000_0000_0001";
const AT_0: &str = "0000_0000_0000_0000";

/// A read of 1 KiB at 4 KiB with cookie 1, and the reply to it.
fn read(reply: &str) -> String {
    format!("{}{}{reply}", structured(), request("READ", 1, 4096, 1024))
}

fn status(reply: &str) -> String {
    format!(
        "{}{}{reply}",
        structured(),
        request("BLOCK_STATUS", 1, 0, 4096)
    )
}

fn option(option: &str, data: &str) -> String {
    format!("{FIXED}C: IHAVEOPT {option} 4{{ {data} }}\n")
}

#[test]
fn a_session_without_fault() {
    for session in [simple(), structured(), extended()] {
        broken(session, &[]);
    }
}

/// libnbd, 2019.
#[test]
fn chunks_outside_the_request() {
    let wraps = format!("S: CHUNK DONE OFFSET_DATA {ONE} 4{{ ffff_ffff_ffff_ffff aa*2 }}");
    broken(read(&wraps), &["S R26"]);
    let hole = format!("S: CHUNK DONE OFFSET_HOLE {ONE} 4{{ 0000_0000_0000_1200 0000_0400 }}");
    broken(read(&hole), &["S R26"]);
    let error = format!("S: CHUNK DONE ERROR_OFFSET {ONE} 4{{ EIO 2{{ }} 0000_0000_0000_0fff }}");
    broken(read(&error), &["S R26"]);
}

/// go-nbd, and what the reply lacks at its end.
#[test]
fn chunks_that_overlap_or_leave_gaps() {
    let data = |flags: &str, offset: &str| {
        format!("S: CHUNK {flags} OFFSET_DATA {ONE} 4{{ {offset} aa*512 }}\n")
    };
    let (first, second) = ("0000_0000_0000_1000", "0000_0000_0000_1200");
    broken(read(&(data("MORE", first) + &data("DONE", second))), &[]);
    broken(
        read(&(data("MORE", first) + &data("DONE", first))),
        &["S R28"],
    );
    broken(read(&data("DONE", second)), &["S R93"]);
    // An error excuses gaps.
    let error = format!("S: CHUNK DONE ERROR {ONE} 4{{ EIO 2{{ }} }}");
    broken(read(&(data("MORE", first) + &error)), &[]);
    let df = structured() + &flagged("0004", "READ", 1, 4096, 1024);
    broken(
        df + &data("MORE", first) + &data("DONE", second),
        &["S R102"],
    );
}

/// libnbd, 2023, and the contexts of a reply.
#[test]
fn block_status_of_other_contexts() {
    let chunk = |flags: &str, id: &str| {
        format!("S: CHUNK {flags} STATUS {ONE} 4{{ {id} 0000_1000 0000_0000 }}\n")
    };
    broken(status(&chunk("DONE", "0000_0007")), &[]);
    broken(status(&chunk("DONE", "0000_0008")), &["S R39"]);
    broken(
        status(&(chunk("MORE", "0000_0007") + &chunk("DONE", "0000_0007"))),
        &["S R39"],
    );
    let none = format!("S: CHUNK DONE NONE {ONE} 4{{ }}");
    broken(status(&none), &["S R39"]);
    broken(read(&chunk("DONE", "0000_0007")), &["S R19"]);
    // No context was selected.
    let request = request("BLOCK_STATUS", 1, 0, 4096);
    broken(simple() + &request, &["C M4"]);
}

/// As [`extended`], with `count` contexts, whose ids count from zero.
fn with_contexts(count: usize) -> String {
    let context = "S: REPLY SET_META REP_META 4{ 0000_0007 \"base:allocation\" }\n";
    let contexts = (0..count)
        .map(|id| format!("S: REPLY SET_META REP_META 4{{ {id:08x} \"x-y:{id}\" }}\n"))
        .collect::<String>();
    extended().replace(context, &contexts)
}

/// A status chunk of one extent, with extended headers.
fn status_of(flags: &str, id: usize) -> String {
    let extent = "0000_0001 0000_0000_0000_1000 0000_0000_0000_0000";
    format!("S: EXTCHUNK {flags} STATUS_EXT {ONE} {AT_0} 8{{ {id:08x} {extent} }}\n")
}

/// The status of 4 KiB in the contexts from `ids`, asked for by a filter.
fn filtered(ids: std::ops::Range<usize>) -> String {
    let header = wide("0020", "BLOCK_STATUS", 1, 0, 8 + 4 * ids.len() as u64);
    let ids = ids.map(|id| format!("{id:08x} ")).collect::<String>();
    format!("{header}C: 0000_0000_0000_1000 {ids}\n")
}

/// The monitor has room for 32 contexts, and the specification has no limit.
#[test]
fn more_contexts_than_there_is_room_for() {
    let request = wide("0000", "BLOCK_STATUS", 1, 0, 4096);
    let replies = |ids: std::ops::Range<usize>| {
        let last = ids.end - 1;
        ids.map(|id| status_of(if id < last { "MORE" } else { "DONE" }, id))
            .collect::<String>()
    };
    let (full, more) = (with_contexts(32), with_contexts(34));
    broken(more.clone() + &request + &replies(0..34), &[]);
    broken(more.clone() + &filtered(33..34) + &replies(33..34), &[]);
    broken(more.clone() + &filtered(0..34) + &replies(0..34), &[]);
    // Where there is room, all of them are known.
    broken(full.clone() + &request + &replies(0..33), &["S R39"]);
    broken(full.clone() + &filtered(32..33), &["C R146"]);
    broken(full + &filtered(0..34), &["C R147"]);
    // Those that there was room for are known all the same.
    broken(more.clone() + &request + &replies(1..34), &["S R39"]);
    broken(more.clone() + &filtered(0..1) + &replies(1..2), &["S R39"]);
    broken(
        more.clone() + &request + &status_of("MORE", 0) + &status_of("MORE", 0),
        &["S R39"],
    );
    broken(more + &filtered(0..0), &["C M4"]);
}

/// The next selection, a refusal and TLS replace what was selected before.
#[test]
fn contexts_that_are_known_again() {
    let select = |export: &str| {
        format!("C: IHAVEOPT SET_META 4{{ 4{{ \"{export}\" }} 0000_0001 4{{ \"x-y:\" }} }}\n")
    };
    let go = "C: IHAVEOPT GO";
    let before_go = |options: &str| with_contexts(33).replacen(go, &format!("{options}{go}"), 1);
    let request = wide("0000", "BLOCK_STATUS", 1, 0, 4096);
    let ack = "S: REPLY SET_META ACK 4{ }\n";
    let one = "S: REPLY SET_META REP_META 4{ 0000_0000 \"x-y:0\" }\n";
    let again = before_go(&format!("{}{one}{ack}", select("disk")));
    broken(again + &request + &status_of("DONE", 32), &["S R39"]);
    let refused = "S: REPLY SET_META ERR_UNKNOWN 4{ }\n";
    let refused = before_go(&format!("{}{refused}", select("disk")));
    broken(refused + &request, &["C M4"]);
    let elsewhere = with_contexts(33).replacen("GO 4{ 4{ \"disk\"", "GO 4{ 4{ \"other\"", 1);
    broken(elsewhere + &request, &["C M4"]);
    let tls = "C: IHAVEOPT STARTTLS 4{ }\nS: REPLY STARTTLS ACK 4{ }\ntls\n";
    let extended = "C: IHAVEOPT EXTENDED_HEADERS 4{ }\nS: REPLY EXTENDED_HEADERS ACK 4{ }\n";
    let secure = before_go(&format!("{tls}{extended}"));
    broken(secure + &request, &["C M4"]);
}

/// What is longer than the limits is not decoded: what it selects is not known.
#[test]
fn contexts_of_options_that_are_too_long() {
    let query = "4{ \"x-y:\" 61*4090 } ";
    let infos = (0..4200).map(|info| format!("{info:04x} "));
    let infos = format!("1068 {}", infos.collect::<String>());
    let query_of_one = "0000_0001 4{ \"base:allocation\" }";
    let context = "0000_0007 \"base:allocation\" }";
    let chunk = format!("S: CHUNK DONE STATUS {ONE} 4{{ 0000_0008 0000_1000 0000_0000 }}\n");
    let request = request("BLOCK_STATUS", 1, 0, 4096);
    let long = |from: &str, to: &str| {
        let text = structured();
        assert!(text.contains(from), "{text}");
        text.replacen(from, to, 1) + &request + &chunk
    };
    broken(long("", ""), &["S R39"]);
    let queries = format!("0000_0003 {}", query.repeat(3));
    broken(long(query_of_one, &queries), &[]);
    broken(long("0001 0003 }", &format!("{infos}}}")), &[]);
    broken(long(context, "0000_0008 \"x-y:\" 61*8200 }"), &["S C2"]);
    // Nothing was selected, for no export.
    let none = simple().replacen("0001 0003 }", &format!("{infos}}}"), 1);
    broken(none + &request, &["C M4"]);
}

#[test]
fn extents() {
    let extents = |text: &str| format!("S: CHUNK DONE STATUS {ONE} 4{{ 0000_0007 {text} }}");
    broken(status(&extents("0000_2000 0000_0000")), &[]);
    broken(status(&extents("0000_0000 0000_0000")), &["S R41"]);
    broken(
        status(&extents("0000_1000 0000_0000 0000_1000 0000_0000")),
        &["S R45"],
    );
    broken(status(&extents("0000_1000")), &["S R37"]);
    broken(status(&extents("")), &["S R37"]);
    let one = structured() + &flagged("0008", "BLOCK_STATUS", 1, 0, 4096);
    broken(one.clone() + &extents("0000_2000 0000_0000"), &["S R43"]);
    broken(
        one + &extents("0000_0200 0000_0000 0000_0200 0000_0000"),
        &["S R43"],
    );
}

/// libnbd, CVE-2023-5871, and the review of its series.
#[test]
fn widths_of_status() {
    let wide_chunk = |payload: &str| {
        format!(
            "{}{}S: EXTCHUNK DONE STATUS_EXT {ONE} {AT_0} 8{{ 0000_0007 {payload} }}",
            extended(),
            wide("0000", "BLOCK_STATUS", 1, 0, 4096)
        )
    };
    broken(
        wide_chunk("0000_0001 0000_0000_0000_1000 0000_0000_0000_0003"),
        &[],
    );
    broken(
        wide_chunk("0000_0001 0000_0000_0000_1000 0000_0001_0000_0000"),
        &["S R61"],
    );
    broken(
        wide_chunk("0000_0002 0000_0000_0000_1000 0000_0000_0000_0000"),
        &["S R53"],
    );
    broken(
        wide_chunk("0000_0001 0000_0000_0000_0000 0000_0000_0000_0000"),
        &["S R57"],
    );
    broken(wide_chunk("0000_0000"), &["S R49"]);
    let narrow = format!(
        "{}{}S: EXTCHUNK DONE STATUS {ONE} {AT_0} 8{{ 0000_0007 0000_1000 0000_0000 }}",
        extended(),
        wide("0000", "BLOCK_STATUS", 1, 0, 4096)
    );
    broken(narrow, &["S R59"]);
    let wide = format!("S: CHUNK DONE STATUS_EXT {ONE} 4{{ 0000_0007 0000_0001 {ONE} {ONE} }}");
    broken(status(&wide), &["S R51"]);
}

/// libnbd, 2023: 16 bytes where 32 are due; go-nbd: chunks that were not
/// negotiated.
#[test]
fn replies_of_another_framing() {
    let simple_reply = format!("S: SIMPLE OK {ONE} aa*1024\n");
    let read = wide("0000", "READ", 1, 4096, 1024);
    broken(extended() + &read + &simple_reply, &["S O107"]);
    let chunk = format!("S: CHUNK DONE OFFSET_DATA {ONE} 4{{ 0000_0000_0000_1000 aa*1024 }}");
    broken(
        simple() + &request("READ", 1, 4096, 1024) + &chunk,
        &["S T1"],
    );
    let chunk = format!("S: EXTCHUNK DONE NONE {ONE} {AT_0} 8{{ }}");
    broken(
        structured() + &request("READ", 1, 4096, 1024) + &chunk,
        &["S T21"],
    );
    let offset = format!("S: EXTCHUNK DONE NONE {ONE} {ONE} 8{{ }}");
    broken(
        extended() + &wide("0000", "FLUSH", 1, 0, 0) + &offset,
        &["S T29"],
    );
}

/// nbd-server: a simple reply to a read that failed.
#[test]
fn simple_replies_where_chunks_are_due() {
    broken(read(&format!("S: SIMPLE EIO {ONE}")), &["S T22"]);
    broken(status(&format!("S: SIMPLE OK {ONE}")), &["S T21"]);
    broken(status(&format!("S: SIMPLE EIO {ONE}")), &[]);
}

/// The first error of a reply is its result: the export keeps its size.
#[test]
fn a_resize_that_failed_and_then_succeeds() {
    let resizable = structured().replace("0dfd", "0ffd");
    let resize = resizable + &request("RESIZE", 1, 2 << 20, 0);
    let error = format!("S: CHUNK MORE ERROR {ONE} 4{{ ENOSPC 2{{ }} }}\n");
    let success = format!("S: SIMPLE OK {ONE}\n");
    let beyond = request("READ", 2, 1 << 20, 512);
    broken(resize.clone() + &success + &beyond, &[]);
    broken(resize + &error + &success + &beyond, &["S T21", "C S24"]);
}

/// Linux, 2021.
#[test]
fn replies_to_requests_that_are_not_in_flight() {
    let reply = format!("S: SIMPLE OK {ONE}\n");
    broken(simple() + &reply, &["S T4"]);
    broken(
        simple() + &request("FLUSH", 1, 0, 0) + &reply + &reply,
        &["S T4"],
    );
    let chunk = format!("S: CHUNK DONE NONE {ONE} 4{{ }}\n");
    broken(read("") + &chunk + &chunk, &["S R93", "S T4"]);
}

/// rust-nbd and go-nbd: data after an error, and bytes that are no message.
#[test]
fn bytes_that_are_no_reply() {
    let text = format!(
        "{}{}S: SIMPLE EIO {ONE} aa*512\n",
        simple(),
        request("READ", 1, 0, 512)
    );
    broken(text + &request("READ", 2, 0, 1), &["S H13 lost"]);
    broken(simple() + "S: 6744_6699", &["S H13 lost"]);
    broken("S: NBDMAGIC ff".into(), &["S H13 lost"]);
    broken(simple() + "C: 00", &["C H13 lost"]);
    broken(format!("{FIXED}C: aa"), &["C H13 lost"]);
    broken(option("LIST", "") + "S: aa", &["S H13 lost"]);
}

/// Lengths and fields that the type of a chunk does not have; the place is
/// kept, and the next reply is read.
#[test]
fn malformed_chunks() {
    let flush = request("FLUSH", 2, 0, 0);
    let after = "S: SIMPLE OK 0000_0000_0000_0002\n";
    for (chunk, duty) in [
        (format!("DONE NONE {ONE} 4{{ aa }}"), "S R21"),
        (format!("MORE NONE {ONE} 4{{ }}"), "S R15"),
        (format!("DONE OFFSET_DATA {ONE} 4{{ {AT_0} }}"), "S R24"),
        (
            format!("DONE OFFSET_HOLE {ONE} 4{{ {AT_0} 0000_0000 }}"),
            "S R34",
        ),
        (format!("DONE OFFSET_HOLE {ONE} 4{{ {AT_0} }}"), "S R30"),
        (format!("DONE ERROR {ONE} 4{{ EIO }}"), "S R63"),
        (format!("DONE ERROR {ONE} 4{{ OK 2{{ }} }}"), "S R67"),
        (format!("DONE ERROR {ONE} 4{{ EIO 0001 }}"), "S R63"),
        (
            format!("DONE ERROR_OFFSET {ONE} 4{{ EIO 2{{ }} }}"),
            "S R69",
        ),
        (format!("DONE 0003 {ONE} 4{{ aa*9 }}"), "S R19"),
        (format!("0003 ERROR {ONE} 4{{ EIO 2{{ }} }}"), "S R17"),
        // QEMU, CVE-2020-10761.
        (
            format!("DONE ERROR {ONE} 4{{ EIO 2{{ 61*4097 }} }}"),
            "S C2",
        ),
        (format!("DONE ERROR {ONE} 4{{ EIO 2{{ ff }} }}"), "S C3"),
    ] {
        broken(read(&format!("S: CHUNK {chunk}\n{flush}{after}")), &[duty]);
    }
}

#[test]
fn requests_that_a_client_must_not_send() {
    for (request, duty) in [
        (request("READ", 1, 0, 0), "C R79"),
        (request("WRITE", 1, 0, 0), "C R108"),
        (request("TRIM", 1, 0, 0), "C R118"),
        (request("WRITE_ZEROES", 1, 0, 0), "C R125"),
        (request("READ", 1, 0, 1), "C S22"),
        (request("READ", 1, 1 << 20, 512), "C S24"),
        // tokio-nbd: the sum wraps around.
        (request("READ", 1, 0xffff_ffff_ffff_fe00, 1024), "C S24"),
        (request("FLUSH", 1, 512, 0), "C R117"),
        (request("RESIZE", 1, 0, 0), "C O13"),
        (request("0063", 1, 0, 0), "C O13"),
        (flagged("0004", "READ", 1, 0, 512), "C O13"),
        (flagged("0020", "FLUSH", 1, 0, 0), "C O13"),
        (request("DISC", 1, 0, 9), "C R114"),
        (wide("0000", "READ", 1, 0, 512), "C O104"),
    ] {
        broken(simple() + &request, &[duty]);
    }
    let large = simple().replace("0200_0000 }", "0000_1000 }");
    broken(
        large + &request("WRITE", 1, 0, 8192) + "C: 00*8192\n",
        &["C S19"],
    );
    // With chunks a read may be longer.
    let large = structured().replace("0200_0000 }", "0000_1000 }");
    broken(large + &request("READ", 1, 0, 8192), &[]);
    let read_only = simple().replace("0d7d", "0d7f");
    broken(read_only + &request("TRIM", 1, 0, 512), &["C O13"]);
}

#[test]
fn extended_requests() {
    for (request, duties) in [
        (wide("0000", "READ", 1, 0, 512), &[][..]),
        (request("READ", 1, 0, 512), &["C O105"]),
        // QEMU.
        (wide("0000", "WRITE", 1, 0, 512) + "C: 00*512", &["C T11"]),
        (wide("0020", "READ", 1, 0, 512) + "C: 00*512", &["C R1"]),
        (
            wide("0020", "BLOCK_STATUS", 1, 0, 9) + "C: 00*9",
            &["C R147"],
        ),
        (
            wide("0020", "BLOCK_STATUS", 1, 0, 900) + "C: 00*900",
            &["C R147"],
        ),
        (
            wide("0020", "BLOCK_STATUS", 1, 0, 12) + "C: 0000_0000_0000_1000 0000_0008",
            &["C R146"],
        ),
        (
            wide("0020", "BLOCK_STATUS", 1, 0, 12) + "C: 0000_0000_0020_0000 0000_0007",
            &["C S24"],
        ),
    ] {
        // The next request is found.
        let next = "\n".to_owned() + &wide("0000", "FLUSH", 2, 0, 0);
        broken(extended() + &request + &next, duties);
    }
}

#[test]
fn flags_of_the_handshake() {
    broken("S: NBDMAGIC IHAVEOPT 8003\nC: 0000_0003".into(), &["S O4"]);
    broken("S: NBDMAGIC IHAVEOPT 0001\nC: 0000_0003".into(), &["C O10"]);
    broken("S: NBDMAGIC IHAVEOPT 0003\nC: 0000_0004".into(), &["C O10"]);
    let list = "C: IHAVEOPT LIST 4{ }";
    broken(
        format!("S: NBDMAGIC IHAVEOPT 0003\nC: 0000_0000\n{list}"),
        &["C O26"],
    );
    for (flags, duty) in [
        ("0d7c", "S O14"),
        ("0dfd", "S O16"),
        ("083d", "S O20"),
        ("1001", "S O22"),
    ] {
        broken(simple().replace("0d7d", flags), &[duty]);
    }
}

#[test]
fn options_that_a_client_must_not_send() {
    for (text, duty) in [
        (option("LIST", "00"), "C O35"),
        (option("ABORT", "00"), "C O31"),
        (option("STARTTLS", "00"), "C O37"),
        (option("STRUCTURED_REPLY", "00"), "C O62"),
        (option("EXTENDED_HEADERS", "00"), "C O97"),
        // nbd-server, CVE-2022-26495.
        (option("GO", "ffff_ffff \"disk\" 0000"), "C O42"),
        (option("INFO", "4{ \"disk\" } 0002 0003 0003"), "C O44"),
        // QEMU, CVE-2017-2630.
        (option("INFO", "4{ 61*4097 } 0000"), "C C2"),
        (option("INFO", "4{ 00 } 0000"), "C C1"),
        (option("INFO", "4{ ff } 0000"), "C C3"),
        (option("LIST_META", "4{ } 0000_0000"), "C O69"),
        (option("SET_META", "4{ } 0000_0000"), "C O85"),
    ] {
        broken(text, &[duty]);
    }
    let extended = option("EXTENDED_HEADERS", "") + "S: REPLY EXTENDED_HEADERS ACK 4{ }\n";
    for (option, duty) in [
        ("EXTENDED_HEADERS 4{ }", "C H10"),
        ("EXPORT_NAME 4{ }", "C O28"),
        ("SET_META 4{ 4{ } 0000_0001 4{ \"base\" } }", "C O91"),
        ("LIST_META 4{ 4{ } 0000_0001 4{ \"base\" } }", "C O72"),
    ] {
        broken(format!("{extended}C: IHAVEOPT {option}"), &[duty]);
    }
}

/// nbdkit, CVE-2021-3716.
#[test]
fn plain_text_around_starttls() {
    let injected = "C: IHAVEOPT STARTTLS 4{ } IHAVEOPT STRUCTURED_REPLY 4{ }\n";
    let ack = "S: REPLY STARTTLS ACK 4{ }\n";
    broken(format!("{FIXED}{injected}{ack}"), &["C L10 lost"]);
    broken(
        format!("{FIXED}C: IHAVEOPT STARTTLS 4{{ }}\n{ack}S: REPLY"),
        &["S L10 lost"],
    );
    let tls = option("STARTTLS", "") + ack + "tls\n";
    broken(format!("{tls}C: IHAVEOPT STARTTLS 4{{ }}"), &["C L25"]);
    let refused = "C: IHAVEOPT LIST 4{ }\nS: REPLY LIST ERR_TLS_REQD 4{ }";
    broken(tls + refused, &["S L15"]);
    // What was agreed on in plain text is forgotten.
    let text = option("STRUCTURED_REPLY", "") + "S: REPLY STRUCTURED_REPLY ACK 4{ }\n";
    let text = text + "C: IHAVEOPT STARTTLS 4{ }\n" + ack + "tls\n";
    broken(
        text + "C: IHAVEOPT LIST_META 4{ 4{ } 0000_0000 }",
        &["C O69"],
    );
}

/// tokio-nbd, and other replies that an option cannot have.
#[test]
fn replies_to_options() {
    let go = option("GO", "4{ } 0000");
    let export = "S: REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0001 }\n";
    for (text, duties) in [
        (go.clone() + "S: REPLY GO ACK 4{ }", &["S O48 lost"][..]),
        (go.clone() + export + export, &["S O113"]),
        (
            go.clone() + "S: REPLY GO REP_INFO 4{ 0000 00 }",
            &["S O116"],
        ),
        (
            go.clone() + "S: REPLY GO REP_INFO 4{ 0003 00 }",
            &["S O120"],
        ),
        (go.clone() + "S: REPLY INFO ACK 4{ }", &["S H13"]),
        (go.clone() + "S: REPLY GO REP_SERVER 4{ 4{ } }", &["S H13"]),
        (go.clone() + "S: REPLY GO ERR_UNKNOWN 4{ 00 }", &["S C1"]),
        // Longer than any reply that is defined.
        (
            go.clone() + "S: REPLY GO ERR_UNKNOWN 4{ 61*8197 }",
            &["S C2"],
        ),
        (
            option("LIST", "") + "S: REPLY LIST REP_SERVER 4{ 0400_0000 }",
            &["S O110"],
        ),
    ] {
        broken(text, duties);
    }
    for (sizes, duty) in [
        ("0000_0003 0000_1000 0200_0000", "S S10"),
        ("0000_0001 0000_0100 0200_0000", "S S13"),
        ("0000_0001 0000_1000 0000_0800", "S S15"),
    ] {
        broken(
            go.clone() + &format!("S: REPLY GO REP_INFO 4{{ 0003 {sizes} }}"),
            &[duty],
        );
    }
    let extended = option("EXTENDED_HEADERS", "") + "S: REPLY EXTENDED_HEADERS ACK 4{ }\n";
    broken(
        extended.clone() + "C: IHAVEOPT GO 4{ 4{ } 0000 }\nS: REPLY GO ERR_UNSUP 4{ }",
        &["S O57"],
    );
    let list = extended + "C: IHAVEOPT LIST_META 4{ 4{ } 0000_0000 }\n";
    broken(
        list.clone() + "S: REPLY LIST_META ERR_EXT_HEADER_REQD 4{ }",
        &["S O71"],
    );
    broken(
        list + "S: REPLY LIST_META REP_META 4{ 0000_0001 \"x-y:z\" }",
        &["S O83"],
    );
    let twice = "S: REPLY SET_META REP_META 4{ 0000_0007 \"base:allocation\" }\n";
    broken(
        structured().replace(
            "S: REPLY SET_META ACK",
            &format!("{twice}S: REPLY SET_META ACK"),
        ),
        &["S O94"],
    );
}

/// Every duty that a finding names is a row of `docs/conformance.md`.
#[test]
fn duties_are_rows_of_the_document() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path| std::fs::read_to_string(root.join(path)).expect("a file");
    let (source, document) = (read("src/monitor/finding.rs"), read("docs/conformance.md"));
    let texts = source.split('"').skip(1).step_by(2);
    let is_duty = |text: &&str| {
        let (series, number) = text.split_at(text.len().min(1));
        "CHTLSMOR".contains(series) && number.parse::<u32>().is_ok()
    };
    let duties: std::collections::BTreeSet<_> = texts.filter(is_duty).collect();
    assert!(duties.len() > 70, "{duties:?}");
    for duty in duties {
        assert!(document.contains(&format!("\n| {duty} | ")), "{duty}");
    }
}
