//! Tables of URIs: the decoded parts, the canonical spelling, the errors.

#![cfg(feature = "alloc")]

use std::net::{Ipv4Addr, Ipv6Addr};

use nbd_codec::uri::{DEFAULT_PORT, Host, TlsType, Transport, Uri, UriError};

fn parse(text: &str) -> Uri {
    Uri::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn name(text: &str) -> Host {
    Host::Name(text.to_owned())
}

fn tcp(host: impl Into<Host>, port: u16) -> Transport {
    let host = host.into();
    Transport::Tcp { host, port }
}

fn unix(path: impl AsRef<[u8]>) -> Transport {
    let path = path.as_ref().to_vec();
    Transport::Unix { path }
}

fn zoned(address: &str, zone: &str) -> Host {
    let address = address.parse().unwrap();
    let zone = Some(zone.to_owned());
    Host::Ipv6 { address, zone }
}

fn ssh(host: Host, port: Option<u16>) -> Transport {
    Transport::Ssh { host, port }
}

/// URI, transport, whether TLS is required, export.
#[test]
#[rustfmt::skip]
fn schemes_and_transports() {
    let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    assert_eq!("nbd://h/disk".parse::<Uri>(), Uri::parse("nbd://h/disk"));
    assert_eq!("nbd:".parse::<Uri>(), Uri::parse("nbd:"));
    let local = || tcp(name("localhost"), 10809);
    let vsock = |cid, port| Transport::Vsock { cid, port };
    let table = [
        ("nbd://h/disk", tcp(name("h"), 10809), false, "disk"),
        ("nbds://h/disk", tcp(name("h"), 10809), true, "disk"),
        ("nbd+unix:///disk?socket=s", unix("s"), false, "disk"),
        ("nbds+unix:///disk?socket=s", unix("s"), true, "disk"),
        ("nbd+vsock://3:99/disk", vsock(3, 99), false, "disk"),
        ("nbds+vsock:///disk", vsock(2, 10809), true, "disk"),
        ("nbd+vsock://:70000", vsock(2, 70000), false, ""),
        ("nbd+vsock://4294967295:", vsock(u32::MAX, 10809), false, ""),
        ("nbd+ssh://h/disk", ssh(name("h"), None), false, "disk"),
        ("nbds+ssh://u@h:22/", ssh(name("h"), Some(22)), true, ""),
        ("nbd+ssh://", ssh(name("localhost"), None), false, ""),
        // The scheme ignores case.
        ("NBD://h", tcp(name("h"), 10809), false, ""),
        ("NbdS+UniX:///?socket=/S", unix("/S"), true, ""),
        ("nbds+VSOCK://", vsock(2, 10809), true, ""),
        // Each part of the authority is optional.
        ("nbd://", local(), false, ""),
        ("nbd:///", local(), false, ""),
        ("nbd:///disk", local(), false, "disk"),
        ("nbd://?x-y", local(), false, ""),
        ("nbd://:", local(), false, ""),
        ("nbd://@:/", local(), false, ""),
        ("nbd://:1234", tcp(name("localhost"), 1234), false, ""),
        ("nbd://h:", tcp(name("h"), 10809), false, ""),
        ("nbd://h:0/", tcp(name("h"), 0), false, ""),
        ("nbd://h:65535/", tcp(name("h"), 65535), false, ""),
        ("nbd://h:0000000010810", tcp(name("h"), 10810), false, ""),
        // Hosts.
        ("nbd://127.0.0.1", tcp(Ipv4Addr::LOCALHOST, 10809), false, ""),
        ("nbd://%3127.0.0.1", tcp(Ipv4Addr::LOCALHOST, 10809), false, ""),
        ("nbd://127.1", tcp(name("127.1"), 10809), false, ""),
        ("nbd://256.1.1.1", tcp(name("256.1.1.1"), 10809), false, ""),
        ("nbd://[::1]", tcp(Ipv6Addr::LOCALHOST, 10809), false, ""),
        ("nbd://[::1]:", tcp(Ipv6Addr::LOCALHOST, 10809), false, ""),
        ("nbd://u@[2001:DB8::7]:80/e", tcp(v6("2001:db8::7"), 80), false, "e"),
        ("nbd://[::ffff:1.2.3.4]/", tcp(v6("::ffff:1.2.3.4"), 10809), false, ""),
        ("nbd://[fe80::1%25eth0]:9", tcp(zoned("fe80::1", "eth0"), 9), false, ""),
        ("nbd://[fe80::1%25a%2Db]", tcp(zoned("fe80::1", "a-b"), 10809), false, ""),
        ("nbd://ho%73t.example/", tcp(name("host.example"), 10809), false, ""),
        ("nbd://b%C3%BCcher.example/", tcp(name("bücher.example"), 10809), false, ""),
        ("nbd://a-b_c~d.", tcp(name("a-b_c~d."), 10809), false, ""),
        // Sockets.
        ("nbd+unix://?socket=s", unix("s"), false, ""),
        ("nbd+unix://u@/?socket=s", unix("s"), false, ""),
        ("nbd+unix:///?&&socket=/a/b&&", unix("/a/b"), false, ""),
        ("nbd+unix:///?%73ocket=s", unix("s"), false, ""),
        ("nbd+unix:///?socket=a=b+c;d?e", unix("a=b+c;d?e"), false, ""),
        ("nbd+unix:///?socket=%26%3D%25%23", unix("&=%#"), false, ""),
        ("nbd+unix:///?socket=/%FF%fe", unix(b"/\xff\xfe"), false, ""),
        ("nbd+unix:///?socket=%00name", unix(b"\0name"), false, ""),
        ("nbd+unix:///?socket=%00a%00b", unix(b"\0a\0b"), false, ""),
        // Export names.
        ("nbd://h", tcp(name("h"), 10809), false, ""),
        ("nbd://h/", tcp(name("h"), 10809), false, ""),
        ("nbd://h//disk", tcp(name("h"), 10809), false, "/disk"),
        ("nbd://h/a/b/../c", tcp(name("h"), 10809), false, "a/b/../c"),
        ("nbd://h/hello%20world", tcp(name("h"), 10809), false, "hello world"),
        ("nbd://h/%2Fdisk%2f", tcp(name("h"), 10809), false, "/disk/"),
        ("nbd://h/%E2%82%AC", tcp(name("h"), 10809), false, "€"),
        ("nbd://h/%2523%3F", tcp(name("h"), 10809), false, "%23?"),
        ("nbd://h/a+b@c:d!$&'()*,;=~", tcp(name("h"), 10809), false, "a+b@c:d!$&'()*,;=~"),
    ];
    for (text, transport, tls, export) in table {
        let uri = parse(text);
        assert_eq!(uri.transport(), &transport, "{text}");
        assert_eq!(uri.tls_required(), tls, "{text}");
        assert_eq!(uri.export(), export, "{text}");
        assert_eq!(parse(&uri.to_string()), uri, "{text}");
    }
}

/// URI, user, user for TLS.
#[test]
fn users() {
    let table = [
        ("nbd://h", None, None),
        ("nbd://@h", None, None),
        ("nbd://alice@h", Some("alice"), Some("alice")),
        ("nbd://a%40b%3A@h", Some("a@b:"), Some("a@b:")),
        ("nbd://a:b@h", Some("a:b"), Some("a:b")),
        ("nbds+unix://%C3%A9@/?socket=s", Some("é"), Some("é")),
        ("nbd://a@h?tls-username=b", Some("a"), Some("b")),
        ("nbd://h?tls-username=b", None, Some("b")),
        ("nbd://-x@h", Some("-x"), Some("-x")),
    ];
    for (text, user, tls_username) in table {
        let uri = parse(text);
        assert_eq!(uri.user(), user, "{text}");
        assert_eq!(uri.tls_username(), tls_username, "{text}");
        assert_eq!(parse(&uri.to_string()), uri, "{text}");
    }
}

/// URI, type, host name, whether to verify the peer.
#[test]
fn tls_parameters() {
    let table = [
        ("nbds://h", None, None, true),
        ("nbds://h?tls-type=anon", Some(TlsType::Anon), None, true),
        ("nbds://h?tls-type=x509", Some(TlsType::X509), None, true),
        ("nbds://h?tls-type=psk", Some(TlsType::Psk), None, true),
        ("nbds://h?tls-hostname=%C3%A9.x", None, Some("é.x"), true),
        ("nbds://h?tls-verify-peer=1", None, None, true),
        ("nbds://h?tls-verify-peer=true", None, None, true),
        ("nbds://h?tls-verify-peer=T", None, None, true),
        ("nbds://h?tls-verify-peer=Yes", None, None, true),
        ("nbds://h?tls-verify-peer=y", None, None, true),
        ("nbds://h?tls-verify-peer=ON", None, None, true),
        ("nbds://h?tls-verify-peer=0", None, None, false),
        ("nbds://h?tls-verify-peer=false", None, None, false),
        ("nbds://h?tls-verify-peer=F", None, None, false),
        ("nbds://h?tls-verify-peer=No", None, None, false),
        ("nbds://h?tls-verify-peer=n", None, None, false),
        ("nbds://h?tls-verify-peer=OFF", None, None, false),
    ];
    for (text, kind, hostname, verify) in table {
        let uri = parse(text);
        assert_eq!(uri.tls_type(), kind, "{text}");
        assert_eq!(uri.tls_hostname(), hostname, "{text}");
        assert_eq!(uri.tls_verify_peer(), verify, "{text}");
        assert_eq!(parse(&uri.to_string()), uri, "{text}");
    }
    for name in ["anon", "x509", "psk"] {
        let uri = parse(&format!("nbd://h?tls-type={name}"));
        assert_eq!(uri.tls_type().map(TlsType::as_str), Some(name));
    }
}

/// URI, certificates, file of keys, priority.
#[test]
fn tls_files_and_priority() {
    let table = [
        ("nbds://h", None, None, None),
        (
            "nbds://h?tls-certificates=/p%FF",
            Some(&b"/p\xff"[..]),
            None,
            None,
        ),
        (
            "nbds://h?tls-psk-file=k%2epsk",
            None,
            Some(&b"k.psk"[..]),
            None,
        ),
        (
            "nbds://h?tls-priority=A:-B%3A%2BC",
            None,
            None,
            Some("A:-B:+C"),
        ),
        (
            "nbds://h/?tls-certificates=c&tls-psk-file=k&tls-priority=p",
            Some(b"c"),
            Some(b"k"),
            Some("p"),
        ),
    ];
    for (text, certificates, psk_file, priority) in table {
        let uri = parse(text);
        assert_eq!(uri.tls_certificates(), certificates, "{text}");
        assert_eq!(uri.tls_psk_file(), psk_file, "{text}");
        assert_eq!(uri.tls_priority(), priority, "{text}");
        assert_eq!(uri.unknown_parameters().count(), 0, "{text}");
        assert_eq!(parse(&uri.to_string()), uri, "{text}");
    }
}

#[test]
fn other_parameters() {
    let uri = parse("nbd://h?foo=1&x-a=2&foo&=v&=&x-=%26&X-B=3&SOCKET=s&TLS-type=q&a%20b=c%3Dd=e");
    let unknown: Vec<_> = uri.unknown_parameters().collect();
    let expected = [
        ("foo", "1"),
        ("foo", ""),
        ("", "v"),
        ("", ""),
        ("X-B", "3"),
        ("SOCKET", "s"),
        ("TLS-type", "q"),
        ("a b", "c=d=e"),
    ];
    assert_eq!(unknown, expected);
    let experimental: Vec<_> = uri.experimental_parameters().collect();
    assert_eq!(experimental, [("x-a", "2"), ("x-", "&")]);
    assert_eq!(parse(&uri.to_string()), uri);

    // Not standardized for SSH: kept, but not interpreted.
    let uri = parse("nbd+ssh://h?socket=/s&socket=/t");
    let unknown: Vec<_> = uri.unknown_parameters().collect();
    assert_eq!(unknown, [("socket", "/s"), ("socket", "/t")]);
    assert_eq!(parse(&uri.to_string()), uri);
}

/// URI with `^` before the offset of the error, and the error.
#[test]
fn errors() {
    type Make = fn(usize) -> UriError;
    let scheme: Make = |at| UriError::Scheme { at };
    let slashes: Make = |at| UriError::Slashes { at };
    let character: Make = |at| UriError::Character { at };
    let escape: Make = |at| UriError::Escape { at };
    let utf8: Make = |at| UriError::Utf8 { at };
    let nul: Make = |at| UriError::Nul { at };
    let fragment: Make = |at| UriError::Fragment { at };
    let dash: Make = |at| UriError::LeadingDash { at };
    let host: Make = |at| UriError::Host { at };
    let port: Make = |at| UriError::Port { at };
    let cid: Make = |at| UriError::Cid { at };
    let authority: Make = |at| UriError::UnixAuthority { at };
    let missing: Make = |at| UriError::SocketMissing { at };
    let unexpected: Make = |at| UriError::SocketUnexpected { at };
    let duplicate: Make = |at| UriError::Duplicate { at };
    let tls_type: Make = |at| UriError::TlsType { at };
    let verify: Make = |at| UriError::VerifyPeer { at };
    let table = [
        ("^", scheme),
        ("^nbd", scheme),
        ("^localhost:10809", scheme),
        ("^ nbd://h", scheme),
        ("^nbdx://h", scheme),
        ("^nbd+://h", scheme),
        ("^nbd+unix+unix:///?socket=s", scheme),
        ("^nbd+tcp://h", scheme),
        ("^http://h", scheme),
        ("^nbd%2Bunix:///", scheme),
        ("^://h", scheme),
        ("nbd:^", slashes),
        ("nbd:^h", slashes),
        ("nbd:^/h", slashes),
        ("nbd+unix:^/disk?socket=s", slashes),
        ("nbd://h/a^ b", character),
        ("nbd://h/^\u{20ac}", character),
        ("nbd://h/^\\", character),
        ("nbd://h/a^[b", character),
        ("nbd://h/a^\0", character),
        ("nbd://h/a^\n", character),
        ("nbd://h/?a^\"", character),
        ("nbd://h/?a=^|", character),
        ("nbd://a@b^@h", character),
        ("nbd://u@a^@h", character),
        ("nbd://a^[b@h", character),
        ("nbd://h^ /", character),
        ("nbd://h^]/", character),
        ("nbd+unix:///?socket=^<", character),
        ("nbd://h/^%", escape),
        ("nbd://h/a^%4", escape),
        ("nbd://h/%41^%zz", escape),
        ("nbd://h/^%+1", escape),
        ("nbd://h/^%%41", escape),
        ("nbd://^%2/", escape),
        ("nbd://^%g0@h/", escape),
        ("nbd://h/?^%1=2", escape),
        ("nbd://h/?a=^%", escape),
        ("nbd+unix:///?socket=a^%0", escape),
        ("nbd://[fe80::1^%eth0]/", escape),
        ("nbd://[fe80::1^%]/", escape),
        ("nbd://[fe80::1%25^%e]/", escape),
        ("nbd://h/%41^%FF", utf8),
        ("nbd://h/a^%C3", utf8),
        ("nbd://h/^%ED%A0%80", utf8),
        ("nbd://^%80@h/", utf8),
        ("nbd://x^%80/", utf8),
        ("nbd://[fe80::1%25x^%80]/", utf8),
        ("nbd://h/?x^%80=1", utf8),
        ("nbd://h/?x=1^%80", utf8),
        ("nbd://h/?tls-hostname=^%80", utf8),
        ("nbd://h/%41^%00", nul),
        ("nbd://u^%00@h/", nul),
        ("nbd://h/?a^%00", nul),
        ("nbd://h/?a=b^%00", nul),
        ("nbd://h/?tls-psk-file=^%00", nul),
        ("nbd+unix:///?socket=/a^%00b", nul),
        ("nbd://h/^#f", fragment),
        ("nbd://h^#", fragment),
        ("nbd:^#//h", fragment),
        ("nbd+unix:///?socket=^#1", fragment),
        ("nbd://^-oProxyCommand=x/", dash),
        ("nbd+ssh://^-oProxyCommand=x/", dash),
        ("nbd+ssh://u@^-oX", dash),
        ("nbd+ssh://^%2doX", dash),
        ("nbd+ssh://^-oX@h/", dash),
        ("nbds+ssh://^%2DoX@h/", dash),
        ("nbd://[fe80::1%25^-x]", dash),
        ("nbd://h^%00/", host),
        ("nbd://h^%0a/", host),
        ("nbd://h^%20x/", host),
        ("nbd://h^%2Fx/", host),
        ("nbd://^%5B::1]/", host),
        ("nbd://h^%3A1/", host),
        ("nbd://a^,b/", host),
        ("nbd://a^%E2%80%A8/", host),
        ("nbd://^[::1", host),
        ("nbd://u@^[", host),
        ("nbd://[^]", host),
        ("nbd://[^::1::]", host),
        ("nbd://[^127.0.0.1]", host),
        ("nbd://[^v1.x]", host),
        ("nbd://[::1]^x", host),
        ("nbd://[::1]^x:1", host),
        ("nbd://[fe80::1%25^]", host),
        ("nbd://[fe80::1%25a^%2Fb]", host),
        ("nbd://[^%25eth0]", host),
        ("nbd://h:^65536", port),
        ("nbd://h:^99999999999999999999", port),
        ("nbd://h:^-1", port),
        ("nbd://h:^+1", port),
        ("nbd://h:^1x", port),
        ("nbd://h:^1:2", port),
        ("nbd://h:^%31", port),
        ("nbd://:^:1/", port),
        ("nbd://[::1]:^x", port),
        ("nbd+vsock://2:^4294967296", port),
        ("nbd+ssh://h:^65536", port),
        ("nbd+vsock://^host", cid),
        ("nbd+vsock://u@^-1:2", cid),
        ("nbd+vsock://^4294967296", cid),
        ("nbd+unix://^host/?socket=s", authority),
        ("nbd+unix://^:1/?socket=s", authority),
        ("nbd+unix://u@^h?socket=s", authority),
        ("nbds+unix://^[::1]/?socket=s", authority),
        ("nbd+unix:///^", missing),
        ("nbds+unix://^", missing),
        ("nbd+unix:///?x-a=b^", missing),
        ("nbd+unix:///?SOCKET=s^", missing),
        ("nbd+unix:///?socket^", missing),
        ("nbd+unix:///?socket=^&x-a", missing),
        ("nbd://h/?^socket=/s", unexpected),
        ("nbds://h/?x-a&^socket", unexpected),
        ("nbd+vsock:///?^%73ocket=s", unexpected),
        ("nbd+unix:///?socket=a&^socket=a", duplicate),
        ("nbd://h?tls-type=psk&x-a&^tls-type=psk", duplicate),
        ("nbd://h?tls-hostname=a&^tls-hostname=b", duplicate),
        ("nbd://h?tls-verify-peer=1&^tls-verify-peer=1", duplicate),
        ("nbd://h?tls-certificates=a&^tls-certificates=b", duplicate),
        ("nbd://h?tls-psk-file&^tls-psk-file", duplicate),
        ("nbd://h?tls-username=a&^tls%2Dusername=b", duplicate),
        ("nbd://h?tls-priority=a&^tls-priority=b", duplicate),
        ("nbd://h?tls-type=^tls", tls_type),
        ("nbd://h?tls-type=^PSK", tls_type),
        ("nbd://h?tls-type^", tls_type),
        ("nbd://h?tls-verify-peer=^2", verify),
        ("nbd://h?tls-verify-peer=^maybe&x-a", verify),
        ("nbd://h?tls-verify-peer=^", verify),
    ];
    for (marked, make) in table {
        let at = marked.find('^').unwrap();
        let text = marked.replacen('^', "", 1);
        let error = Uri::parse(&text).expect_err(marked);
        assert_eq!(error, make(at), "{marked}");
        assert_eq!(error.offset(), at);
        assert!(error.to_string().contains(&format!("byte {at}")));
    }
    let large = size_of::<UriError>() > 2 * size_of::<usize>();
    assert!(!large, "UriError has grown");
}

#[test]
fn export_length() {
    let longest = "e".repeat(4096);
    assert_eq!(parse(&format!("nbd://h/{longest}")).export(), longest);
    let encoded = "%65".repeat(4096);
    assert_eq!(parse(&format!("nbd://h/{encoded}")).export(), longest);

    let error = Uri::parse(format!("nbd://h/{longest}e")).unwrap_err();
    assert_eq!(error, UriError::ExportTooLong { at: 8 + 4096 });
    let error = Uri::parse(format!("nbd://h/{encoded}%65")).unwrap_err();
    assert_eq!(error, UriError::ExportTooLong { at: 8 + 3 * 4096 });
}

/// URI, canonical spelling.
#[test]
#[rustfmt::skip]
fn canonical_spelling() {
    let table = [
        ("NBD://", "nbd://localhost/"),
        ("nbds://h:10809", "nbds://h/"),
        ("nbd://h:010810//a", "nbd://h:10810//a"),
        ("nbd://[0:0:0:0:0:0:0:1]:1/", "nbd://[::1]:1/"),
        ("nbd://[fe80::1%25eth0]", "nbd://[fe80::1%25eth0]/"),
        ("nbd://a:b%40@h/", "nbd://a%3Ab%40@h/"),
        ("nbd://%c3%bc/%7e", "nbd://%C3%BC/~"),
        ("nbd+vsock://", "nbd+vsock://2/"),
        ("nbd+vsock://5:7", "nbd+vsock://5:7/"),
        ("nbd+ssh://u@h:22/e", "nbd+ssh://u@h:22/e"),
        ("nbd+ssh://h:10809", "nbd+ssh://h:10809/"),
        ("nbd+unix:///?x-a&tls-type=psk&socket=a+b;c", "nbd+unix:///?socket=a%2Bb%3Bc&tls-type=psk&x-a="),
        ("nbds://h?tls-verify-peer=yes&a%26=%3D%25", "nbds://h/?tls-verify-peer=1&a%26=%3D%25"),
    ];
    for (text, written) in table {
        assert_eq!(parse(text).to_string(), written, "{text}");
        assert_eq!(parse(written), parse(text), "{text}");
    }
}

#[test]
#[rustfmt::skip]
fn constructors() {
    let uri = Uri::tcp(Ipv6Addr::LOCALHOST, 1, "a/b c#?%").unwrap();
    assert_eq!(uri.to_string(), "nbd://[::1]:1/a/b%20c%23%3F%25");
    assert_eq!(parse(&uri.to_string()), uri);

    let uri = Uri::tcp(zoned("fe80::1", "é"), DEFAULT_PORT, "").unwrap();
    assert_eq!(uri.to_string(), "nbd://[fe80::1%25%C3%A9]/");
    assert_eq!(parse(&uri.to_string()), uri);

    // A name that is an address becomes that address.
    for (text, host) in [
        ("127.0.0.1", Ipv4Addr::LOCALHOST.into()),
        ("::1", Ipv6Addr::LOCALHOST.into()),
        ("fe80::1%eth0", zoned("fe80::1", "eth0")),
        ("a.example", name("a.example")),
    ] {
        let uri = Uri::tcp(name(text), 0, "").unwrap();
        assert_eq!(uri.transport(), &tcp(host.clone(), 0));
        assert_eq!(parse(&uri.to_string()), uri);
        assert_eq!(text.parse(), Ok(host.clone()));
        assert_eq!(host.to_string(), text);
    }

    let uri = Uri::unix(b"\0/s\0\xff", "e").unwrap().require_tls();
    assert_eq!(uri.to_string(), "nbds+unix:///e?socket=%00/s%00%FF");
    assert_eq!(parse(&uri.to_string()), uri);
    assert_eq!(uri.transport().abstract_name(), Some(&b"/s\0\xff"[..]));
    assert_eq!(unix("/s").abstract_name(), None);
    assert_eq!(tcp(name("h"), 1).abstract_name(), None);

    let long = "e".repeat(4097);
    let table = [
        (Uri::tcp(name(""), 1, ""), UriError::Host { at: 0 }),
        (Uri::tcp(name("-o"), 1, ""), UriError::LeadingDash { at: 0 }),
        (Uri::tcp(name("a b"), 1, ""), UriError::Host { at: 1 }),
        (Uri::tcp(name("é/"), 1, ""), UriError::Host { at: 2 }),
        (Uri::tcp(name("[::1]"), 1, ""), UriError::Host { at: 0 }),
        (Uri::tcp(name("::1%"), 1, ""), UriError::Host { at: 0 }),
        (Uri::tcp(zoned("::1", ""), 1, ""), UriError::Host { at: 0 }),
        (Uri::tcp(zoned("::1", "a]"), 1, ""), UriError::Host { at: 1 }),
        (Uri::tcp(name("h"), 1, "a\0"), UriError::Nul { at: 1 }),
        (Uri::tcp(name("h"), 1, &long), UriError::ExportTooLong { at: 4096 }),
        (Uri::unix("", "e"), UriError::SocketMissing { at: 0 }),
        (Uri::unix("a\0", "e"), UriError::Nul { at: 1 }),
        (Uri::unix("a", "\0"), UriError::Nul { at: 0 }),
    ];
    for (result, error) in table {
        assert_eq!(result, Err(error));
    }
}

/// A small deterministic generator (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

/// Mutated URIs never panic; an error has an offset inside the text; an
/// accepted URI has valid parts and parses from its canonical spelling.
#[test]
fn mutations() {
    const SEEDS: [&str; 8] = [
        "nbd://user@host.example:10810/export%20name?x-a=b&foo=bar",
        "nbds://[fe80::1%25eth0]:1/%E2%82%AC?tls-type=psk&tls-verify-peer=0",
        "nbd+unix:///disk?socket=%00abstract%00name&tls-hostname=h",
        "nbds+unix://alice@/?socket=/tmp/s&tls-certificates=/c&tls-psk-file=k",
        "nbd+vsock://2:10809/",
        "nbds+ssh://u@h:22/e?socket=/s",
        "nbd://127.0.0.1/?tls-username=u&tls-priority=NORMAL",
        "NBD://%68",
    ];
    const TOKENS: [&[u8]; 20] = [
        b"%", b"%00", b"%2d", b"%C3", b"%A9", b"%25", b"/", b"//", b"?", b"&", b"=", b"@", b":",
        b"[", b"]", b"-", b"#", b"socket=", b"\xff", b"99999",
    ];
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut accepted = 0;
    for round in 0..60_000 {
        let mut text = SEEDS[round % SEEDS.len()].as_bytes().to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(text.len() + 1);
            let end = at + random.below(text.len() - at + 1).min(3);
            match random.below(4) {
                0 => drop(text.drain(at..end)),
                1 => drop(text.splice(at..end, TOKENS[random.below(TOKENS.len())].to_vec())),
                2 => text.insert(at, u8::try_from(random.below(256)).unwrap()),
                _ => {
                    let copy = text[at..end].to_vec();
                    let to = random.below(text.len() + 1);
                    drop(text.splice(to..to, copy));
                }
            }
        }
        let uri = match Uri::parse(&text) {
            Ok(uri) => uri,
            Err(error) => {
                assert!(error.offset() <= text.len(), "{error}: {text:?}");
                continue;
            }
        };
        accepted += 1;
        let written = uri.to_string();
        assert!(written.is_ascii());
        assert_eq!(Uri::parse(&written), Ok(uri.clone()), "{text:?}: {written}");
        assert!(!uri.export().contains('\0'));
        match uri.transport() {
            Transport::Tcp { host, .. } | Transport::Ssh { host, .. } => {
                let plain = host.to_string();
                assert!(!plain.starts_with('-'), "{text:?}");
                assert_eq!(plain.parse(), Ok(host.clone()), "{text:?}");
            }
            Transport::Unix { path } => assert!(!path.is_empty()),
            _ => {}
        }
    }
    assert!(accepted > 5_000, "too few mutations parse: {accepted}");
}

/// Long inputs: milliseconds for a parser in linear time, minutes for one in
/// quadratic time.
#[test]
fn long_inputs() {
    const LENGTH: usize = 1 << 16;
    for unit in [
        "a", "%41", "&", "a=&", "@", ":", "/", "[", "%25", "0", "%C3%A9", "%FF", "x-a&",
    ] {
        let filler = unit.repeat(LENGTH / unit.len());
        for prefix in [
            "",
            "nbd://",
            "nbd://[::1%25",
            "nbd://h:",
            "nbd://h/",
            "nbd://h?",
            "nbd+unix:///?socket=",
        ] {
            if let Ok(uri) = Uri::parse(format!("{prefix}{filler}")) {
                assert_eq!(parse(&uri.to_string()), uri);
            }
        }
    }
}

#[test]
fn another_export_of_the_same_server() {
    let uri = parse("nbds://u@h:1/a?tls-hostname=n&x-y=z");
    let other = uri.clone().with_export("b c").unwrap();
    assert_eq!(other, parse("nbds://u@h:1/b%20c?tls-hostname=n&x-y=z"));
    assert_eq!(
        uri.with_export("b\0"),
        Err(UriError::Nul { at: 1 }),
        "a name that has no encoding"
    );
}
