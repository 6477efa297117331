//! The fields of a message, as JSON.

use nbd_codec::monitor::{ChunkContent, Message};
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::wire::option::OptionRequest;
use nbd_codec::wire::option_reply::{Info, OptionReply};
use nbd_codec::wire::text::Text;
use serde_json::{Map, Value, json};

/// The fields, with the type of the message. Numbers that the specification names are
/// names; cookies are hexadecimal, because JSON has no exact integers of 64 bits in
/// every reader.
pub fn of(message: &Message<'_>) -> Map<String, Value> {
    let value = match message {
        Message::Greeting(Greeting::Oldstyle(greeting)) => json!({
            "type": "greeting",
            "style": "oldstyle",
            "size": greeting.size,
            "flags": greeting.flags.to_string(),
        }),
        Message::Greeting(Greeting::Newstyle(greeting)) => json!({
            "type": "greeting",
            "style": "newstyle",
            "flags": greeting.flags.to_string(),
        }),
        Message::ClientFlags(flags) => json!({
            "type": "client flags",
            "flags": flags.to_string(),
        }),
        Message::Option {
            option,
            length,
            request,
        } => with(
            json!({
                "type": "option",
                "option": option.to_string(),
                "length": length,
            }),
            request.as_ref().map(request_fields),
        ),
        Message::OptionReply {
            option,
            reply,
            length,
            data,
        } => with(
            json!({
                "type": "option reply",
                "option": option.to_string(),
                "reply": reply.to_string(),
                "length": length,
            }),
            data.as_ref().map(reply_fields),
        ),
        Message::ExportName(reply) => json!({
            "type": "export",
            "size": reply.size,
            "flags": reply.flags.to_string(),
        }),
        Message::Request {
            extended,
            flags,
            command,
            cookie,
            offset,
            length,
            payload,
            contexts,
        } => with(
            json!({
                "type": "request",
                "extended": extended,
                "flags": flags.to_string(),
                "command": command.to_string(),
                "cookie": cookie.to_string(),
                "offset": offset,
                "length": length,
                "payload": payload,
            }),
            contexts.map(|payload| {
                json!({
                    "effect": payload.effect_length,
                    "contexts": payload.contexts.iter().map(|id| id.0).collect::<Vec<_>>(),
                })
            }),
        ),
        Message::SimpleReply {
            error,
            cookie,
            payload,
        } => json!({
            "type": "simple reply",
            "error": error.to_string(),
            "cookie": cookie.to_string(),
            "payload": payload,
        }),
        Message::Chunk {
            chunk,
            flags,
            cookie,
            offset,
            length,
            content,
        } => with(
            json!({
                "type": "chunk",
                "chunk": chunk.to_string(),
                "flags": flags.to_string(),
                "cookie": cookie.to_string(),
                "request offset": offset,
                "length": length,
            }),
            content_fields(content),
        ),
        Message::Extent32 {
            cookie,
            context,
            offset,
            extent,
        } => json!({
            "type": "extent",
            "cookie": cookie.to_string(),
            "context": context.0,
            "offset": offset,
            "length": extent.length,
            "status": extent.flags,
        }),
        Message::Extent64 {
            cookie,
            context,
            offset,
            extent,
        } => json!({
            "type": "wide extent",
            "cookie": cookie.to_string(),
            "context": context.0,
            "offset": offset,
            "length": extent.length,
            "status": extent.flags,
        }),
        other => json!({"type": other.to_string()}),
    };
    object(value)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => Map::from_iter([("value".into(), other)]),
    }
}

fn with(value: Value, more: Option<Value>) -> Value {
    let mut fields = object(value);
    if let Some(more) = more {
        fields.extend(object(more));
    }
    Value::Object(fields)
}

fn text(text: Text<'_>) -> Value {
    String::from_utf8_lossy(text.as_bytes()).into()
}

fn request_fields(request: &OptionRequest<'_>) -> Value {
    match request {
        OptionRequest::ExportName(name) => json!({"export": text(*name)}),
        OptionRequest::Info(request) | OptionRequest::Go(request) => json!({
            "export": text(request.export),
            "information": request.requests.iter().map(|info| info.to_string()).collect::<Vec<_>>(),
        }),
        OptionRequest::ListMetaContext(request) | OptionRequest::SetMetaContext(request) => json!({
            "export": text(request.export),
            "queries": request.queries.iter().map(text).collect::<Vec<_>>(),
        }),
        _ => json!({}),
    }
}

fn reply_fields(reply: &OptionReply<'_>) -> Value {
    match reply {
        OptionReply::Server { name, description } => json!({
            "export": text(*name),
            "description": text(*description),
        }),
        OptionReply::Info(info) => match info {
            Info::Export { size, flags } => json!({
                "information": "NBD_INFO_EXPORT",
                "size": size,
                "flags": flags.to_string(),
            }),
            Info::Name(name) => json!({"information": "NBD_INFO_NAME", "name": text(*name)}),
            Info::Description(description) => json!({
                "information": "NBD_INFO_DESCRIPTION",
                "description": text(*description),
            }),
            Info::BlockSize(sizes) => json!({
                "information": "NBD_INFO_BLOCK_SIZE",
                "minimum": sizes.minimum,
                "preferred": sizes.preferred,
                "maximum": sizes.maximum,
            }),
            Info::Other { info, .. } => json!({"information": info.to_string()}),
            _ => json!({}),
        },
        OptionReply::MetaContext { id, name } => json!({"context": id.0, "name": text(*name)}),
        OptionReply::Error { message, .. } => json!({"message": text(*message)}),
        _ => json!({}),
    }
}

fn content_fields(content: &ChunkContent<'_>) -> Option<Value> {
    Some(match content {
        ChunkContent::Data { offset, length } => json!({
            "offset": offset,
            "payload": length,
        }),
        ChunkContent::Hole { offset, length } => json!({"offset": offset, "hole": length}),
        ChunkContent::Extents { context, count } => json!({
            "context": context.0,
            "extents": count,
        }),
        ChunkContent::Error {
            error,
            message,
            offset,
        } => json!({
            "error": error.to_string(),
            "message": text(*message),
            "offset": offset,
        }),
        _ => return None,
    })
}
