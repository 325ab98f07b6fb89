//! Message ids as Pulsar's tools write and read them: `{"ledgerId", "entryId",
//! "partitionIndex", "batchIndex", …}`, with reserved ids for both ends of a topic.

use geminga_proto::id::{EntryId, LedgerId, Position};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::core::admin::ResetTo;
use crate::frontend::admin::error::ApiError;

/// A message id in a request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MessageId {
    ledger_id: i64,
    entry_id: i64,
    /// Says nothing: the path names the partition.
    #[serde(rename = "partitionIndex")]
    _partition_index: Option<i32>,
    batch_index: Option<i32>,
    #[serde(default, alias = "isExcluded")]
    excluded: bool,
    properties: Option<Map<String, Value>>,
}

/// Where a request's message id points to.
///
/// # Errors
/// 400 if it isn't one, 412 if there can't be such a message, 501 if it asks for what isn't
/// built.
pub fn read(body: Value) -> Result<ResetTo, ApiError> {
    let id: MessageId = match body {
        Value::String(end) if end == "earliest" => return Ok(ResetTo::Earliest),
        Value::String(end) if end == "latest" => return Ok(ResetTo::Latest),
        body => serde_json::from_value(body).map_err(|error| {
            let expected = r#"expected {"ledgerId", "entryId"}, "earliest" or "latest""#;
            ApiError::malformed(format!("body: {error}; {expected}"))
        })?,
    };
    if id.properties.is_some_and(|properties| !properties.is_empty()) {
        return Err(ApiError::not_built("properties of a subscription"));
    }
    match (id.ledger_id, id.entry_id) {
        (-1, -1) => return Ok(ResetTo::Earliest),
        (i64::MAX, i64::MAX) => return Ok(ResetTo::Latest),
        _ => {}
    }
    if id.excluded {
        return Err(ApiError::not_built("a position that is excluded itself"));
    }
    if id.batch_index.is_some_and(|index| index >= 0) {
        return Err(ApiError::not_built("a position inside a batch"));
    }
    match (u64::try_from(id.ledger_id), u64::try_from(id.entry_id)) {
        (Ok(ledger), Ok(entry)) => {
            Ok(ResetTo::Position(Position::new(LedgerId(ledger), EntryId(entry))))
        }
        (Err(_), _) | (_, Err(_)) => {
            let (ledger, entry) = (id.ledger_id, id.entry_id);
            let reason = format!("{ledger}:{entry} is no message id; -1:-1 is the earliest");
            Err(ApiError::refused(reason))
        }
    }
}

/// A message id in an answer. None: the topic is empty.
pub fn write(position: Option<Position>, partition: Option<u32>) -> Value {
    let (ledger, entry) = wire(position);
    let partition = partition.map_or(-1, i64::from);
    json!({ "ledgerId": ledger, "entryId": entry, "partitionIndex": partition })
}

/// `ledger:entry` in an answer. None: before the first one.
pub fn text(position: Option<Position>) -> String {
    let (ledger, entry) = wire(position);
    format!("{ledger}:{entry}")
}

fn wire(position: Option<Position>) -> (i64, i64) {
    let signed = |id: u64| i64::try_from(id).unwrap_or(i64::MAX);
    position.map_or((-1, -1), |at| (signed(at.ledger.0), signed(at.entry.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ledger: u64, entry: u64) -> Position {
        Position::new(LedgerId(ledger), EntryId(entry))
    }

    #[test]
    fn both_ends_and_positions_are_read_in_every_form_that_tools_send() {
        let max = i64::MAX;
        let java = json!({
            "ledgerId": 5, "entryId": 7, "partitionIndex": -1, "batchIndex": -1,
            "excluded": false, "properties": null,
        });
        for (body, to) in [
            (json!("earliest"), ResetTo::Earliest),
            (json!("latest"), ResetTo::Latest),
            (json!({"ledgerId": -1, "entryId": -1, "partitionIndex": -1}), ResetTo::Earliest),
            (json!({"ledgerId": max, "entryId": max, "isExcluded": true}), ResetTo::Latest),
            (json!({"ledgerId": 5, "entryId": 7}), ResetTo::Position(at(5, 7))),
            (java, ResetTo::Position(at(5, 7))),
        ] {
            assert_eq!(read(body.clone()), Ok(to), "{body}");
        }
    }

    #[test]
    fn what_is_no_message_id_is_refused_with_the_right_status() {
        for (body, status) in [
            (json!("middle"), 400),
            (json!(7), 400),
            (json!({"ledgerId": 5}), 400),
            (json!({"ledgerId": 5, "entryid": 1}), 400),
            (json!({"ledgerId": 1.5, "entryId": 1}), 400),
            (json!({"ledgerId": "5", "entryId": 1}), 400),
            (json!({"ledgerId": 9_223_372_036_854_775_808_u64, "entryId": 1}), 400),
            (json!({"ledgerId": 5, "entryId": -1}), 412),
            (json!({"ledgerId": -2, "entryId": 1}), 412),
            (json!({"ledgerId": 5, "entryId": 1, "batchIndex": 0}), 501),
            (json!({"ledgerId": 5, "entryId": 1, "isExcluded": true}), 501),
            (json!({"ledgerId": 5, "entryId": 1, "properties": {"a": "b"}}), 501),
        ] {
            let error = read(body.clone()).expect_err("refused");
            assert_eq!(error.status.as_u16(), status, "{body}: {error}");
        }
    }

    #[test]
    fn an_answers_message_id_is_minus_one_where_there_is_none() {
        let none = json!({"ledgerId": -1, "entryId": -1, "partitionIndex": -1});
        assert_eq!(write(None, None), none);
        let some = json!({"ledgerId": 3, "entryId": 4, "partitionIndex": 2});
        assert_eq!(write(Some(at(3, 4)), Some(2)), some);
        assert_eq!((text(None), text(Some(at(3, 4)))), ("-1:-1".to_owned(), "3:4".to_owned()));
    }
}
