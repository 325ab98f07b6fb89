//! [`ApiError`]: what a client of the admin port gets to see of an error, and the one place where
//! the core's errors become HTTP status codes. Pulsar's codes are used where Pulsar has the case.
//!
//! *Architecture invariant:* the matches here are exhaustive and have no `_` arm, so a new error
//! of the core doesn't compile until its status code has been decided.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use geminga_meta::read::ReadError;
use geminga_meta::store::StoreError;
use geminga_proto::id::IdError;
use geminga_proto::topic_name::NameError;
use serde_json::json;

use crate::core::admin::AdminError;
use crate::core::api::TopicError;

/// An error as it is answered: a status code and `{"reason": "…"}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct ApiError {
    /// The status code.
    pub status: StatusCode,
    /// What is wrong, and what to do.
    pub reason: String,
    /// Where the request is answered, if not here.
    pub location: Option<String>,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), location: None }
    }

    /// 307: another broker answers it, at this URL.
    pub fn elsewhere(url: String) -> Self {
        let reason = "another broker owns it; see Location";
        Self { location: Some(url), ..Self::new(StatusCode::TEMPORARY_REDIRECT, reason) }
    }

    /// 400: the request can't be understood.
    pub fn malformed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    /// 404: there is no such thing.
    pub fn not_found(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason)
    }

    /// 412: understood, and refused for its content, as Pulsar does.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, reason)
    }

    /// 501: Pulsar has it, Geminga doesn't.
    pub fn not_built(feature: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{feature}: not built in Geminga"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED {
            tracing::debug!(status = self.status.as_u16(), reason = %self.reason, "admin error");
        }
        let body = Json(json!({ "reason": self.reason }));
        let location = self.location.as_deref().map(HeaderValue::from_str);
        match location {
            None => (self.status, body).into_response(),
            Some(Ok(url)) => (self.status, [(header::LOCATION, url)], body).into_response(),
            Some(Err(_)) => {
                let reason = "the owner's admin URL is not one; check its settings";
                let body = Json(json!({ "reason": reason }));
                (StatusCode::INTERNAL_SERVER_ERROR, body).into_response()
            }
        }
    }
}

impl From<AdminError> for ApiError {
    fn from(error: AdminError) -> Self {
        let status = match &error {
            AdminError::Topic(topic) => topic_status(topic),
            AdminError::Name(name) => name_status(name),
            AdminError::Metadata(store) => store_status(store),
            AdminError::TopicNotFound(_)
            | AdminError::SubscriptionNotFound(_)
            | AdminError::TenantNotFound(_)
            | AdminError::NamespaceNotFound(_)
            | AdminError::LedgerNotFound(_)
            | AdminError::BookieNotFound(_)
            | AdminError::NotDraining(_) => StatusCode::NOT_FOUND,
            AdminError::TopicExists(_)
            | AdminError::SubscriptionExists(_)
            | AdminError::TenantExists(_)
            | AdminError::TenantNotEmpty(_)
            | AdminError::NamespaceExists(_)
            | AdminError::NamespaceNotEmpty(_) => StatusCode::CONFLICT,
            AdminError::TopicInUse { .. }
            | AdminError::SubscriptionInUse(_)
            | AdminError::TooManySubscriptions(_)
            | AdminError::InvalidPosition(_)
            | AdminError::BookieDown(_)
            | AdminError::BookieUp(_)
            | AdminError::BookieNeeded { .. }
            | AdminError::Invalid(_) => StatusCode::PRECONDITION_FAILED,
            AdminError::Record(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<TopicError> for ApiError {
    fn from(error: TopicError) -> Self {
        Self::new(topic_status(&error), error.to_string())
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self::new(name_status(&error), error.to_string())
    }
}

impl From<IdError> for ApiError {
    fn from(error: IdError) -> Self {
        let status = match error {
            IdError::NotANumber { .. } => StatusCode::BAD_REQUEST,
            IdError::NotAName { .. } => StatusCode::PRECONDITION_FAILED,
        };
        Self::new(status, error.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::new(store_status(&error), error.to_string())
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        let status = match &error {
            ReadError::Store(store) => store_status(store),
            ReadError::Record { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// Errors that pass by themselves, or at another broker, are 503, so that clients try again.
fn topic_status(error: &TopicError) -> StatusCode {
    match error {
        TopicError::Name(name) => name_status(name),
        TopicError::NotFound(_) | TopicError::NamespaceNotFound(_) | TopicError::Deleted => {
            StatusCode::NOT_FOUND
        }
        TopicError::NotOwner
        | TopicError::Unavailable(_)
        | TopicError::Fenced
        | TopicError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        TopicError::Corrupt(_) => StatusCode::INTERNAL_SERVER_ERROR,
        TopicError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
    }
}

fn name_status(error: &NameError) -> StatusCode {
    match error {
        NameError::NonPersistent(_) => StatusCode::NOT_IMPLEMENTED,
        NameError::UnknownDomain(_)
        | NameError::Shape(_)
        | NameError::NamespaceShape(_)
        | NameError::Part { .. } => StatusCode::PRECONDITION_FAILED,
    }
}

fn store_status(error: &StoreError) -> StatusCode {
    match error {
        StoreError::Unavailable(_)
        | StoreError::Unknown(_)
        | StoreError::LeaseLost
        | StoreError::Denied(_)
        | StoreError::Replaced(_) => StatusCode::SERVICE_UNAVAILABLE,
        StoreError::TooLarge(_) => StatusCode::PRECONDITION_FAILED,
        StoreError::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
        StoreError::Invalid(_) | StoreError::Corrupt(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::id::{EntryId, LedgerId, Position};

    fn text() -> String {
        "x".to_owned()
    }

    fn assert_statuses<E: Into<ApiError> + ToString>(expected: Vec<(E, u16)>) {
        for (error, status) in expected {
            let reason = error.to_string();
            let answer: ApiError = error.into();
            assert_eq!((answer.status.as_u16(), &answer.reason), (status, &reason));
        }
    }

    #[test]
    fn every_admin_error_has_pulsars_status_code() {
        let position = Position::new(LedgerId(1), EntryId(2));
        let in_use = AdminError::TopicInUse { topic: text(), users: text() };
        assert_statuses(vec![
            (AdminError::Topic(TopicError::Fenced), 503),
            (AdminError::Name(NameError::Shape(text())), 412),
            (AdminError::TopicNotFound(text()), 404),
            (AdminError::TopicExists(text()), 409),
            (in_use, 412),
            (AdminError::SubscriptionNotFound(text()), 404),
            (AdminError::SubscriptionExists(text()), 409),
            (AdminError::SubscriptionInUse(text()), 412),
            (AdminError::TooManySubscriptions(1), 412),
            (AdminError::InvalidPosition(position), 412),
            (AdminError::BookieNotFound(text()), 404),
            (AdminError::NotDraining(text()), 404),
            (AdminError::BookieDown(text()), 412),
            (AdminError::BookieUp(text()), 412),
            (AdminError::BookieNeeded { bookie: text(), left: 2, needed: 3 }, 412),
            (AdminError::TenantNotFound(text()), 404),
            (AdminError::TenantExists(text()), 409),
            (AdminError::TenantNotEmpty(text()), 409),
            (AdminError::NamespaceNotFound(text()), 404),
            (AdminError::NamespaceExists(text()), 409),
            (AdminError::NamespaceNotEmpty(text()), 409),
            (AdminError::LedgerNotFound(LedgerId(7)), 404),
            (AdminError::Invalid(text()), 412),
            (AdminError::Metadata(StoreError::Unknown(text())), 503),
            (AdminError::Record(text()), 500),
        ]);
    }

    #[test]
    fn every_topic_error_has_a_status_code_that_says_whether_to_try_again() {
        assert_statuses(vec![
            (TopicError::Name(NameError::NonPersistent(text())), 501),
            (TopicError::NotFound(text()), 404),
            (TopicError::NamespaceNotFound(text()), 404),
            (TopicError::NotOwner, 503),
            (TopicError::Unavailable(text()), 503),
            (TopicError::Fenced, 503),
            (TopicError::Corrupt(text()), 500),
            (TopicError::Deleted, 404),
            (TopicError::ShuttingDown, 503),
            (TopicError::Unsupported(text()), 501),
        ]);
    }

    #[test]
    fn every_store_error_has_a_status_code_that_says_whether_to_try_again() {
        assert_statuses(vec![
            (StoreError::Unavailable(text()), 503),
            (StoreError::Unknown(text()), 503),
            (StoreError::TooLarge(text()), 412),
            (StoreError::Invalid(text()), 500),
            (StoreError::LeaseLost, 503),
            (StoreError::Full(text()), 507),
            (StoreError::Corrupt(text()), 500),
            (StoreError::Denied(text()), 503),
            (StoreError::Replaced(text()), 503),
        ]);
        assert_statuses(vec![(ReadError::Store(StoreError::LeaseLost), 503)]);
    }

    #[test]
    fn malformed_names_are_412_and_malformed_numbers_400() {
        let part = NameError::Part { what: "topic", text: text(), why: "why" };
        assert_statuses(vec![
            (NameError::NonPersistent(text()), 501),
            (NameError::UnknownDomain(text()), 412),
            (NameError::Shape(text()), 412),
            (NameError::NamespaceShape(text()), 412),
            (part, 412),
        ]);
        assert_statuses(vec![
            (IdError::NotANumber { what: "ledger id", text: text() }, 400),
            (IdError::NotAName { what: "cluster id", text: text() }, 412),
        ]);
    }
}
