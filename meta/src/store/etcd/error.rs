//! What an error of etcd, or on the way to it, means for a request: [`Failure`].
//!
//! Invariant: *refused* and *unsent* are said only of a request that surely had no effect: it was
//! refused before it was proposed, or never sent. Everything that isn't known here counts as lost,
//! and so does what is found out after a write was done ([`Failure::after_write`]).

use std::error::Error;

use etcd_client::Error as EtcdError;
use tonic::{Code, Status};

use crate::store::StoreError;

/// Why a request to one endpoint failed. Of a transaction that was sent, [`StoreError::Full`] is
/// the one final answer that doesn't say whether it was done: the store settles it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Every endpoint would say the same.
    Final(StoreError),
    /// etcd refused it, surely without doing it; another endpoint may do it.
    Refused(String),
    /// Never sent, since there is no connection.
    Unsent(String),
    /// Surely not done, since the session isn't known any more: authenticate again.
    Session(String),
    /// etcd doesn't know what came of it: perhaps done.
    Lost(String),
    /// The connection broke after it was sent: perhaps done.
    Broken(String),
    /// Done, but the answer is larger than what is taken. Only reads are answered at length.
    AnswerTooLarge,
}

impl Failure {
    /// What is wrong with the answer to a write that etcd has carried out, or so it says: all the
    /// same it was sent, and may have been done.
    pub(super) fn after_write(self) -> Self {
        match self {
            Self::Final(error) => Self::Lost(error.to_string()),
            failure => failure,
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Final(error) => error.to_string(),
            Self::Refused(why)
            | Self::Unsent(why)
            | Self::Session(why)
            | Self::Lost(why)
            | Self::Broken(why) => why.clone(),
            Self::AnswerTooLarge => "the answer is too large".to_owned(),
        }
    }
}

/// What operators do about a full etcd.
const FULL: &str = "etcd's quota is used up and its NOSPACE alarm is raised. Compact and \
    defragment etcd (`etcdctl compact`, `etcdctl defrag`) or start it with a larger \
    --quota-backend-bytes, then clear the alarm with `etcdctl alarm disarm`";

/// What a client error means.
pub(super) fn failure(error: EtcdError) -> Failure {
    match error {
        EtcdError::GRpcStatus(status) => status_failure(&status),
        // The one error of its kind: etcd answers a keep-alive of an unknown lease with 0 s.
        EtcdError::LeaseKeepAliveError(text) if text == "lease not found" => {
            Failure::Final(StoreError::LeaseLost)
        }
        EtcdError::InvalidArgs(why) => Failure::Final(StoreError::Invalid(why)),
        other => Failure::Broken(root_cause(&other)),
    }
}

fn status_failure(status: &Status) -> Failure {
    // What the transport says has a cause; what a server says is text.
    if status.source().is_some() {
        let text = root_cause(status);
        return if never_sent(status) { Failure::Unsent(text) } else { Failure::Broken(text) };
    }
    let text = status.message();
    let said = text.strip_prefix("etcdserver: ").unwrap_or(text);
    match said {
        "mvcc: database space exceeded" => Failure::Final(StoreError::Full(FULL.to_owned())),
        "requested lease not found" => Failure::Final(StoreError::LeaseLost),
        "request is too large" | "too many operations in txn request" | "too large lease TTL" => {
            Failure::Final(StoreError::TooLarge(format!("etcd says: {said}")))
        }
        "authentication failed, invalid user ID or password" => {
            denied("etcd doesn't know this user with this password")
        }
        "user name is empty" => denied("etcd wants a user and a password, and none are set"),
        "authentication is not enabled" => {
            denied("a user is set, but etcd has no authentication enabled")
        }
        "permission denied" => denied("etcd's user may not use the keys below the prefix"),
        "revision of auth store is old" => Failure::Session(said.to_owned()),
        // Refused before anything is proposed.
        "no leader" | "too many requests" | "not capable" => Failure::Refused(said.to_owned()),
        _ => code_failure(status.code(), said),
    }
}

fn code_failure(code: Code, said: &str) -> Failure {
    match code {
        Code::Unauthenticated => Failure::Session(said.to_owned()),
        Code::PermissionDenied => denied(said),
        Code::DataLoss => Failure::Final(StoreError::Corrupt(format!("etcd says: {said}"))),
        Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists => {
            Failure::Final(StoreError::Invalid(format!("etcd says: {said}")))
        }
        Code::ResourceExhausted if said.contains("message larger than max") => {
            Failure::Final(StoreError::TooLarge(format!("etcd says: {said}")))
        }
        Code::Unimplemented => Failure::Refused(format!("it is no etcd of 3.4 or newer ({said})")),
        Code::OutOfRange if said.contains("decoded message length too large") => {
            Failure::AnswerTooLarge
        }
        _ if said.is_empty() => Failure::Lost(format!("{code:?}")),
        _ => Failure::Lost(said.to_owned()),
    }
}

fn denied(why: &str) -> Failure {
    Failure::Final(StoreError::Denied(why.to_owned()))
}

/// True if there was no connection to send the request over.
fn never_sent(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(<dyn Error + 'static>::is::<tonic::ConnectError>)
}

/// The innermost cause's text, of those that have one: the layers above it say "transport error".
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let texts = causes(error).map(ToString::to_string);
    let last = texts.filter(|text| !text.trim().is_empty()).last();
    last.unwrap_or_else(|| "the connection broke".to_owned())
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, message: &str) -> Failure {
        failure(EtcdError::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn what_etcd_says_gets_its_meaning() {
        let full = of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert!(matches!(full, Failure::Final(StoreError::Full(why)) if why.contains("disarm")));
        let lease = of(Code::NotFound, "etcdserver: requested lease not found");
        assert_eq!(lease, Failure::Final(StoreError::LeaseLost));
        for (code, text) in [
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            (Code::ResourceExhausted, "grpc: received message larger than max (3 vs. 2)"),
            (Code::OutOfRange, "etcdserver: too large lease TTL"),
        ] {
            let large = of(code, text);
            assert!(matches!(large, Failure::Final(StoreError::TooLarge(_))), "{text}: {large:?}");
        }
        for (code, text) in [
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (Code::FailedPrecondition, "etcdserver: authentication is not enabled"),
        ] {
            let denied = of(code, text);
            assert!(matches!(denied, Failure::Final(StoreError::Denied(_))), "{text}: {denied:?}");
        }
        for (code, text) in [
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
        ] {
            assert!(matches!(of(code, text), Failure::Session(_)), "{text}");
        }
        let large = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        assert_eq!(of(Code::OutOfRange, large), Failure::AnswerTooLarge);
    }

    #[test]
    fn only_what_was_surely_not_proposed_counts_as_refused() {
        for (code, text) in [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
            (Code::Unimplemented, ""),
        ] {
            assert!(matches!(of(code, text), Failure::Refused(_)), "{text}");
        }
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            (Code::Unknown, "something new"),
            (Code::Internal, ""),
        ] {
            assert!(matches!(of(code, text), Failure::Lost(_)), "{text}");
        }
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
        let unsent = Status::from_error(Box::new(tonic::ConnectError(Box::new(refused))));
        assert_eq!(status_failure(&unsent), Failure::Unsent("refused".to_owned()));
        let reset = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset");
        let broken = Status::from_error(Box::new(reset));
        assert_eq!(status_failure(&broken), Failure::Broken("reset".to_owned()));
    }

    #[test]
    fn a_write_that_was_answered_may_have_been_done_whatever_is_wrong_with_the_answer() {
        let replaced = Failure::Final(StoreError::Replaced("it is at revision 3".to_owned()));
        let Failure::Lost(why) = replaced.after_write() else { panic!("it counts as not done") };
        assert!(why.contains("replaced") && why.contains("revision 3"), "{why}");
        let lost = Failure::Lost("an answer has no header".to_owned());
        assert_eq!(lost.clone().after_write(), lost);
    }

    #[test]
    fn a_cause_without_words_leaves_the_word_to_what_it_caused() {
        #[derive(Debug, thiserror::Error)]
        #[error("{text}")]
        struct Layer {
            text: &'static str,
            source: Option<Box<Layer>>,
        }
        let layer = |text, source: Option<Layer>| Layer { text, source: source.map(Box::new) };
        let wordless = layer("transport", Some(layer("reset", Some(layer(" ", None)))));
        assert_eq!(root_cause(&wordless), "reset");
        assert_eq!(root_cause(&layer("", None)), "the connection broke");
    }

    #[test]
    fn a_lease_that_etcd_does_not_know_is_lost() {
        let lost = failure(EtcdError::LeaseKeepAliveError("lease not found".to_owned()));
        assert_eq!(lost, Failure::Final(StoreError::LeaseLost));
        let ended = failure(EtcdError::WatchError("failed to create lease keeper".to_owned()));
        assert!(matches!(ended, Failure::Broken(_)));
    }
}
