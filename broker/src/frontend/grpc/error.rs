//! The core's errors as the wire's codes. Every match is exhaustive: a new error of the core is
//! mapped here or this doesn't compile.

use geminga_proto::entry::EntryError;
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::core::api::{AckError, OpenProducerError, PublishError, SubscribeError, TopicError};

/// Carries an [`ErrorCode`] in the metadata of a status that ends a stream or call.
const ERROR_CODE_KEY: &str = "geminga-error-code";

fn wire(code: ErrorCode, message: String) -> v1::Error {
    v1::Error { code: code.into(), message }
}

fn topic_code(error: &TopicError) -> ErrorCode {
    match error {
        TopicError::Name(_) => ErrorCode::InvalidTopicName,
        TopicError::NotFound(_) | TopicError::Deleted => ErrorCode::TopicNotFound,
        TopicError::NamespaceNotFound(_) => ErrorCode::NamespaceNotFound,
        TopicError::NotOwner => ErrorCode::NotOwner,
        TopicError::Unavailable(_) => ErrorCode::Unavailable,
        TopicError::Fenced => ErrorCode::Fenced,
        TopicError::Corrupt(_) => ErrorCode::StorageCorrupt,
        TopicError::ShuttingDown => ErrorCode::ShuttingDown,
        TopicError::Unsupported(_) => ErrorCode::Unsupported,
    }
}

fn entry_code(error: &EntryError) -> ErrorCode {
    match error {
        EntryError::Checksum { .. } => ErrorCode::ChecksumMismatch,
        EntryError::MessageCount { .. } => ErrorCode::InvalidBatch,
        EntryError::Truncated(_) | EntryError::Magic { .. } | EntryError::Metadata { .. } => {
            ErrorCode::InvalidRequest
        }
    }
}

/// Something about a topic.
pub(super) fn topic(error: &TopicError) -> v1::Error {
    wire(topic_code(error), error.to_string())
}

/// A producer that wasn't opened.
pub(super) fn open_producer(error: &OpenProducerError) -> v1::Error {
    let code = match error {
        OpenProducerError::Topic(error) => topic_code(error),
        OpenProducerError::Busy(_) => ErrorCode::ProducerBusy,
    };
    wire(code, error.to_string())
}

/// An entry that was refused.
pub(super) fn publish(error: &PublishError) -> v1::Error {
    let code = match error {
        PublishError::Topic(error) => topic_code(error),
        PublishError::Entry(error) => entry_code(error),
        PublishError::TooLarge { .. } => ErrorCode::MessageTooLarge,
        PublishError::StorageFull => ErrorCode::StorageFull,
        PublishError::Credit { .. } => ErrorCode::FlowControl,
    };
    wire(code, error.to_string())
}

/// A consumer that wasn't attached, or a subscription that wasn't deleted.
pub(super) fn subscribe(error: &SubscribeError) -> v1::Error {
    let code = match error {
        SubscribeError::Topic(error) => topic_code(error),
        SubscribeError::Name(_) => ErrorCode::InvalidRequest,
        SubscribeError::Busy(_) => ErrorCode::ConsumerBusy,
        SubscribeError::WrongType { .. } => ErrorCode::SubscriptionType,
        SubscribeError::NotFound(_) => ErrorCode::SubscriptionNotFound,
    };
    wire(code, error.to_string())
}

/// An acknowledgement that failed.
pub(super) fn ack(error: &AckError) -> v1::Error {
    let code = match error {
        AckError::Topic(error) => topic_code(error),
        AckError::Invalid(_) => ErrorCode::InvalidRequest,
    };
    wire(code, error.to_string())
}

/// A frame that this front-end refuses by itself.
pub(super) fn refusal(code: ErrorCode, message: impl Into<String>) -> v1::Error {
    wire(code, message.into())
}

/// Ends a stream or call, with a code that clients decide by.
pub(super) fn status(grpc: Code, code: ErrorCode, message: impl Into<String>) -> Status {
    let mut status = Status::new(grpc, message);
    status.metadata_mut().insert(ERROR_CODE_KEY, MetadataValue::from(i32::from(code)));
    status
}

/// Ends a stream whose peer broke the protocol.
pub(super) fn bad_frame(message: impl Into<String>) -> Status {
    status(Code::InvalidArgument, ErrorCode::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_code_however_deep_it_is() {
        let entry = PublishError::Entry(EntryError::Checksum { found: 1, computed: 2 });
        assert_eq!(publish(&entry).code(), ErrorCode::ChecksumMismatch);
        let owner = PublishError::Topic(TopicError::NotOwner);
        assert_eq!(publish(&owner).code(), ErrorCode::NotOwner);
        assert_eq!(ack(&AckError::Topic(TopicError::Fenced)).code(), ErrorCode::Fenced);
        let busy = SubscribeError::Busy("s".to_owned());
        assert_eq!(subscribe(&busy).code(), ErrorCode::ConsumerBusy);
        assert!(subscribe(&busy).message.contains("\"s\""));
    }

    #[test]
    fn a_status_carries_its_code_in_the_metadata() {
        let status = bad_frame("no");
        let code = status.metadata().get(ERROR_CODE_KEY).and_then(|code| code.to_str().ok());
        assert_eq!(code, Some("5"));
    }
}
