//! `nbd info` and `nbd list`.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use nbd_codec::Framing;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_tools::size;
use serde_json::{Map, Value, json};

use crate::describe::{self, Export, Server};
use crate::draw::Palette;
use crate::name::Name;
use crate::{address, args, stdout};

/// The transmission flags, with the names that `nbdinfo` uses.
const ABILITIES: [(&str, TransmissionFlags); 10] = [
    ("is_rotational", TransmissionFlags::ROTATIONAL),
    ("is_read_only", TransmissionFlags::READ_ONLY),
    ("can_cache", TransmissionFlags::SEND_CACHE),
    ("can_df", TransmissionFlags::SEND_DF),
    ("can_fast_zero", TransmissionFlags::SEND_FAST_ZERO),
    ("can_flush", TransmissionFlags::SEND_FLUSH),
    ("can_fua", TransmissionFlags::SEND_FUA),
    ("can_multi_conn", TransmissionFlags::CAN_MULTI_CONN),
    ("can_trim", TransmissionFlags::SEND_TRIM),
    ("can_zero", TransmissionFlags::SEND_WRITE_ZEROES),
];

pub fn info(args: &args::Info, common: &args::Common) -> Result<()> {
    let uri = address::parse(&args.uri)?;
    let server = describe::one(&uri, common.framing(), &common.settings())
        .with_context(|| uri.to_string())?;
    show(&server, args.json)
}

pub fn list(args: &args::Info, common: &args::Common) -> Result<()> {
    let uri = address::parse(&args.uri)?;
    let server = describe::all(&uri, common.framing(), &common.settings())
        .with_context(|| uri.to_string())?;
    show(&server, args.json)?;
    let errors = server.exports.iter().filter_map(|export| {
        let error = export.error.as_ref()?;
        Some(format!("the first is {:?}: {error}", export.name))
    });
    let failed = errors.clone().count();
    if let Some(first) = errors.into_iter().next() {
        let all = server.exports.len();
        bail!("{uri}: {failed} of {all} exports could not be described; {first}");
    }
    Ok(())
}

fn show(server: &Server, as_json: bool) -> Result<()> {
    let text = if as_json {
        format!("{:#}\n", to_json(server))
    } else {
        to_text(server, &Palette::of_stdout())?
    };
    stdout::write(text.as_bytes())
}

fn to_json(server: &Server) -> Value {
    json!({
        "protocol": server.style.to_string(),
        "TLS": server.tls,
        "structured": server.framing >= Framing::Structured,
        "extended": server.framing == Framing::Extended,
        "exports": server.exports.iter().map(export_to_json).collect::<Value>(),
    })
}

/// The keys in the order of `nbdinfo`, which omits what the server did not send.
fn export_to_json(export: &Export) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.into(), value);
    put("export-name", export.name.for_json().into());
    if !export.description.is_empty() {
        put("description", export.description.for_json().into());
    }
    if let Some(uri) = &export.uri {
        put("uri", uri.to_string().into());
    }
    if let Some(error) = &export.error {
        put("error", error.as_str().into());
        return object.into();
    }
    if !export.contexts.is_empty() {
        let contexts = export.contexts.iter();
        put("contexts", contexts.map(|name| name.for_json()).collect());
    }
    for (name, flag) in ABILITIES {
        put(name, export.flags.contains(flag).into());
    }
    if let Some(sizes) = export.block_sizes {
        put("block_size_minimum", sizes.minimum.into());
        put("block_size_preferred", sizes.preferred.into());
        put("block_size_maximum", sizes.maximum.into());
    }
    put("export-size", export.size.into());
    put("export-size-str", size::exact(export.size).into());
    object.into()
}

fn to_text(server: &Server, palette: &Palette) -> Result<String> {
    let tls = if server.tls { "TLS" } else { "no TLS" };
    let mut text = format!(
        "{} handshake, {tls}, {} framing\n",
        server.style, server.framing
    );
    if server.exports.is_empty() {
        text += "no exports\n";
    }
    for export in &server.exports {
        writeln!(text, "\nexport {:?}", export.name)?;
        let mut line = |label: &str, value: &str| {
            let label = palette.dim(&format!("{label:<12}"));
            writeln!(text, "  {label}  {value}")
        };
        if !export.description.is_empty() {
            line("description", &export.description.to_string())?;
        }
        if let Some(error) = &export.error {
            line("error", error)?;
            continue;
        }
        line("size", &describe_size(export.size))?;
        if let Some(uri) = &export.uri {
            line("uri", &uri.to_string())?;
        }
        let read_only = export.flags.contains(TransmissionFlags::READ_ONLY);
        let rotational = export.flags.contains(TransmissionFlags::ROTATIONAL);
        let access = if read_only {
            "read only"
        } else {
            "read and write"
        };
        let medium = if rotational { ", rotating medium" } else { "" };
        line("access", &format!("{access}{medium}"))?;
        line("can", &abilities(export, true))?;
        line("cannot", &abilities(export, false))?;
        line("block sizes", &describe_block_sizes(export))?;
        line(
            "contexts",
            &listed(export.contexts.iter().map(Name::to_string)),
        )?;
    }
    Ok(text)
}

fn describe_size(bytes: u64) -> String {
    match size::rounded(bytes) {
        rounded if rounded == format!("{bytes} B") => format!("{bytes} bytes"),
        rounded => format!("{rounded} ({bytes} bytes)"),
    }
}

fn abilities(export: &Export, wanted: bool) -> String {
    let abilities = ABILITIES.iter().filter_map(|(name, flag)| {
        let name = name.strip_prefix("can_")?;
        (export.flags.contains(*flag) == wanted).then(|| name.to_owned())
    });
    listed(abilities)
}

fn describe_block_sizes(export: &Export) -> String {
    match export.block_sizes {
        None => "not specified".into(),
        Some(sizes) => format!(
            "minimum {}, preferred {}, maximum {}",
            size::exact(sizes.minimum.into()),
            size::exact(sizes.preferred.into()),
            size::exact(sizes.maximum.into())
        ),
    }
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() {
        "none".into()
    } else {
        items.join(", ")
    }
}
