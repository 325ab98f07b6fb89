//! The cluster as this broker sees it: brokers, bookies, owners, and what is degraded and why.
//!
//! Brokers and owners come from the watched views, so they can be shown while the metadata is away;
//! bookies and ledgers are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use geminga_meta::bundle::BundleId;
use geminga_meta::keys::{self, Key};
use geminga_meta::record::{BookieRecord, LedgerRecord, LedgerState, Record, Stored};
use geminga_meta::store::{Compare, MAX_RANGE, StoreError, Txn};
use geminga_proto::id::BookieId;
use geminga_proto::storage::Lag;
use geminga_proto::topic_name::NamespaceName;

use super::Broker;
use crate::core::admin::AdminError;
use crate::core::cluster_info::{
    BookieInfo, BookieNow, BookieUp, BrokerInfo, BundleInfo, ClusterStatus, Concern, OwnerInfo,
    Problem,
};
use crate::core::ownership::Holder;
use crate::core::repair_info::RepairTask;

/// Ledgers that are looked at for missing copies. Beyond them, a status says how far it looked.
const LEDGERS_LOOKED_AT: usize = 20_000;
/// What to do about a record that can't be used and that hangs on a process's lease.
const MEND_LEASED: &str = "delete its key in etcd, and restart that process";
/// How long the metadata may take to show bookies or ledgers.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a bookie may take to say something of itself for a list.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

impl Broker {
    /// The brokers that are up.
    #[must_use]
    pub fn brokers(&self) -> Vec<BrokerInfo> {
        let ownership = &self.inner.ownership;
        let mut owned = BTreeMap::<u64, u64>::new();
        for stored in ownership.owners().values() {
            *owned.entry(stored.record.session.0).or_default() += 1;
        }
        let brokers = ownership.brokers().into_iter().map(|stored| {
            let record = &stored.record;
            BrokerInfo {
                broker_id: record.broker_id.to_string(),
                service_url: record.service_url.clone(),
                admin_url: record.admin_url.clone(),
                release: record.release.clone(),
                started_ms: record.started_ms,
                session: record.session.to_string(),
                draining: record.draining,
                weight: record.weight,
                bundles: owned.get(&record.session.0).copied().unwrap_or(0),
            }
        });
        brokers.collect()
    }

    /// The bookies that are up, and those that have a cookie and are not, by name.
    ///
    /// # Errors
    /// Why the metadata can't be read.
    pub async fn bookies(&self) -> Result<Vec<BookieInfo>, AdminError> {
        if self.config().alone {
            return Ok(self.local_bookies().await);
        }
        let drained = self.drained().await?;
        let mut bookies = BTreeMap::new();
        let mut insert = |bookie_id: String, up, unreadable| {
            let draining = drained.get(&bookie_id).map(|kind| kind.as_str());
            let info = BookieInfo { bookie_id: bookie_id.clone(), up, unreadable, draining };
            bookies.insert(bookie_id, info);
        };
        self.each(keys::COOKIES, |pair| {
            if let Some(Key::Cookie(bookie)) = Key::parse(&pair.key) {
                insert(bookie.to_string(), None, None);
            }
        })
        .await?;
        self.each(keys::BOOKIES, |pair| {
            let Some(Key::Bookie(bookie)) = Key::parse(&pair.key) else { return };
            match Stored::<BookieRecord>::from_pair(pair) {
                Ok(stored) => insert(bookie.to_string(), Some(bookie_up(stored.record)), None),
                // One that can't be read hides no other.
                Err(error) => insert(bookie.to_string(), None, Some(error.to_string())),
            }
        })
        .await?;
        Ok(bookies.into_values().collect())
    }

    /// As [`Self::bookies`], and asks those that are up how far they are behind. One that doesn't
    /// answer soon holds up no other, and the list for a second at most.
    ///
    /// # Errors
    /// As there.
    pub async fn bookies_now(&self) -> Result<Vec<BookieNow>, AdminError> {
        let bookies = self.bookies().await?;
        let up = bookies.iter().filter(|bookie| bookie.up.is_some());
        let up = up.filter_map(|bookie| BookieId::new(&bookie.bookie_id).ok()).collect();
        let told = self.inner.context.ledgers.infos(up, ANSWER_PATIENCE).await;
        let mut lags: BTreeMap<String, Lag> = told
            .into_iter()
            .filter_map(|(bookie, info)| Some((bookie.to_string(), info.ok()?.lag)))
            .collect();
        let with_lag = |info: BookieInfo| {
            let lag = lags.remove(&info.bookie_id);
            BookieNow { info, lag }
        };
        Ok(bookies.into_iter().map(with_lag).collect())
    }

    /// The bookies of a standalone, which don't register.
    async fn local_bookies(&self) -> Vec<BookieInfo> {
        let bookies = self.inner.context.ledgers.bookies().await.into_iter();
        let bookies = bookies.map(|(bookie, info)| {
            let up = info.ok().map(|info| BookieUp {
                address: String::new(),
                zone: String::new(),
                state: if info.writable { "writable" } else { "full" },
                total_bytes: info.total_bytes,
                free_bytes: info.free_bytes,
            });
            BookieInfo { bookie_id: bookie.to_string(), up, unreadable: None, draining: None }
        });
        bookies.collect()
    }

    /// A namespace's bundles with their owners.
    ///
    /// # Errors
    /// [`AdminError::NamespaceNotFound`], or why the metadata can't be read.
    pub async fn bundles(&self, name: &NamespaceName) -> Result<Vec<BundleInfo>, AdminError> {
        let namespace = self.inner.namespaces.get(name).await.map_err(AdminError::from_topic)?;
        let owners = self.inner.ownership.owners();
        let bundles = namespace.bundle_ranges().into_iter().map(|range| {
            let bundle = BundleId { namespace: name.clone(), range };
            let owner = owners.get(&bundle).map(|stored| OwnerInfo {
                broker_id: stored.record.broker_id.to_string(),
                service_url: stored.record.service_url.clone(),
                admin_url: stored.record.admin_url.clone(),
            });
            BundleInfo { bundle, owner }
        });
        Ok(bundles.collect())
    }

    /// How the cluster does.
    pub async fn cluster_status(&self) -> ClusterStatus {
        let config = self.inner.context.ledgers.config();
        let (write_quorum, ack_quorum) = (config.write_quorum, config.ack_quorum);
        let mut problems = Vec::new();
        self.metadata_problems(&mut problems);
        let brokers = self.brokers();
        broker_problems(&brokers, &mut problems);
        for (key, error) in self.inner.ownership.unreadable_brokers() {
            let why =
                format!("its record can't be used, so nobody finds it: {error}; {MEND_LEASED}");
            problems.push(problem(Concern::Broker, &key, why));
        }
        let bookies = match tokio::time::timeout(PATIENCE, self.bookies()).await {
            Ok(Ok(bookies)) => {
                bookie_problems(&bookies, write_quorum, ack_quorum, &mut problems);
                Some(bookies.iter().filter(|bookie| bookie.up.is_some()).count() as u64)
            }
            Ok(Err(error)) => {
                problems.push(problem(Concern::Metadata, "bookies", error.to_string()));
                None
            }
            Err(_) => {
                let why =
                    "the bookies could not be listed in time; how many take writes is unknown";
                problems.push(problem(Concern::Metadata, "bookies", why.to_owned()));
                None
            }
        };
        self.writing_problems(&mut problems).await;
        self.bundle_problems(&mut problems);
        if bookies.is_some() {
            self.ledger_problems(&mut problems).await;
            self.repair_problems(&mut problems).await;
        }
        problems.sort_by_key(|problem| problem.concern);
        let brokers = brokers.len() as u64;
        ClusterStatus { problems, brokers, bookies, write_quorum, ack_quorum }
    }

    fn metadata_problems(&self, problems: &mut Vec<Problem>) {
        let inner = &self.inner;
        if let Some(outage) = inner.context.health.outage() {
            let rest = if inner.stopping.load(Ordering::Acquire) {
                "it serves nothing any more"
            } else if inner.ownership.session.is_in_doubt() {
                "open ledgers go on, nothing new is opened, taken over, trimmed or deleted; its \
                 lease may have ended, so other brokers may have taken its bundles over"
            } else {
                "open ledgers go on, nothing new is opened, taken over, trimmed or deleted"
            };
            let (broker, why) = (&self.config().broker_id, &outage.why);
            let why = format!("broker {broker} gets no answer ({why}): {rest}");
            let since_ms = Some(outage.since_ms);
            let subject = "store".to_owned();
            problems.push(Problem { concern: Concern::Metadata, subject, why, since_ms });
        } else if !inner.ownership.is_current() {
            let why = "brokers and owners are being read again and may be out of date".to_owned();
            problems.push(problem(Concern::Metadata, "views", why));
        }
    }

    /// Whether the store would take a write. What is asked of it can't hold, so nothing is written,
    /// and no revision taken; one without room refuses it all the same.
    async fn writing_problems(&self, problems: &mut Vec<Problem>) {
        if self.inner.context.health.is_away() {
            return;
        }
        let never = [Compare::Absent(keys::CLUSTER.into()), Compare::Present(keys::CLUSTER.into())];
        let write = Txn { compares: never.into(), ..Txn::default() };
        let write = write.put(keys::CLUSTER, Bytes::new());
        let asked = tokio::time::timeout(PATIENCE, self.metadata().txn(write)).await;
        // What else is wrong with it is told by whoever finds it.
        if let Ok(Err(error @ StoreError::Full(_))) = asked {
            let why = format!(
                "{error}: open ledgers go on, nothing new is opened, taken over, trimmed or deleted"
            );
            problems.push(problem(Concern::Metadata, "store", why));
        }
    }

    fn bundle_problems(&self, problems: &mut Vec<Problem>) {
        for (bundle, why) in self.inner.ownership.owned().1 {
            let why = format!(
                "nobody can tell who owns it, so nobody takes it over: {why}; when no broker \
                 serves it, delete that key below the cluster's prefix in etcd"
            );
            problems.push(problem(Concern::Bundle, &bundle.to_string(), why));
        }
        for namespace in self.inner.namespaces.all() {
            for (bundle, slot) in namespace.slots() {
                // It stays with the slot until somebody wants the bundle of this broker again.
                let elsewhere =
                    matches!(self.inner.ownership.holder(&bundle), Ok(Holder::Other(_)));
                if let Some(why) = slot.trouble().filter(|_| !elsewhere) {
                    let why = format!("its topics are unavailable: {why}");
                    problems.push(problem(Concern::Bundle, &bundle.to_string(), why));
                }
            }
        }
    }

    async fn ledger_problems(&self, problems: &mut Vec<Problem>) {
        let counting = self.under_replicated();
        let (count, looked_at, all) = match tokio::time::timeout(PATIENCE, counting).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                problems.push(problem(Concern::Metadata, "ledgers", error.to_string()));
                return;
            }
            Err(_) => {
                let why = "the ledgers' records could not be read in time".to_owned();
                problems.push(problem(Concern::Metadata, "ledgers", why));
                return;
            }
        };
        if count > 0 {
            let scope = if all { "all" } else { "the first" };
            let why = format!(
                "{count} of {scope} {looked_at} ledgers may have entries with fewer copies than \
                 their write quorum, until they are repaired"
            );
            problems.push(problem(Concern::Ledger, "under-replicated", why));
        }
    }

    /// What waits for repair.
    async fn repair_problems(&self, problems: &mut Vec<Problem>) {
        let page = tokio::time::timeout(PATIENCE, self.repairs(None, MAX_RANGE)).await;
        let tasks = match page {
            Ok(Ok(tasks)) => tasks,
            Ok(Err(error)) => {
                problems.push(problem(Concern::Metadata, "repairs", error.to_string()));
                return;
            }
            Err(_) => {
                let why = "what waits for repair could not be read in time".to_owned();
                problems.push(problem(Concern::Metadata, "repairs", why));
                return;
            }
        };
        let Some(first) = tasks.iter().map(|task| task.queued_ms).min() else { return };
        let more = if tasks.len() >= MAX_RANGE { " or more" } else { "" };
        let at_it = tasks.iter().filter(|task| task.worker.is_some()).count();
        let mut why = format!("{}{more} ledgers wait for repair, {at_it} are at it", tasks.len());
        let stuck =
            tasks.iter().filter(|task| task.worker.is_none() && !task.last_error.is_empty());
        let stuck: Vec<&RepairTask> = stuck.collect();
        if let Some(one) = stuck.first() {
            let (count, ledger, error) = (stuck.len(), one.ledger, &one.last_error);
            why.push_str(&format!("; {count} could not be yet, ledger {ledger}: {error}"));
        }
        let (concern, subject) = (Concern::Ledger, "repair".to_owned());
        problems.push(Problem { concern, subject, why, since_ms: Some(first) });
    }

    /// How many closed ledgers are under-replicated, among how many looked at, and whether those
    /// are all.
    async fn under_replicated(&self) -> Result<(usize, usize, bool), StoreError> {
        let (mut count, mut looked_at) = (0, 0);
        let mut after: Option<String> = None;
        loop {
            let range = self.metadata().range(keys::LEDGERS, after.as_deref(), MAX_RANGE);
            let page = range.await?;
            for pair in &page.pairs {
                looked_at += 1;
                // A record that can't be read is told by whoever needs it.
                let Ok((record, _)) = LedgerRecord::decode(&pair.value) else { continue };
                let closed = matches!(record.state, LedgerState::Closed { .. });
                count += usize::from(closed && record.under_replicated);
            }
            after = page.pairs.into_iter().next_back().map(|pair| pair.key);
            if !page.more || after.is_none() || looked_at >= LEDGERS_LOOKED_AT {
                return Ok((count, looked_at, !page.more));
            }
        }
    }
}

fn bookie_up(record: BookieRecord) -> BookieUp {
    let state = record.state().as_str();
    let BookieRecord { address, zone, total_bytes, free_bytes, .. } = record;
    BookieUp { address, zone, state, total_bytes, free_bytes }
}

fn problem(concern: Concern, subject: &str, why: String) -> Problem {
    Problem { concern, subject: subject.to_owned(), why, since_ms: None }
}

fn broker_problems(brokers: &[BrokerInfo], problems: &mut Vec<Problem>) {
    for broker in brokers.iter().filter(|broker| broker.draining) {
        let why = "it is stopping and hands its bundles over".to_owned();
        problems.push(problem(Concern::Broker, &broker.broker_id, why));
    }
    if !brokers.iter().any(|broker| !broker.draining) {
        let why = "no broker takes bundles".to_owned();
        problems.push(problem(Concern::Broker, "all", why));
    }
}

/// What becomes of a bookie that gets nothing new.
fn draining(bookie: &BookieInfo) -> String {
    match (bookie.draining, &bookie.up) {
        (Some("lost"), None) => {
            "it is lost: what it had is being copied from the others, and then it is forgotten"
        }
        (_, Some(_)) => {
            "it is being taken away: it gets nothing new, and what it has is being copied \
             elsewhere; once nothing is left (`bookies decommission` says so), stop it"
        }
        (_, None) => {
            "it is being taken away and isn't up: once what it had is elsewhere, it is forgotten"
        }
    }
    .to_owned()
}

/// Says when copies can't be spread over zones although there are several.
fn zone_problems(bookies: &[BookieInfo], problems: &mut Vec<Problem>) {
    let up = || {
        let up = bookies.iter().filter_map(|bookie| Some((bookie, bookie.up.as_ref()?)));
        up.filter(|(_, up)| !up.zone.is_empty())
    };
    let all: BTreeSet<&str> = up().map(|(_, up)| up.zone.as_str()).collect();
    let take = up().filter(|(bookie, up)| up.state == "writable" && bookie.draining.is_none());
    let take: BTreeSet<&str> = take.map(|(_, up)| up.zone.as_str()).collect();
    let [zone] = take.iter().copied().collect::<Vec<_>>()[..] else { return };
    if all.len() > 1 {
        let why = format!(
            "all bookies that take writes are in zone {zone:?}: the copies of new ledgers are lost \
             together with it; bring bookies of other zones back"
        );
        problems.push(problem(Concern::Quorum, "zones", why));
    }
}

fn bookie_problems(
    bookies: &[BookieInfo],
    write_quorum: u32,
    ack_quorum: u32,
    problems: &mut Vec<Problem>,
) {
    let mut writable = 0_u32;
    zone_problems(bookies, problems);
    for bookie in bookies {
        let up = bookie.up.as_ref().map(|up| up.state);
        let why = match (up, &bookie.unreadable) {
            _ if bookie.draining.is_some() => draining(bookie),
            (Some("writable"), _) => {
                writable += 1;
                continue;
            }
            (Some(state), _) => format!("it is {state}: no new entries go to it"),
            (None, Some(error)) => {
                format!("its record can't be used, so nobody finds it: {error}; {MEND_LEASED}")
            }
            (None, None) => {
                "it has a disk (its cookie is known) and is not registered: start it, or look at \
                 its log if it runs"
                    .to_owned()
            }
        };
        problems.push(problem(Concern::Bookie, &bookie.bookie_id, why));
    }
    let take = if writable == 1 { "bookie takes" } else { "bookies take" };
    if writable < ack_quorum {
        let why = format!(
            "{writable} {take} writes and {ack_quorum} are needed: no ledger can be opened, so \
             publishing stops where there is none; bring bookies back"
        );
        problems.push(problem(Concern::Quorum, "ack quorum", why));
    } else if writable < write_quorum {
        let why = format!(
            "{writable} {take} writes: new ledgers have fewer copies ({writable} instead of \
             {write_quorum})"
        );
        problems.push(problem(Concern::Quorum, "write quorum", why));
    }
}

#[cfg(test)]
mod tests {
    use geminga_meta::record::{CookieRecord, Nonce};
    use geminga_meta::store::MetadataStore;
    use geminga_meta::store::memory::{Fault, Request};
    use geminga_proto::id::{BookieId, BrokerId, ClusterId};

    use super::*;
    use crate::core::broker::tests::support::eventually;
    use crate::core::config::BrokerConfig;
    use crate::testing::Cluster;

    /// Bookies are looked for in the metadata.
    fn among_others() -> BrokerConfig {
        BrokerConfig { alone: false, ..Cluster::config_of("a") }
    }

    fn bookie(name: &str, state: Option<&'static str>) -> BookieInfo {
        let up = state.map(|state| BookieUp {
            address: "h:1".to_owned(),
            zone: String::new(),
            state,
            total_bytes: 2,
            free_bytes: 1,
        });
        BookieInfo { bookie_id: name.to_owned(), up, unreadable: None, draining: None }
    }

    fn found(bookies: &[BookieInfo]) -> Vec<(Concern, String)> {
        let mut problems = Vec::new();
        bookie_problems(bookies, 3, 2, &mut problems);
        problems.into_iter().map(|problem| (problem.concern, problem.subject)).collect()
    }

    #[tokio::test]
    async fn what_could_not_be_listed_in_time_is_a_problem_and_not_an_empty_list() {
        let cluster = Cluster::new();
        let broker = cluster.broker(among_others()).await;
        cluster.meta.faults().set_delay(PATIENCE * 2);
        tokio::time::pause();
        let status = broker.cluster_status().await;
        tokio::time::resume();
        cluster.meta.faults().clear();
        assert_eq!(status.bookies, None);
        let of_bookies = |problem: &&Problem| problem.subject == "bookies";
        let found = status.problems.iter().find(of_bookies);
        let found = found.unwrap_or_else(|| panic!("not told: {:?}", status.problems));
        assert_eq!(found.concern, Concern::Metadata);
        assert!(found.why.contains("in time"), "{}", found.why);
        broker.shutdown().await;
    }

    #[tokio::test]
    async fn a_metadata_store_without_room_is_told_and_not_written_to() {
        let cluster = Cluster::new();
        let broker = cluster.broker(among_others()).await;
        let full = async || {
            let problems = broker.cluster_status().await.problems.into_iter();
            let of_store = |problem: &Problem| problem.subject == "store";
            problems.filter(of_store).map(|problem| problem.why).collect::<Vec<_>>()
        };
        let stored = cluster.meta.get(keys::CLUSTER).await;
        assert_eq!(full().await, Vec::<String>::new());
        assert_eq!(cluster.meta.get(keys::CLUSTER).await, stored);
        cluster.meta.faults().set_script(|request| match request {
            Request::Txn(_) => Fault::Full,
            _ => Fault::None,
        });
        let told = full().await;
        assert!(told.len() == 1 && told[0].contains("is full"), "{told:?}");
        cluster.meta.faults().clear();
        broker.shutdown().await;
    }

    #[tokio::test]
    async fn a_record_that_can_not_be_used_is_told_and_hides_no_other() {
        let cluster = Cluster::new();
        let broker = cluster.broker(among_others()).await;
        let garbage = |txn: Txn, key| txn.put(key, "\u{ff}");
        let [one, two] = ["one", "two"].map(|name| BookieId::new(name).expect("valid"));
        let lost = keys::broker(&BrokerId::new("lost").expect("valid"));
        let txn = garbage(garbage(Txn::default(), keys::bookie(&one)), lost);
        cluster.meta.txn(txn).await.expect("written");
        let cookie = CookieRecord {
            bookie_id: two.clone(),
            cluster_id: ClusterId::new("c").expect("valid"),
            instance: 7,
        };
        let cookie = cookie.encode(Nonce::new(&*cluster.env().random)).expect("valid");
        cluster.meta.txn(Txn::default().put(keys::cookie(&two), cookie)).await.expect("written");
        let bookies = broker.bookies().await.expect("listed");
        let states: Vec<_> = bookies.iter().map(BookieInfo::state).collect();
        assert_eq!(states, ["unreadable", "missing"]);
        eventually("the view of brokers", async || {
            let status = broker.cluster_status().await;
            let told = |concern, subject: &str| {
                status.problems.iter().any(|it| {
                    (it.concern, it.subject.as_str()) == (concern, subject)
                        && it.why.contains(MEND_LEASED)
                })
            };
            told(Concern::Bookie, "one") && told(Concern::Broker, "lost")
        })
        .await;
        broker.shutdown().await;
    }

    #[test]
    fn copies_that_can_not_be_spread_over_zones_are_told() {
        let in_zone = |name, state, zone: &str| {
            let mut bookie = bookie(name, Some(state));
            if let Some(up) = &mut bookie.up {
                up.zone = zone.to_owned();
            }
            bookie
        };
        let told = |bookies: &[BookieInfo]| {
            let mut problems = Vec::new();
            zone_problems(bookies, &mut problems);
            problems.into_iter().map(|problem| problem.subject).collect::<Vec<_>>()
        };
        let (one, two) = (in_zone("one", "writable", "a"), in_zone("two", "writable", "a"));
        let mut three = in_zone("three", "writable", "b");
        let none: [&str; 0] = [];
        assert_eq!(told(&[one.clone(), two.clone()]), none, "there is one zone");
        assert_eq!(told(&[one.clone(), two.clone(), three.clone()]), none);
        let full = in_zone("three", "full", "b");
        assert_eq!(told(&[one.clone(), two.clone(), full]), ["zones"]);
        three.draining = Some("decommission");
        assert_eq!(told(&[one, two, three]), ["zones"]);
    }

    #[test]
    fn a_bookie_that_is_being_drained_does_not_count_and_is_named() {
        let some = ["one", "two", "three"].map(|name| bookie(name, Some("writable")));
        let away =
            BookieInfo { draining: Some("decommission"), ..bookie("four", Some("writable")) };
        let lost = BookieInfo { draining: Some("lost"), ..bookie("five", None) };
        let mut all = some.to_vec();
        all.extend([away, lost]);
        let named = |name: &str| (Concern::Bookie, name.to_owned());
        assert_eq!(found(&all), [named("four"), named("five")]);
        let fewer = (Concern::Quorum, "write quorum".to_owned());
        assert_eq!(found(&all[1..]), [named("four"), named("five"), fewer]);
    }

    #[test]
    fn a_bookie_that_is_missing_or_takes_no_writes_is_named_with_what_that_means() {
        let (one, two) = (bookie("one", Some("writable")), bookie("two", Some("writable")));
        let three = bookie("three", Some("writable"));
        assert_eq!(found(&[one.clone(), two.clone(), three]), []);
        let missing = (Concern::Bookie, "three".to_owned());
        let fewer = (Concern::Quorum, "write quorum".to_owned());
        assert_eq!(found(&[one.clone(), two, bookie("three", None)]), [missing.clone(), fewer]);
        let full = (Concern::Bookie, "two".to_owned());
        let none = (Concern::Quorum, "ack quorum".to_owned());
        let two = bookie("two", Some("full"));
        assert_eq!(found(&[one, two, bookie("three", None)]), [full, missing, none]);
    }
}
