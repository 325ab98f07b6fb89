//! Between `proto::storage` and the messages of `bookie.proto`. Pure functions; what a peer sends
//! that makes no sense is an unknown outcome.

use geminga_proto::id::{EntryId, Lac};
use geminga_proto::storage::{
    BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult, Lag, ReadRequest, ReadResult,
    ScrubProgress, StoredEntry, SyncMode,
};
use geminga_proto::v1;

pub(super) fn read(request_id: u64, request: ReadRequest) -> v1::ReadRequest {
    v1::ReadRequest {
        request_id,
        ledger_id: request.ledger.0,
        first_entry_id: request.first.0,
        max_entries: request.max_entries,
        max_bytes: request.max_bytes,
        fence: request.fence.is_some(),
        token: request.fence.map_or(0, |token| token.0),
    }
}

pub(super) fn fence(request_id: u64, request: FenceRequest) -> v1::FenceRequest {
    v1::FenceRequest { ledger_id: request.ledger.0, token: request.token.0, request_id }
}

pub(super) fn fenced(ledgers: &[FenceRequest]) -> v1::LedgersFencedRequest {
    v1::LedgersFencedRequest {
        ledger_ids: ledgers.iter().map(|asked| asked.ledger.0).collect(),
        tokens: ledgers.iter().map(|asked| asked.token.0).collect(),
    }
}

/// One bit for each of the `asked` ledgers.
pub(super) fn fenced_answer(answer: &v1::LedgersFencedAnswer, asked: usize) -> FencedResult {
    if answer.fenced.len() != asked.div_ceil(8) {
        return Err(BookieError::Invalid);
    }
    Ok((0..asked).map(|at| answer.fenced[at / 8] >> (at % 8) & 1 == 1).collect())
}

/// A status; one that this build doesn't know says nothing about the outcome.
pub(super) fn status(status: i32) -> Result<(), BookieError> {
    match v1::BookieStatus::try_from(status) {
        Ok(v1::BookieStatus::Ok) => Ok(()),
        Ok(v1::BookieStatus::FencedLedger) => Err(BookieError::Fenced),
        Ok(v1::BookieStatus::WrongToken) => Err(BookieError::WrongToken),
        Ok(v1::BookieStatus::DiskFull) => Err(BookieError::DiskFull),
        Ok(v1::BookieStatus::ReadOnly) => Err(BookieError::ReadOnly),
        Ok(v1::BookieStatus::NoSuchEntry) => Err(BookieError::NoSuchEntry),
        Ok(v1::BookieStatus::UnknownEntry) => Err(BookieError::UnknownEntry),
        Ok(v1::BookieStatus::CorruptEntry) => Err(BookieError::CorruptEntry),
        Ok(v1::BookieStatus::TooLarge) => Err(BookieError::TooLarge),
        Ok(v1::BookieStatus::Overloaded) => Err(BookieError::Overloaded),
        Ok(v1::BookieStatus::IoError) => Err(BookieError::Io),
        Ok(v1::BookieStatus::Invalid) => Err(BookieError::Invalid),
        Ok(v1::BookieStatus::Unspecified) | Err(_) => Err(BookieError::Unreachable),
    }
}

pub(super) fn read_answer(answer: v1::ReadAnswer) -> ReadResult {
    status(answer.status)?;
    let stored = |entry: v1::StoredEntry| StoredEntry {
        entry: EntryId(entry.entry_id),
        lac: Lac::from_wire(entry.lac),
        payload: entry.payload,
    };
    Ok(answer.entries.into_iter().map(stored).collect())
}

pub(super) fn fence_answer(answer: &v1::FenceAnswer) -> FenceResult {
    status(answer.status)?;
    Ok(Lac::from_wire(answer.lac))
}

pub(super) fn info(answer: &v1::InfoAnswer) -> Result<BookieInfo, BookieError> {
    let modes = [SyncMode::DirectDsync, SyncMode::Fdatasync];
    let sync_mode = modes.into_iter().find(|mode| mode.as_str() == answer.sync_mode);
    Ok(BookieInfo {
        sync_mode: sync_mode.ok_or(BookieError::Invalid)?,
        total_bytes: answer.total_bytes,
        free_bytes: answer.free_bytes,
        writable: answer.writable,
        ledgers: answer.ledgers,
        segments: answer.segments,
        lag: Lag { oldest_ms: answer.lag_ms, bytes: answer.lag_bytes },
    })
}

pub(super) fn scrub(answer: &v1::ScrubAnswer) -> ScrubProgress {
    let v1::ScrubAnswer { total_bytes, done_bytes, running, damaged_entries } = *answer;
    ScrubProgress { total_bytes, done_bytes, running, damaged_entries }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_of_another_length_than_the_question_is_refused() {
        let answer = |bytes: &'static [u8], asked| {
            fenced_answer(&v1::LedgersFencedAnswer { fenced: bytes.into() }, asked)
        };
        assert_eq!(answer(&[0b101], 3), Ok(vec![true, false, true]));
        assert_eq!(answer(&[0, 1], 9).map(|bits| bits[8]), Ok(true));
        assert_eq!(answer(&[], 0), Ok(vec![]));
        assert_eq!(answer(&[0], 9), Err(BookieError::Invalid));
        assert_eq!(answer(&[0, 0], 8), Err(BookieError::Invalid));
    }

    #[test]
    fn a_status_that_is_not_known_is_an_unknown_outcome() {
        assert_eq!(status(v1::BookieStatus::Ok as i32), Ok(()));
        assert_eq!(status(0), Err(BookieError::Unreachable));
        assert_eq!(status(4_711), Err(BookieError::Unreachable));
        assert_eq!(status(-1), Err(BookieError::Unreachable));
    }
}
