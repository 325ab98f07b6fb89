//! The owner's rules of the protocol, one test each: set a state, feed an event, compare the
//! commands. Here: order, quorum and caps.

mod closing;
mod ensemble;
mod trouble;

use bytes::Bytes;
use geminga_meta::record::LedgerOwner;
use geminga_proto::id::ManagedLedgerId;

use super::*;
use crate::engine::{CommitAnswer, MetadataAnswer};
use crate::metadata::{Fragment, LedgerState};

const LIMITS: EngineLimits =
    EngineLimits { max_pending_bytes: 1_000, max_lag_bytes: 300, timeout_ticks: 3, retry_ticks: 2 };

fn bookie(name: &str) -> BookieId {
    BookieId::new(name).expect("valid")
}

fn bookies(names: &str) -> Vec<BookieId> {
    names.split(' ').map(bookie).collect()
}

fn metadata(names: &str, ack_quorum: u32) -> LedgerMetadata {
    let bookies = bookies(names);
    LedgerMetadata {
        id: LedgerId(1),
        token: LedgerToken(7),
        owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
        state: LedgerState::Open,
        write_quorum: bookies.len() as u32,
        ack_quorum,
        fragments: vec![Fragment { first_entry: EntryId(0), bookies }],
        last_entry: Lac::NONE,
        bytes: 0,
        created_ms: 0,
        under_replicated: false,
    }
}

/// An engine and the commands that it gave and nobody has looked at.
struct Bench {
    engine: AppendEngine,
    out: Vec<Command>,
}

impl Bench {
    fn new(names: &str, ack_quorum: u32) -> Self {
        let created = Versioned { metadata: metadata(names, ack_quorum), version: 1 };
        Self { engine: AppendEngine::owner(created, LIMITS), out: Vec::new() }
    }

    fn append(&mut self, bytes: usize) -> EntryId {
        let payload = Payload::from(Bytes::from(vec![1; bytes]));
        self.engine.append(payload, &mut self.out).expect("taken")
    }

    fn append_many(&mut self, count: usize) {
        for _ in 0..count {
            self.append(1);
        }
    }

    fn ok(&mut self, name: &str, entry: u64) {
        self.engine.append_answered(&bookie(name), EntryId(entry), Ok(()), &mut self.out);
    }

    fn refuse(&mut self, name: &str, entry: u64, error: BookieError) {
        self.engine.append_answered(&bookie(name), EntryId(entry), Err(error), &mut self.out);
    }

    fn replace(&mut self, names: &str) {
        let picked = if names.is_empty() { Vec::new() } else { bookies(names) };
        self.engine.replacement(picked, &mut self.out);
    }

    fn committed(&mut self, answer: CommitAnswer) {
        self.engine.commit_answered(answer, &mut self.out);
    }

    fn found(&mut self, metadata: LedgerMetadata, version: u64) {
        let found = MetadataAnswer::Found(Versioned { metadata, version });
        self.engine.metadata_read(found, &mut self.out);
    }

    fn ticks(&mut self, count: u32) {
        for _ in 0..count {
            self.engine.tick(&mut self.out);
        }
    }

    /// What was commanded since the last look.
    fn take(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.out)
    }

    /// Since the last look: who was sent which entries.
    fn sent(&mut self) -> Vec<(String, u64)> {
        let sent = |command: Command| match command {
            Command::Send { bookie, request } => Some((bookie.to_string(), request.entry.0)),
            _ => None,
        };
        self.take().into_iter().filter_map(sent).collect()
    }

    /// Since the last look: the record that was to be written.
    fn written(&mut self) -> LedgerMetadata {
        let written = |command| match command {
            Command::Commit { metadata, .. } => Some(metadata),
            _ => None,
        };
        self.take().into_iter().find_map(written).expect("a record is to be written")
    }
}

fn confirmed(entry: u64) -> Command {
    Command::Confirmed(EntryId(entry))
}

fn pick(count: usize, exclude: &str) -> Command {
    Command::PickReplacement { count, exclude: bookies(exclude) }
}

fn failed(failure: WriterFailure, unknown: Option<(u64, u64)>) -> Command {
    let unknown = unknown.map(|(first, last)| (EntryId(first), EntryId(last)));
    Command::Failed { failure, unknown }
}

#[test]
fn each_entry_goes_to_the_whole_ensemble_with_the_lac_of_that_moment() {
    let mut bench = Bench::new("a b c", 2);
    assert_eq!(bench.append(4), EntryId(0));
    bench.ok("a", 0);
    bench.ok("b", 0);
    assert_eq!(bench.append(4), EntryId(1));
    let lacs: Vec<_> = bench
        .take()
        .into_iter()
        .filter_map(|command| match command {
            Command::Send { bookie, request } => {
                assert_eq!(request.kind, AddKind::Ordinary);
                assert_eq!(request.token, LedgerToken(7));
                Some((bookie.to_string(), request.entry.0, request.lac.to_wire()))
            }
            _ => None,
        })
        .collect();
    let text = |name: &str| name.to_owned();
    let first = [(text("a"), 0, -1), (text("b"), 0, -1), (text("c"), 0, -1)];
    let second = [(text("a"), 1, 0), (text("b"), 1, 0), (text("c"), 1, 0)];
    assert_eq!(lacs, [first, second].concat());
}

#[test]
fn an_entry_is_confirmed_at_its_ack_quorum_and_not_before() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(4);
    bench.take();
    bench.ok("a", 0);
    bench.ok("a", 0);
    assert_eq!(bench.take(), [], "one bookie counts once, however often it answers");
    bench.ok("c", 0);
    assert_eq!(bench.take(), [confirmed(0)]);
    bench.ok("b", 0);
    assert_eq!(bench.take(), [], "and an entry is confirmed once");
}

#[test]
fn an_entry_is_confirmed_only_after_every_entry_before_it() {
    let mut bench = Bench::new("a b c", 2);
    bench.append_many(3);
    bench.take();
    for entry in [2, 1] {
        bench.ok("a", entry);
        bench.ok("b", entry);
    }
    assert_eq!((bench.take(), bench.engine.lac()), (vec![], Lac::NONE));
    bench.ok("a", 0);
    bench.ok("b", 0);
    assert_eq!(bench.take(), [confirmed(2)], "all at once");
}

#[test]
fn answers_that_come_twice_or_too_late_do_no_harm() {
    let mut bench = Bench::new("a b c", 2);
    bench.append_many(2);
    bench.take();
    bench.ok("a", 0);
    bench.refuse("a", 0, BookieError::Unreachable);
    bench.ok("stranger", 0);
    bench.ok("a", 99);
    bench.refuse("a", 99, BookieError::Io);
    bench.committed(CommitAnswer::Committed(9));
    bench.replace("d");
    bench.found(metadata("x y z", 2), 9);
    assert_eq!(bench.take(), []);
    bench.ok("b", 0);
    assert_eq!(bench.take(), [confirmed(0)]);
}

#[test]
fn appends_above_the_cap_of_pending_bytes_are_refused_but_a_single_one_is_taken() {
    let mut bench = Bench::new("a", 1);
    assert_eq!(bench.append(5_000), EntryId(0));
    let refused = bench.engine.append(Payload::from(Bytes::from_static(b"x")), &mut bench.out);
    let limit_bytes = LIMITS.max_pending_bytes;
    assert_eq!(refused, Err(AppendRefused::TooManyPending { pending_bytes: 5_000, limit_bytes }));
    bench.ok("a", 0);
    assert_eq!((bench.append(1), bench.engine.pending_bytes()), (EntryId(1), 1));
}

#[test]
fn an_idle_ledger_wants_no_ticks() {
    let mut bench = Bench::new("a b", 1);
    assert!(!bench.engine.wants_ticks());
    bench.append(1);
    assert!(bench.engine.wants_ticks());
    bench.ok("a", 0);
    assert!(bench.engine.wants_ticks(), "b owes an answer");
    bench.ok("b", 0);
    assert!(!bench.engine.wants_ticks());
}
