//! Creates topics, and loads those that exist: takes the managed ledger over, closes what its
//! last owner left open, and brings its subscriptions back.
//!
//! A new topic costs one transaction: its record, its managed ledger's and its first ledger's.

use std::sync::{Arc, Weak};

use futures_util::{StreamExt, TryStreamExt, stream};
use geminga_ledger::reader::ClosedLedger as ClosedEnd;
use geminga_meta::keys;
use geminga_meta::read::read;
use geminga_meta::record::{
    ManagedLedgerChunk, ManagedLedgerRecord, Nonce, Record, Stored, TopicRecord,
};
use geminga_meta::store::{Compare, Txn};
use geminga_proto::entry::BrokerHeader;
use geminga_proto::id::{EntryId, ManagedLedgerId, TopicIncarnation};
use geminga_proto::topic_name::TopicName;
use parking_lot::Mutex;

use crate::core::api::TopicError;
use crate::core::bundle::Bundle;
use crate::core::context::{Context, read_error, unavailable};
use crate::core::cursor::Frontier;
use crate::core::managed_ledger::ManagedLedger;
use crate::core::managed_ledger::list::ClosedLedger;
use crate::core::namespace::Namespace;
use crate::core::subscription::Subscription;
use crate::core::topic::log::Log;
use crate::core::topic::maintenance::JobError;
use crate::core::topic::producers::Producers;
use crate::core::topic::read::reader;
use crate::core::topic::subscriptions::{SubscriptionSlot, Subscriptions};
use crate::core::topic::{State, Status, Topic, Traffic};
use crate::core::topic_map::TopicMap;

/// Attempts at loading while others change the same records, or quorums are missing.
const ATTEMPTS: u32 = 5;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Chunks of a list that are read at a time.
const CHUNKS_AT_ONCE: usize = 16;

const CHANGING: &str = "its records are being changed";

/// What to do about a topic that doesn't exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// Fail.
    Never,
    /// Create it if the namespace's policy or the broker's setting says so.
    IfAutomatic,
    /// Create it.
    Always,
    /// Create it; fail if it exists.
    New,
}

/// Where a topic belongs.
#[derive(Debug, Clone)]
pub struct Home {
    /// Shared by all.
    pub context: Arc<Context>,
    /// Its namespace.
    pub namespace: Arc<Namespace>,
    /// Its bundle, owned.
    pub bundle: Arc<Bundle>,
    /// Where it will be listed.
    pub map: Weak<TopicMap>,
}

/// Why loading has to start over, or can't go on.
pub(super) enum LoadError {
    /// Somebody else changed a record, or something can't be reached at the moment.
    Again(String),
    /// A condition of a transaction didn't hold: its record was changed, or the bundle is not this
    /// broker's any more.
    Conflict,
    /// It can't be used.
    Topic(TopicError),
}

impl From<JobError> for LoadError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Later(why) => Self::Again(why),
            JobError::Metadata(error) => Self::Again(error.to_string()),
            JobError::Fatal(TopicError::Fenced) => Self::Conflict,
            JobError::Fatal(TopicError::Unavailable(why)) => Self::Again(why),
            JobError::Fatal(error) => Self::Topic(error),
        }
    }
}

impl From<LoadError> for TopicError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Again(why) => unavailable(why),
            LoadError::Conflict => unavailable(CHANGING),
            LoadError::Topic(error) => error,
        }
    }
}

impl From<TopicError> for LoadError {
    fn from(error: TopicError) -> Self {
        Self::Topic(error)
    }
}

impl Topic {
    /// Loads a topic, or creates it. Answers whether it was created.
    ///
    /// # Errors
    /// [`TopicError`] says why it can't be used.
    pub async fn load(
        name: &TopicName,
        home: &Home,
        create: Create,
    ) -> Result<(Arc<Topic>, bool), TopicError> {
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE * attempt).await;
            }
            // Only for the try: topics that have to wait for something keep no others waiting.
            let turn = home.context.loads.acquire().await.map_err(unavailable)?;
            let tried = Self::try_load(name, home, create).await;
            drop(turn);
            last = match tried {
                Ok(found) => return Ok(found),
                Err(LoadError::Topic(error)) => return Err(error),
                Err(LoadError::Again(why)) => why,
                Err(LoadError::Conflict) if home.bundle.is_lost().await => {
                    if let Some(map) = home.map.upgrade() {
                        map.end_bundle(&home.bundle, &TopicError::NotOwner);
                    }
                    return Err(TopicError::NotOwner);
                }
                Err(LoadError::Conflict) => CHANGING.to_owned(),
            };
            tracing::debug!(topic = %name, why = last, "loading starts over");
        }
        Err(TopicError::Unavailable(last))
    }

    async fn try_load(
        name: &TopicName,
        home: &Home,
        create: Create,
    ) -> Result<(Arc<Topic>, bool), LoadError> {
        let context = &home.context;
        let key = keys::topic(name);
        let found = read::<TopicRecord>(&*context.meta, &key).await.map_err(read_error)?;
        let automatic = || {
            let policy = home.namespace.policies().auto_topic_creation;
            policy.unwrap_or(context.config.auto_topic_creation)
        };
        match found {
            Some(record) => {
                let in_use = create != Create::Never;
                let topic = Self::take_over(name, home, &record.record, in_use).await?;
                context.metrics.topics_loaded.inc();
                Ok((topic, false))
            }
            None if create == Create::Never || (create == Create::IfAutomatic && !automatic()) => {
                Err(LoadError::Topic(TopicError::NotFound(name.to_string())))
            }
            None => {
                let topic = Self::create(name, home).await?;
                context.metrics.topics_created.inc();
                Ok((topic, true))
            }
        }
    }

    fn new(
        name: &TopicName,
        home: &Home,
        incarnation: TopicIncarnation,
        ledgers: ManagedLedger,
    ) -> Arc<Self> {
        let Home { context, namespace, bundle, map } = home.clone();
        let last_used = context.env.clock.monotonic();
        let state = State {
            status: Status::Serving,
            log: Log::new(ledgers),
            producers: Producers::default(),
            subscriptions: Subscriptions::default(),
            maintaining: false,
            held: false,
            last_used,
            traffic: Traffic::default(),
        };
        Arc::new_cyclic(|me| Self {
            name: name.clone(),
            incarnation,
            namespace,
            bundle,
            context,
            map,
            me: Weak::clone(me),
            state: Mutex::new(state),
        })
    }

    async fn create(name: &TopicName, home: &Home) -> Result<Arc<Self>, LoadError> {
        let context = &home.context;
        let id: ManagedLedgerId = context.managed_ledger_ids.next().await.map_err(unavailable)?;
        let incarnation = context.incarnations.next().await.map_err(unavailable)?;
        let created_ms = context.env.clock.wall_ms();
        let record = TopicRecord::plain(created_ms, incarnation, id);
        let nonce = Nonce::new(&*context.env.random);
        let bytes = record.encode(nonce).map_err(|error| TopicError::Corrupt(error.to_string()))?;
        let key = keys::topic(name);
        let extra = Txn::default()
            .when(Compare::Absent(key.clone()))
            .when(Compare::Present(keys::namespace(name.namespace())))
            .when(Compare::Absent(keys::deletion(name.namespace())))
            .put(key, bytes);
        let mut ledgers = ManagedLedger::create(id, &context.env);
        let topic = Self::new(name, home, incarnation, ledgers.clone());
        let generation = topic.state.lock().log.next_generation();
        let writer = topic.create_ledger(&mut ledgers, generation, extra).await?;
        let now = context.env.clock.monotonic();
        let mut state = topic.state.lock();
        state.log.ledgers = ledgers;
        state.log.add_ledger(writer, generation, now);
        drop(state);
        Ok(topic)
    }

    async fn take_over(
        name: &TopicName,
        home: &Home,
        record: &TopicRecord,
        in_use: bool,
    ) -> Result<Arc<Self>, LoadError> {
        let [shard] = record.shards[..] else {
            let what = format!("a topic of {} shards", record.shards.len());
            return Err(TopicError::Unsupported(what).into());
        };
        let ledgers = load_ledgers(&home.context, shard.managed_ledger).await?;
        let topic = Self::new(name, home, record.incarnation, ledgers.clone());
        topic.close_what_is_open(ledgers, in_use).await?;
        topic.restore_subscriptions();
        Ok(topic)
    }

    /// Closes the ledgers that the last owner left open, by recovery, and takes the list over.
    ///
    /// The list names every ledger that may be open, and there are at most two: the current one and
    /// its successor, which a roll creates first. A ledger that it names as closed was closed
    /// before. So these are the last two, and all of them.
    ///
    /// Of a topic that was being published to, and is `in_use` again, the next ledger is created
    /// in the transaction that writes the list: its producers are waiting.
    async fn close_what_is_open(
        &self,
        mut ledgers: ManagedLedger,
        in_use: bool,
    ) -> Result<(), LoadError> {
        let mut empty = Vec::new();
        let was_open = !ledgers.open.is_empty();
        for ledger in ledgers.open.clone() {
            let end = self.recover_to_read(ledger).await?;
            if end.last_entry.0.is_none() {
                empty.push(ledger);
            }
            let (closed, timestamp_ms) = self.closed_ledger(&ledgers, end).await?;
            let corrupt = |error: crate::core::managed_ledger::list::ListError| {
                TopicError::Corrupt(error.to_string())
            };
            ledgers.close(closed, timestamp_ms).map_err(corrupt)?;
        }
        ledgers.epoch = ledgers.epoch.next();
        ledgers.chunk(self.context.config.ledgers_per_chunk);
        if was_open && in_use && empty.is_empty() && self.go_on(&ledgers).await? {
            return Ok(());
        }
        self.write(&mut ledgers, &empty).await?;
        self.state.lock().log = Log::new(ledgers);
        Ok(())
    }

    /// Takes the list over together with the next ledger. Answers false if there are too few
    /// bookies for one: reading goes on without.
    async fn go_on(&self, ledgers: &ManagedLedger) -> Result<bool, LoadError> {
        let mut ledgers = ledgers.clone();
        let mut log = Log::new(ledgers.clone());
        let generation = log.next_generation();
        // Its events come only after the first append.
        let writer = match self.create_ledger(&mut ledgers, generation, Txn::default()).await {
            Ok(writer) => writer,
            Err(JobError::Later(why)) => {
                tracing::debug!(topic = %self.name, why, "no ledger is opened ahead");
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        log.ledgers = ledgers;
        log.add_ledger(writer, generation, self.context.env.clock.monotonic());
        self.state.lock().log = log;
        Ok(true)
    }

    /// What the list says of a ledger that recovery closed: its last entry tells.
    async fn closed_ledger(
        &self,
        ledgers: &ManagedLedger,
        end: ClosedEnd,
    ) -> Result<(ClosedLedger, u64), LoadError> {
        let first_index = ledgers.next_index.0;
        let mut closed = ClosedLedger {
            ledger: end.id,
            entries: 0,
            bytes: 0,
            first_index,
            messages: 0,
            closed_ms: self.context.env.clock.wall_ms(),
        };
        let Some(last) = end.last_entry.0 else { return Ok((closed, 0)) };
        let header = self.last_header(end, last).await?;
        let end_index = header.last_index + 1;
        #[cfg(any(test, feature = "simulation"))]
        let end_index = match self.context.config.planted {
            Some(crate::core::defect::Defect::IndexCountsEntries) => first_index + last.0 + 1,
            _ => end_index,
        };
        if end_index < first_index + last.0 + 1 {
            let why = format!(
                "ledger {} ends at message {} but starts at {first_index}",
                end.id, header.last_index
            );
            return Err(TopicError::Corrupt(why).into());
        }
        closed.entries = last.0 + 1;
        closed.bytes = end.bytes;
        closed.messages = end_index - first_index;
        Ok((closed, header.timestamp_ms))
    }

    async fn last_header(&self, end: ClosedEnd, last: EntryId) -> Result<BrokerHeader, LoadError> {
        let again = |error: String| LoadError::Again(error);
        let reader =
            reader(&self.context, end.id).await.map_err(|error| again(error.to_string()))?;
        let entries = reader.read(last, 1, 1).await.map_err(|error| again(error.to_string()))?;
        let missing = || TopicError::Corrupt(format!("ledger {} has no last entry", end.id));
        let stored = entries.into_iter().next().ok_or_else(missing)?;
        let damaged =
            |error| TopicError::Corrupt(format!("entry {last} of ledger {}: {error}", end.id));
        let (header, _) = geminga_proto::entry::split_stored(&stored.payload).map_err(damaged)?;
        Ok(header)
    }

    /// Brings back the subscriptions that the bundle's state log has of this topic.
    fn restore_subscriptions(&self) {
        let stored = self.bundle.log.subscriptions(self.incarnation);
        let mut guard = self.state.lock();
        let State { log, subscriptions, traffic, .. } = &mut *guard;
        let (start, start_index) = log.start();
        let (tail, end_index) = log.tail();
        let end = Frontier { index: end_index, position: tail };
        subscriptions.had_any = !stored.is_empty();
        for stored in stored {
            let set_back = stored.cursor.set_back_to(end);
            let behind = set_back.unwrap_or(stored.cursor.frontier).index < start_index;
            let limits = self.dispatch_limits();
            let subscription = Subscription::new(&stored.name, stored.cursor, log.end(), limits);
            let mut slot = Box::new(SubscriptionSlot::new(stored.id, subscription));
            let mut commands = Vec::new();
            if let Some(to) = set_back {
                tracing::warn!(
                    topic = %self.name,
                    subscription = %stored.name,
                    last_confirmed = ?log.end().last_confirmed,
                    "it has acknowledged messages that the topic doesn't have: the metadata were \
                     set back, or data was lost; it goes on with what the topic has"
                );
                slot.subscription.reset(to, &mut commands);
            }
            if behind {
                // What retention took from it doesn't count as its backlog.
                let to = Frontier { index: start_index, position: start };
                slot.subscription.skip_to(to, &mut commands);
            }
            self.execute(log, &mut slot, traffic, &mut commands, None);
            subscriptions.slots.insert(stored.name, slot);
        }
    }
}

/// Reads a managed ledger's head and chunks.
pub(super) async fn load_ledgers(
    context: &Context,
    id: ManagedLedgerId,
) -> Result<ManagedLedger, LoadError> {
    let meta = &*context.meta;
    let key = keys::managed_ledger(id);
    let head = read::<ManagedLedgerRecord>(meta, &key).await.map_err(read_error)?;
    let missing = || LoadError::Again(format!("managed ledger {id} has no record"));
    let head: Stored<ManagedLedgerRecord> = head.ok_or_else(missing)?;
    let read_chunk = |number: u64| async move {
        let key = keys::managed_ledger_chunk(id, number);
        let chunk = read::<ManagedLedgerChunk>(meta, &key).await.map_err(read_error)?;
        // Trimmed between the two reads.
        let missing = || LoadError::Again(format!("chunk {number:x} has no record"));
        Ok::<_, LoadError>((number, chunk.ok_or_else(missing)?.record))
    };
    let chunks: Vec<_> = head.record.chunks.iter().map(|link| read_chunk(link.number)).collect();
    let chunks = stream::iter(chunks).buffered(CHUNKS_AT_ONCE).try_collect::<Vec<_>>().await?;
    let corrupt = |error: crate::core::managed_ledger::LoadError| {
        LoadError::Topic(TopicError::Corrupt(error.to_string()))
    };
    ManagedLedger::load(id, &head, &chunks).map_err(corrupt)
}
