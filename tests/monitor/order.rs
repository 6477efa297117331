//! What depends on the order of the two sides.

use nbd_codec::monitor::{Order, Side};

use super::see::{Event, FIXED, findings, parse, request, see, simple};

/// Pipelined options are told after the replies that they did not wait for.
#[test]
fn an_option_before_the_reply_to_the_one_before() {
    let text = format!(
        "{FIXED}
        C: IHAVEOPT LIST 4{{ }} IHAVEOPT ABORT 4{{ }}
        S: REPLY LIST ACK 4{{ }} REPLY ABORT ACK 4{{ }}"
    );
    assert_eq!(findings(&text), ["C H9"]);
    let events = parse(&text);
    let lines = see(&events, Order::Seen);
    let options: Vec<_> = lines.iter().map(|line| &line[..9]).collect();
    assert_eq!(
        options[2..],
        [
            "C: option",
            "S: reply ",
            "C: option",
            "! the cli",
            "S: reply "
        ]
    );
    // Without an order there is no such rule.
    let lines = see(&events, Order::Unknown);
    assert!(
        !lines.iter().any(|line| line.starts_with('!')),
        "{lines:#?}"
    );
}

#[test]
fn a_reply_that_nothing_was_sent_for() {
    let text = format!("{FIXED}\nS: REPLY LIST ACK 4{{ }}\nC: IHAVEOPT LIST 4{{ }}");
    assert_eq!(findings(&text), ["S H13 lost"]);
    let mut events = parse(&text);
    let lines = see(&events, Order::Unknown);
    assert_eq!(lines.len(), 4, "{lines:#?}");
    // At the end it is certain that nothing was sent.
    events.pop();
    events.push(Event::End(Side::Client));
    let lines = see(&events, Order::Unknown);
    assert!(lines[1].starts_with("! the client: closed"), "{lines:#?}");
    assert!(
        lines[2].starts_with("! the server: bytes that nothing"),
        "{lines:#?}"
    );
}

/// What the client sent before its turn was seen first.
#[test]
fn bytes_that_are_no_message_on_both_sides() {
    let info = "REPLY GO REP_INFO 4{ 0000 0000_0000_0010_0000 0001 }";
    for (option, replies, expected) in [
        (
            "GO 4{ 4{ } 0000 }",
            format!("{info} REPLY GO ACK 4{{ }}"),
            "C H13 lost",
        ),
        ("ABORT 4{ }", "REPLY ABORT ACK 4{ }".into(), "C R113 lost"),
        (
            "STARTTLS 4{ }",
            "REPLY STARTTLS ACK 4{ }".into(),
            "C L10 lost",
        ),
    ] {
        let text = format!("{FIXED}\nC: IHAVEOPT {option} ff*4\nS: {replies} ff*4");
        assert_eq!(findings(&text), [expected], "{text}");
    }
}

/// The server waits for what the client has sent, and that is no whole message.
#[test]
fn bytes_of_the_server_after_a_part_of_a_message() {
    let greeting = "S: NBDMAGIC IHAVEOPT\nC: 00\nS: 0003 ff*4\n";
    let text = format!("{greeting}C: 000003");
    assert_eq!(findings(&text), ["S H13 lost"]);
    let lines = see(&parse(&text), Order::Seen);
    assert_eq!(
        lines.len(),
        2,
        "the client's flags are not told: {lines:#?}"
    );
}

#[test]
fn a_cookie_in_flight() {
    let again = format!("{}{}", request("FLUSH", 9, 0, 0), request("FLUSH", 9, 0, 0));
    let replies = "S: SIMPLE OK 0000_0000_0000_0009 SIMPLE OK 0000_0000_0000_0009\n";
    let text = format!("{}{again}{replies}", simple());
    assert_eq!(findings(&text), ["C T3"]);
    let events = parse(&text);
    let lines = see(&events, Order::Unknown);
    assert!(
        !lines.iter().any(|line| line.starts_with('!')),
        "{lines:#?}"
    );
}

#[test]
fn disc_with_requests_in_flight_is_legal() {
    let text = format!(
        "{}{}{}S: SIMPLE OK 0000_0000_0000_0009\nS: end\nC: end",
        simple(),
        request("FLUSH", 9, 0, 0),
        request("DISC", 0, 0, 0),
    );
    assert_eq!(findings(&text), [""; 0]);
}

#[test]
fn ends_of_the_connection() {
    let go = "C: IHAVEOPT GO 4{ 4{ \"disk\" } 0000 }\n";
    let flush = request("FLUSH", 9, 0, 0);
    let disc = request("DISC", 0, 0, 0);
    for (text, expected) in [
        // A scan of ports, and a server that refuses every client.
        ("S: NBDMAGIC IHAVEOPT 0003\nC: end".into(), vec!["C H15"]),
        ("S: end\nC: end".into(), vec![]),
        (format!("{FIXED}C: end\nS: end"), vec!["C H15"]),
        (format!("{FIXED}{go}S: end\nC: end"), vec!["S H17"]),
        (format!("{FIXED}{go}S: REPLY\nS: end"), vec!["S T38"]),
        (
            format!("{FIXED}C: IHAVEOPT ABORT 4{{ }}\nC: end\nS: end"),
            vec![],
        ),
        (
            format!("{FIXED}C: IHAVEOPT ABORT 4{{ }}\nS: end\nC: end"),
            vec![],
        ),
        (
            format!("{FIXED}C: IHAVEOPT EXPORT_NAME 4{{ }}\nS: end"),
            vec![],
        ),
        (format!("{}C: end", simple()), vec!["C T38"]),
        (format!("{}S: end\nC: end", simple()), vec!["S T38"]),
        (format!("{}{disc}C: end\nS: end", simple()), vec![]),
        (format!("{}{flush}{disc}S: end", simple()), vec!["S T38"]),
        (format!("{}{disc}{flush}", simple()), vec!["C R113 lost"]),
    ] {
        assert_eq!(findings(&text), expected, "{text}");
    }
}
