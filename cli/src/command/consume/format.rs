//! How a message is written: its bytes, or a JSON object on one line.

use std::io::{self, Write};

use geminga_client::ReceivedMessage;
use serde_json::{Map, Value, json};

use crate::args::consume::MessageFormat;

/// Writes one message.
pub(super) fn write_message(
    out: &mut impl Write,
    message: &ReceivedMessage,
    format: MessageFormat,
    whole_file: bool,
) -> io::Result<()> {
    match format {
        MessageFormat::Raw => {
            out.write_all(&message.payload)?;
            if whole_file { Ok(()) } else { out.write_all(b"\n") }
        }
        MessageFormat::Json => {
            serde_json::to_writer(&mut *out, &object(message))?;
            out.write_all(b"\n")
        }
    }
}

/// `payload` if the payload is text, else `payload_base64`.
fn object(message: &ReceivedMessage) -> Value {
    let properties: Map<String, Value> = message
        .properties
        .iter()
        .map(|(name, value)| (name.clone(), Value::String(value.clone())))
        .collect();
    let mut object = json!({
        "id": message.id.to_string(),
        "index": message.index.0,
        "key": message.key,
        "properties": properties,
        "publish_time_ms": message.publish_time_ms,
        "broker_time_ms": message.broker_time_ms,
        "event_time_ms": message.event_time_ms,
        "producer": &*message.producer_name,
        "sequence_id": message.sequence_id,
        "redelivery_count": message.redelivery_count,
    });
    let (name, value) = match std::str::from_utf8(&message.payload) {
        Ok(text) => ("payload", text.to_owned()),
        Err(_) => ("payload_base64", base64(&message.payload)),
    };
    object[name] = Value::String(value);
    if let Some(key) = &message.ordering_key {
        object["ordering_key_base64"] = Value::String(base64(key));
    }
    object
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &'static [u8]) -> ReceivedMessage {
        use geminga_client::{EntryId, LedgerId, MessageId, MessageIndex, Position};
        let position = Position::new(LedgerId(3), EntryId(4));
        ReceivedMessage {
            id: MessageId { position, batch_index: Some(1), batch_size: 2 },
            payload: payload.into(),
            key: Some("k".to_owned()),
            ordering_key: None,
            properties: vec![("unit".to_owned(), "celsius".to_owned())],
            event_time_ms: None,
            publish_time_ms: 5,
            broker_time_ms: 6,
            index: MessageIndex(7),
            producer_name: "p".into(),
            sequence_id: 8,
            redelivery_count: 0,
        }
    }

    fn written(payload: &'static [u8], format: MessageFormat, whole_file: bool) -> Vec<u8> {
        let mut out = Vec::new();
        write_message(&mut out, &message(payload), format, whole_file).expect("memory");
        out
    }

    #[test]
    fn raw_output_is_the_payload_and_a_newline_unless_it_is_a_whole_file() {
        assert_eq!(written(b"\xff\n\0", MessageFormat::Raw, false), b"\xff\n\0\n");
        assert_eq!(written(b"\xff\n\0", MessageFormat::Raw, true), b"\xff\n\0");
    }

    #[test]
    fn a_json_line_holds_text_as_text_and_other_bytes_in_base64() {
        let parse = |bytes: Vec<u8>| {
            assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
            serde_json::from_slice::<Value>(&bytes).expect("JSON")
        };
        let text = parse(written("caffè\n".as_bytes(), MessageFormat::Json, false));
        assert_eq!((&text["payload"], &text["id"]), (&json!("caffè\n"), &json!("3:4:1")));
        assert_eq!(text["properties"]["unit"], "celsius");
        let bytes = parse(written(b"\xff\xfe", MessageFormat::Json, false));
        assert_eq!((&bytes["payload_base64"], &bytes["payload"]), (&json!("//4="), &Value::Null));
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
