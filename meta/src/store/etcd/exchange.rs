//! [`Exchange`]: one request and its answer, of a key or of many, of a transaction or of several
//! that go together as parts of one (`together`).
//!
//! Invariant: an answer is taken only if it is from the etcd that is known, and has a part for
//! each part of the request.

use std::sync::Arc;

use etcd_client::{GetOptions, ResponseHeader, TxnOp, TxnOpResponse};

use super::error::{Failure, failure};
use super::identity::Identity;
use super::pool::{Kind, Place, Pool};
use super::request::{Root, sender};
use super::together::is_about_one;
use crate::keys;
use crate::store::{KeyValue, Revision, StoreError, Txn, TxnOutcome};

/// What it takes to ask etcd something.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) root: Root,
    pub(super) pool: Arc<Pool>,
    pub(super) identity: Arc<Identity>,
}

impl Exchange {
    /// Checks the header of a linearizable answer.
    pub(super) fn answered(
        &self,
        header: Option<&ResponseHeader>,
        floor: Revision,
    ) -> Result<Revision, Failure> {
        let sender = sender(header)?;
        self.identity.linearizable(sender, floor).map_err(Failure::Final)?;
        Ok(sender.revision)
    }

    /// The same of a write, which by now is done.
    pub(super) fn write_answered(
        &self,
        header: Option<&ResponseHeader>,
        floor: Revision,
    ) -> Result<Revision, Failure> {
        self.answered(header, floor).map_err(Failure::after_write)
    }

    /// Reads a key.
    pub(super) async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let read = async |mut place: Place| {
            let floor = self.identity.highest();
            let answer =
                place.connection.kv.get(self.root.key(key), None).await.map_err(failure)?;
            self.answered(answer.header(), floor)?;
            if key == keys::CLUSTER {
                self.identity.record_found(answer.kvs().first()).map_err(Failure::Final)?;
            }
            answer.kvs().first().map(|pair| self.root.pair(pair)).transpose()
        };
        self.pool.call(Kind::Idempotent, read).await
    }

    /// Reads keys that go together.
    pub(super) async fn gets(self, keys: Vec<String>) -> Vec<Result<Option<KeyValue>, StoreError>> {
        if keys.len() > 1 {
            match self.get_all(&keys).await {
                Ok(found) => return found.into_iter().map(Ok).collect(),
                Err(error) if !is_about_one(&error) => return vec![Err(error); keys.len()],
                Err(_) => {}
            }
        }
        let mut answers = Vec::with_capacity(keys.len());
        for key in &keys {
            let answer = match unsent(answers.last()) {
                Some(why) => Err(why),
                None => self.get(key).await,
            };
            answers.push(answer);
        }
        answers
    }

    /// Applies transactions that go together, each by itself.
    pub(super) async fn txns(self, txns: Vec<Txn>) -> Vec<Result<TxnOutcome, StoreError>> {
        if txns.len() > 1 {
            match self.txn_all(&txns).await {
                Ok(outcomes) => return outcomes.into_iter().map(Ok).collect(),
                Err(error) if !is_about_one(&error) => return vec![Err(error); txns.len()],
                Err(_) => {}
            }
        }
        let mut answers = Vec::with_capacity(txns.len());
        for txn in &txns {
            let answer = match unsent(answers.last()) {
                Some(why) => Err(why),
                None => self.txn(txn).await,
            };
            answers.push(answer);
        }
        answers
    }

    /// Reads several keys at one revision.
    async fn get_all(&self, keys: &[String]) -> Result<Vec<Option<KeyValue>>, StoreError> {
        let ops: Vec<_> = keys.iter().map(|key| TxnOp::get(self.root.key(key), None)).collect();
        let request = etcd_client::Txn::new().and_then(ops);
        let read = async |mut place: Place| {
            let floor = self.identity.highest();
            let answer = place.connection.kv.txn(request.clone()).await.map_err(failure)?;
            self.answered(answer.header(), floor)?;
            let parts = answer.op_responses();
            if parts.len() != keys.len() {
                return Err(incomplete(parts.len(), keys.len()));
            }
            parts.iter().zip(keys).map(|(part, key)| self.pair_of(part, key)).collect()
        };
        self.pool.call(Kind::Idempotent, read).await
    }

    fn pair_of(&self, part: &TxnOpResponse, key: &str) -> Result<Option<KeyValue>, Failure> {
        let TxnOpResponse::Get(found) = part else {
            return Err(Failure::Lost(format!("the answer to a read of {key:?} is none")));
        };
        match found.kvs().first().map(|pair| self.root.pair(pair)).transpose()? {
            Some(pair) if pair.key != key => {
                Err(Failure::Lost(format!("{:?} is answered for {key:?}", pair.key)))
            }
            found => Ok(found),
        }
    }

    /// Applies a transaction.
    async fn txn(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        let request = self.root.txn(txn)?;
        let write = async |mut place: Place| {
            let floor = self.identity.highest();
            let answer = place.connection.kv.txn(request.clone()).await.map_err(failure)?;
            let revision = self.write_answered(answer.header(), floor)?;
            Ok(outcome(answer.succeeded(), revision))
        };
        let before = self.identity.highest();
        self.settled(before, self.pool.call(Kind::Write, write).await).await
    }

    /// Applies several transactions, each by itself, none of which writes what another one writes
    /// or compares.
    async fn txn_all(&self, txns: &[Txn]) -> Result<Vec<TxnOutcome>, StoreError> {
        let parts = txns.iter().map(|txn| self.root.txn(txn).map(TxnOp::txn));
        let mut parts = parts.collect::<Result<Vec<_>, _>>()?;
        // etcd looks at its quota only for puts that are not within a part (`costTxnReq`).
        parts.push(TxnOp::put(self.root.key(keys::TOGETHER), Vec::new(), None));
        let request = etcd_client::Txn::new().and_then(parts);
        let write = async |mut place: Place| {
            let floor = self.identity.highest();
            let answer = place.connection.kv.txn(request.clone()).await.map_err(failure)?;
            // Only the whole has a revision; all that was written has that one.
            let revision = self.write_answered(answer.header(), floor)?;
            let mut parts = answer.op_responses();
            if parts.len() != txns.len() + 1 {
                return Err(incomplete(parts.len(), txns.len() + 1));
            }
            parts.truncate(txns.len());
            let part = |part: &TxnOpResponse| match part {
                TxnOpResponse::Txn(part) => Ok(outcome(part.succeeded(), revision)),
                _ => Err(Failure::Lost("the answer to a transaction is none".to_owned())),
            };
            parts.iter().map(part).collect()
        };
        let before = self.identity.highest();
        self.settled(before, self.pool.call(Kind::Write, write).await).await
    }

    /// Was a transaction done that etcd has refused as full? etcd looks at its quota before it
    /// lets one in, and again after it has applied it, and says the same both times. Either way
    /// nothing of it is on its way any more.
    async fn settled<T>(
        &self,
        before: Revision,
        answer: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Err(StoreError::Full(why)) = answer else { return answer };
        let read = async |mut place: Place| {
            let floor = self.identity.highest();
            let key = self.root.key(keys::CLUSTER);
            let options = GetOptions::new().with_keys_only();
            let answer = place.connection.kv.get(key, Some(options)).await.map_err(failure)?;
            self.answered(answer.header(), floor)
        };
        Err(full_error(before, self.pool.call(Kind::Idempotent, read).await, why))
    }
}

/// What goes one by one after all isn't sent any more once one had no answer: its senders wait no
/// longer than they would for one.
fn unsent<A>(before: Option<&Result<A, StoreError>>) -> Option<StoreError> {
    match before {
        Some(Err(StoreError::Unavailable(why) | StoreError::Unknown(why))) => {
            Some(StoreError::Unavailable(why.clone()))
        }
        _ => None,
    }
}

fn outcome(succeeded: bool, revision: Revision) -> TxnOutcome {
    if succeeded { TxnOutcome::Applied(revision) } else { TxnOutcome::Conflict(revision) }
}

fn incomplete(parts: usize, asked: usize) -> Failure {
    Failure::Lost(format!("{parts} parts are answered of {asked}"))
}

/// What a transaction that was refused as full has come to: etcd was at revision `before`, or a
/// higher one, when it was sent, and is at `now` after it was refused.
fn full_error(before: Revision, now: Result<Revision, StoreError>, why: String) -> StoreError {
    match now {
        // Only puts need space, and each transaction that puts takes a revision: it wasn't done.
        Ok(now) if now == before => StoreError::Full(why),
        // By this transaction, or by others: whoever sent it looks for its nonce.
        Ok(_) => StoreError::Unknown(why),
        Err(error) => StoreError::Unknown(format!("{why}; and then: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_one_without_an_answer_the_others_are_not_sent() {
        let late = || "late".to_owned();
        let unsent = |before: Result<(), StoreError>| unsent(Some(&before));
        assert_eq!(unsent(Ok(())), None);
        assert_eq!(unsent(Err(StoreError::Full(late()))), None);
        for before in [StoreError::Unknown(late()), StoreError::Unavailable(late())] {
            assert_eq!(unsent(Err(before)), Some(StoreError::Unavailable(late())));
        }
    }

    #[test]
    fn a_transaction_refused_as_full_is_not_done_for_certain_only_if_nothing_was_written_since() {
        let settled = |now| full_error(Revision(7), now, "disarm it".to_owned());
        assert_eq!(settled(Ok(Revision(7))), StoreError::Full("disarm it".to_owned()));
        assert_eq!(settled(Ok(Revision(8))), StoreError::Unknown("disarm it".to_owned()));
        for error in [
            StoreError::Unavailable("gone".to_owned()),
            StoreError::Replaced("gone".to_owned()),
            StoreError::Full("gone".to_owned()),
        ] {
            let StoreError::Unknown(why) = settled(Err(error)) else { panic!("it is guessed") };
            assert!(why.contains("disarm it") && why.contains("gone"), "{why}");
        }
    }
}
