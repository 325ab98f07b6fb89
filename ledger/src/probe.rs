//! Asks bookies whether open ledgers were fenced, for an owner that can't reach the metadata: it
//! finds out without traffic that another one has taken over.
//!
//! One question to each bookie, whatever the number of ledgers. One bookie that knows of a fence is
//! enough to end the writer. That nobody has fenced a ledger is told by an ack quorum of its
//! bookies: no fence is complete without one of them. Members that a change of the record under way
//! may have replaced don't count, since whoever recovers the ledger may not ask them.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use geminga_proto::id::{BookieId, LedgerId, LedgerToken};
use geminga_proto::storage::{BookieError, FenceRequest, FencedResult};

use crate::store::StoreShared;
use crate::transport::MAX_FENCED_ASKED;
use crate::writer::LedgerWriter;

/// What is known of an open ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Probed {
    /// When it was asked, nobody had fenced it.
    Open,
    /// Another owner has fenced it; its writer has failed, and its observer hears so.
    Fenced,
    /// Its writer had ended before, by closing or by a failure.
    Ended,
    /// Too few bookies have answered to tell.
    Unheard,
}

/// A ledger that is asked about.
#[derive(Debug, Clone)]
pub(crate) struct Witnesses {
    pub token: LedgerToken,
    /// Whose word counts.
    pub bookies: Vec<BookieId>,
    pub ack_quorum: u32,
}

/// What was answered about one ledger.
#[derive(Debug)]
struct Ballot {
    ledger: LedgerId,
    token: LedgerToken,
    open: u32,
    needed: u32,
    fenced: bool,
}

/// What was answered about all of them. No I/O.
#[derive(Debug, Default)]
struct Ballots {
    ballots: Vec<Ballot>,
    /// The ballots that a bookie is asked for.
    asked: BTreeMap<BookieId, Vec<usize>>,
}

impl Ballots {
    /// Answers the number of its ballot.
    fn add(&mut self, ledger: LedgerId, witnesses: Witnesses) -> usize {
        let Witnesses { token, bookies, ack_quorum } = witnesses;
        let at = self.ballots.len();
        self.ballots.push(Ballot { ledger, token, open: 0, needed: ack_quorum, fenced: false });
        for bookie in bookies {
            self.asked.entry(bookie).or_default().push(at);
        }
        at
    }

    fn request(&self, at: usize) -> Option<FenceRequest> {
        let ballot = self.ballots.get(at)?;
        Some(FenceRequest { ledger: ballot.ledger, token: ballot.token })
    }

    /// A bookie has answered about these ballots; which of them it knows to be fenced, and nobody
    /// has said so before.
    fn answered(&mut self, asked: &[usize], answer: &FencedResult) -> Vec<usize> {
        let Ok(answer) = answer else { return Vec::new() };
        if answer.len() != asked.len() {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (at, fenced) in asked.iter().zip(answer) {
            let Some(ballot) = self.ballots.get_mut(*at) else { continue };
            if !fenced {
                ballot.open += 1;
            } else if !std::mem::replace(&mut ballot.fenced, true) {
                found.push(*at);
            }
        }
        found
    }

    /// Nothing that may still be answered changes anything.
    fn decided(&self) -> bool {
        self.ballots.iter().all(|ballot| ballot.result() != Probed::Unheard)
    }
}

impl Ballot {
    fn result(&self) -> Probed {
        if self.fenced {
            Probed::Fenced
        } else if self.open >= self.needed {
            Probed::Open
        } else {
            Probed::Unheard
        }
    }
}

/// Asks about these ledgers; answers in their order.
pub(crate) async fn probe(store: &StoreShared, writers: &[LedgerWriter]) -> Vec<Probed> {
    let mut ballots = Ballots::default();
    // The writer of each ballot.
    let mut asked = Vec::new();
    for (index, writer) in writers.iter().enumerate() {
        if let Some(witnesses) = writer.witnesses() {
            ballots.add(writer.id(), witnesses);
            asked.push(index);
        }
    }
    let mut questions = FuturesUnordered::new();
    for (bookie, about) in &ballots.asked {
        for about in about.chunks(MAX_FENCED_ASKED) {
            let requests = about.iter().filter_map(|at| ballots.request(*at)).collect();
            let (bookie, about) = (bookie.clone(), about.to_vec());
            questions.push(async move {
                let question = store.transport.fenced(&bookie, requests);
                let answer = tokio::time::timeout(store.request_timeout, question).await;
                (about, answer.unwrap_or(Err(BookieError::Unreachable)))
            });
        }
    }
    while !ballots.decided()
        && let Some((about, answer)) = questions.next().await
    {
        for at in ballots.answered(&about, &answer) {
            writers[asked[at]].fenced();
        }
    }
    let mut results = vec![Probed::Ended; writers.len()];
    for (ballot, index) in ballots.ballots.iter().zip(asked) {
        results[index] = ballot.result();
    }
    results
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::quorum::{DistributionSchedule, QuorumCoverage};

    fn bookie(index: usize) -> BookieId {
        BookieId::new(&format!("b{index}")).expect("valid")
    }

    proptest! {
        /// Whichever bookies a complete fence has reached, and whichever answer: no ledger is
        /// called open that another owner has fenced.
        #[test]
        fn a_ledger_with_a_complete_fence_is_never_called_open(
            write in 1usize..6, ack in 1usize..6, fenced: u8, heard: u8,
        ) {
            prop_assume!(ack <= write);
            let schedule = DistributionSchedule {
                ensemble: write as u32,
                write_quorum: write as u32,
            };
            let mut coverage = QuorumCoverage::new(schedule, ack as u32);
            (0..write).filter(|slot| fenced >> slot & 1 == 1).for_each(|slot| coverage.add(slot));
            let bookies: Vec<BookieId> = (0..write).map(bookie).collect();
            let (token, ack_quorum) = (LedgerToken(1), ack as u32);
            let mut ballots = Ballots::default();
            let at = ballots.add(LedgerId(1), Witnesses { token, bookies, ack_quorum });
            for slot in (0..write).filter(|slot| heard >> slot & 1 == 1) {
                ballots.answered(&[at], &Ok(vec![fenced >> slot & 1 == 1]));
            }
            let result = ballots.ballots[at].result();
            prop_assert!(result != Probed::Open || !coverage.complete());
            let known = (0..write).any(|slot| (fenced & heard) >> slot & 1 == 1);
            prop_assert_eq!(result == Probed::Fenced, known);
            let nobody = (0..write).all(|slot| heard >> slot & 1 == 1) && !known;
            prop_assert!(!nobody || result == Probed::Open);
        }
    }

    #[test]
    fn a_bookie_is_asked_once_for_all_its_ledgers_and_an_answer_of_another_length_is_none() {
        let mut ballots = Ballots::default();
        for ledger in 0..3 {
            let bookies = vec![bookie(0), bookie(1 + ledger)];
            let witnesses = Witnesses { token: LedgerToken(1), bookies, ack_quorum: 1 };
            ballots.add(LedgerId(ledger as u64), witnesses);
        }
        assert_eq!(ballots.asked[&bookie(0)], [0, 1, 2]);
        assert_eq!(ballots.asked[&bookie(2)], [1]);
        assert!(ballots.answered(&[0, 1, 2], &Ok(vec![true])).is_empty());
        assert!(ballots.answered(&[0, 1, 2], &Err(BookieError::Unreachable)).is_empty());
        assert!(!ballots.decided());
        assert_eq!(ballots.answered(&[0, 1, 2], &Ok(vec![false, true, false])), [1]);
        assert!(ballots.answered(&[1], &Ok(vec![true])).is_empty(), "it is known");
        assert!(ballots.decided());
    }
}
