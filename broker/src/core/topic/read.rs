//! Reads entries for subscriptions from bookies, off the topic's lock, in ranges, and a range
//! ahead of what was asked for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_ledger::error::{OpenError, ReadError};
use geminga_ledger::reader::LedgerReader;
use geminga_proto::entry::{EntryError, message_count, split_stored};
use geminga_proto::id::{EntryId, LedgerId, MessageIndex, Position};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{BookieError, StoredEntry};

use crate::core::api::TopicError;
use crate::core::budget::{BytePermit, EntryPermit};
use crate::core::cache::CachedEntry;
use crate::core::context::{Context, unavailable};
use crate::core::cursor::EntrySpan;
use crate::core::dispatch::{EntryRun, ReadRequest, ReadTarget, ReadToken, ReadyEntry};
use crate::core::state_log::CursorId;
use crate::core::topic::log::{Log, Place, Source};
use crate::core::topic::subscriptions::SubscriptionSlot;
use crate::core::topic::{State, Status, Topic};

/// Wait before a failed read is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Why entries can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The ledger can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The entries can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was stored isn't an entry.
    #[error("entry {position} is damaged: {error}")]
    Damaged {
        /// The entry.
        position: Position,
        /// What is wrong with it.
        error: EntryError,
    },
    /// The topic ends before it.
    #[error("there is no entry at or after {0}")]
    Nothing(Position),
    /// The topic was closed meanwhile.
    #[error("the topic was closed")]
    Closed,
}

impl FetchError {
    /// True if asking again won't help: what is stored is damaged.
    fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Open(OpenError::Damaged { .. }) => true,
            Self::Read(ReadError::Bookies { error, .. }) => *error == BookieError::CorruptEntry,
            Self::Open(_) | Self::Read(_) | Self::Nothing(_) | Self::Closed => false,
        }
    }
}

/// Opens a closed ledger for reading, or finds it open.
pub async fn reader(context: &Context, ledger: LedgerId) -> Result<LedgerReader, OpenError> {
    if let Some(reader) = context.readers.get(&ledger) {
        return Ok(reader);
    }
    let reader = context.ledgers.open(ledger).await?;
    context.readers.insert(ledger, reader.clone());
    Ok(reader)
}

/// Takes a stored entry apart.
pub fn parse(ledger: LedgerId, stored: &StoredEntry) -> Result<(EntrySpan, Payload), FetchError> {
    let position = Position::new(ledger, stored.entry);
    let damaged = |error| FetchError::Damaged { position, error };
    let (header, entry) = split_stored(&stored.payload).map_err(damaged)?;
    let messages = message_count(&entry).map_err(damaged)?;
    let first_index = (header.last_index + 1).saturating_sub(u64::from(messages));
    let head: Bytes = stored.payload.slice(..stored.payload.len() - entry.len());
    let span = EntrySpan { position, first_index: MessageIndex(first_index), messages };
    Ok((span, Payload::new(head, entry)))
}

impl Topic {
    /// What was read ahead, if it is what is asked for now. Anything else that was read ahead is
    /// of no use any more.
    pub(super) fn take_ahead(
        &self,
        log: &Log,
        slot: &mut SubscriptionSlot,
        first: Position,
        request: &ReadRequest,
    ) -> Option<Vec<ReadyEntry>> {
        if matches!(request.target, ReadTarget::Runs(_)) {
            return None;
        }
        let taken = slot.ahead.as_mut()?.take(first, request);
        match taken.as_ref().and_then(|taken| taken.last()) {
            None => slot.ahead = None,
            Some(last) => {
                let last = last.span.position;
                self.prefetch(log, slot, last);
            }
        }
        taken
    }

    /// Reads in a task of its own.
    pub(super) fn spawn_read(&self, slot: &SubscriptionSlot, request: ReadRequest) {
        let Some(topic) = self.me.upgrade() else { return };
        let (name, cursor) = (Arc::clone(slot.subscription.name()), slot.cursor);
        self.spawn_watched("reading", async move {
            let permit = topic.context.budget.acquire_egress(request.max_bytes.max(1)).await;
            let result = topic.fetch(&request, permit).await;
            topic.deliver_read(&name, cursor, &request, result);
        });
    }

    /// Reads the range behind `last`, or behind what was read ahead already, if that is half used
    /// up. It is a luxury: only with bytes that nobody waits for.
    fn prefetch(&self, log: &Log, slot: &mut SubscriptionSlot, last: Position) {
        if self.context.budget.has_egress_waiters() {
            return;
        }
        let new = || Box::new(self.context.read_ahead.add());
        let ahead = slot.ahead.get_or_insert_with(new);
        let end = ahead.last().map_or(last, |end| end.max(last));
        let left = ahead.bytes_after(last);
        let config = &self.context.config;
        let wanted = config.read_ahead_bytes.min(config.egress_bytes() / 16);
        let next = Position::new(end.ledger, end.entry.next());
        let place = log.locate(next).map(|place| place.first);
        // At the tail, the cache has it.
        let cached = |place: Position| self.context.cache.contains(place.ledger, place.entry);
        if ahead.fetching || left > wanted / 2 || place.is_none_or(cached) {
            return;
        }
        let Some(permit) = self.context.budget.try_acquire_egress(wanted) else { return };
        let Some(topic) = self.me.upgrade() else { return };
        ahead.fetching = true;
        let (name, cursor) = (Arc::clone(slot.subscription.name()), slot.cursor);
        let target = ReadTarget::From(next);
        let token = ReadToken::default();
        let request = ReadRequest { token, target, max_entries: u32::MAX, max_bytes: wanted };
        self.spawn_watched("reading ahead", async move {
            let result = topic.fetch(&request, permit).await;
            let mut state = topic.state.lock();
            let slot = state.subscriptions.get_mut(&name).filter(|slot| slot.cursor == cursor);
            let Some(ahead) = slot.and_then(|slot| slot.ahead.as_mut()) else { return };
            ahead.fetching = false;
            // It was all used up and asked for again meanwhile, or went on elsewhere.
            if ahead.last().is_some_and(|last| last != end) {
                return;
            }
            match result {
                // Somebody needs the bytes more.
                Ok(_) if topic.context.budget.has_egress_waiters() => {}
                Ok(entries) => ahead.extend(entries),
                // Whoever needs it reads it, and hears why that fails.
                Err(error) => tracing::debug!(topic = %topic.name, %error, "not read ahead"),
            }
        });
    }

    /// Hands over what was read, unless the subscription has gone: one of the same name that was
    /// created since counts its reads from the start, too.
    fn deliver_read(
        &self,
        name: &str,
        cursor: CursorId,
        request: &ReadRequest,
        result: Result<Vec<ReadyEntry>, FetchError>,
    ) {
        let mut guard = self.state.lock();
        let State { log, subscriptions, traffic, status, .. } = &mut *guard;
        let slot = subscriptions.get_mut(name).filter(|slot| slot.cursor == cursor);
        let Some(slot) = slot else { return };
        if matches!(status, Status::Closed(_)) {
            return;
        }
        let mut commands = Vec::new();
        match result {
            Ok(entries) => {
                slot.subscription.read_done(request.token, Ok(&entries), &mut commands);
                if slot.subscription.read_has_failed() {
                    self.retry_later(name, cursor);
                }
                if let Some(last) = entries.last()
                    && matches!(request.target, ReadTarget::From(_))
                {
                    self.prefetch(log, slot, last.span.position);
                }
            }
            Err(error) => {
                tracing::warn!(topic = %self.name, subscription = name, %error, "read failed");
                let why = error.to_string();
                slot.subscription.read_done(request.token, Err(why), &mut commands);
                if slot.subscription.read_has_failed() {
                    self.retry_later(name, cursor);
                }
            }
        }
        self.execute(log, slot, traffic, &mut commands, None);
        self.forget_read(log, subscriptions);
    }

    pub(super) fn retry_later(&self, name: &str, cursor: CursorId) {
        let (topic, name) = (self.me.clone(), name.to_owned());
        self.spawn_watched("reading again", async move {
            tokio::time::sleep(RETRY).await;
            let Some(topic) = topic.upgrade() else { return };
            let mut guard = topic.state.lock();
            let State { log, subscriptions, traffic, .. } = &mut *guard;
            let slot = subscriptions.get_mut(&name).filter(|slot| slot.cursor == cursor);
            let Some(slot) = slot else { return };
            let mut commands = Vec::new();
            slot.subscription.retry_read(&mut commands);
            topic.execute(log, slot, traffic, &mut commands, None);
        });
    }

    /// Reads at least one entry. `permit` covers the request's bytes; what isn't needed of it
    /// goes back.
    async fn fetch(
        &self,
        request: &ReadRequest,
        mut permit: BytePermit,
    ) -> Result<Vec<ReadyEntry>, FetchError> {
        let found = match &request.target {
            ReadTarget::From(from) => {
                let place = self.place(*from)?;
                let entries = u32::try_from(place.entries).unwrap_or(u32::MAX);
                let entries = entries.min(request.max_entries);
                self.read_range(&place, entries, request.max_bytes).await?
            }
            ReadTarget::Runs(runs) => self.read_runs(runs, request).await?,
        };
        let ready = |(span, payload): (EntrySpan, Payload)| ReadyEntry {
            span,
            permit: EntryPermit::from(permit.split(payload.len() as u64)),
            payload,
        };
        Ok(found.into_iter().map(ready).collect())
    }

    async fn read_runs(
        &self,
        runs: &[EntryRun],
        request: &ReadRequest,
    ) -> Result<Vec<(EntrySpan, Payload)>, FetchError> {
        let mut found: Vec<(EntrySpan, Payload)> = Vec::new();
        let mut bytes_left = request.max_bytes;
        for run in runs {
            let left = request.max_entries.saturating_sub(u32::try_from(found.len()).unwrap_or(0));
            if !found.is_empty() && (left == 0 || bytes_left == 0) {
                break;
            }
            let place = self.place(Position::new(run.ledger, run.first))?;
            let wanted = run.entries.min(left.max(1));
            match self.read_range(&place, wanted, bytes_left).await {
                Ok(part) => {
                    let bytes: u64 = part.iter().map(|(_, payload)| payload.len() as u64).sum();
                    bytes_left = bytes_left.saturating_sub(bytes);
                    let whole = part.len() == run.entries as usize;
                    found.extend(part);
                    if !whole {
                        break;
                    }
                }
                Err(error) if found.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(found)
    }

    fn place(&self, from: Position) -> Result<Place, FetchError> {
        let state = self.state.lock();
        if matches!(state.status, Status::Closed(_)) {
            return Err(FetchError::Closed);
        }
        state.log.locate(from).ok_or(FetchError::Nothing(from))
    }

    /// Reads from one ledger: at least one entry.
    async fn read_range(
        &self,
        place: &Place,
        max_entries: u32,
        max_bytes: u64,
    ) -> Result<Vec<(EntrySpan, Payload)>, FetchError> {
        let Position { ledger, entry } = place.first;
        let wanted = usize::try_from(max_entries).unwrap_or(usize::MAX);
        let cached = self.context.cache.read(ledger, entry, wanted, max_bytes);
        if !cached.is_empty() {
            self.context.metrics.cache_hits.inc_by(cached.len() as u64);
            let found = |(entry, cached): (EntryId, CachedEntry)| {
                let position = Position::new(ledger, entry);
                let CachedEntry { payload, first_index, messages } = cached;
                (EntrySpan { position, first_index, messages }, payload)
            };
            return Ok(cached.into_iter().map(found).collect());
        }
        let stored = match &place.source {
            Source::Own(writer) => writer.read(entry, max_entries, max_bytes).await?,
            Source::Closed => {
                let reader = reader(&self.context, ledger).await?;
                reader.read(entry, max_entries, max_bytes).await?
            }
        };
        self.context.metrics.cache_misses.inc_by(stored.len() as u64);
        stored.iter().map(|stored| parse(ledger, stored)).collect()
    }

    /// The spans of entries that exist; the others are left out.
    pub(super) async fn spans(&self, positions: &[Position]) -> Result<Vec<EntrySpan>, TopicError> {
        let mut spans = Vec::with_capacity(positions.len());
        for position in positions {
            let place = match self.place(*position) {
                Ok(place) if place.first == *position => place,
                Ok(_) | Err(FetchError::Nothing(_)) => continue,
                Err(error) => return Err(unavailable(error)),
            };
            match self.read_range(&place, 1, 1).await {
                Ok(found) => spans.extend(found.into_iter().next().map(|(span, _)| span)),
                Err(error) if error.is_damage() => {
                    return Err(TopicError::Corrupt(error.to_string()));
                }
                Err(error) => return Err(unavailable(error)),
            }
        }
        Ok(spans)
    }
}
