//! [`Owners`]: which broker serves which topic, as far as is known, and which word was wrong. No
//! I/O, no clock. [`order`] decides whom to ask.
//!
//! Invariants: a broker's word is used until somebody who acted on it says that it was wrong; only
//! the word that was acted on can be called wrong, so that a newer one isn't lost; at the limit the
//! oldest word is forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use geminga_proto::topic_name::TopicName;

use crate::liveness::Health;

/// A broker's word on who serves a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Where to connect.
    pub url: Arc<str>,
    /// The owner's name.
    pub broker_id: Arc<str>,
    /// The address as the cluster has it, and not as the user wrote it.
    pub advertised: bool,
    /// Who said so.
    pub told_by: Arc<str>,
    /// Names this word; rises.
    pub version: u64,
}

impl Owner {
    /// True if both name one broker process.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        // A broker that is asked itself answers "here", and users may write its address in several
        // ways; two addresses of the cluster's own are two places, even with one name.
        let typed = !self.advertised || !other.advertised;
        self.url == other.url
            || (typed && !self.broker_id.is_empty() && self.broker_id == other.broker_id)
    }
}

/// What was wrong with a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The broker is there and says that it doesn't serve the topic, or can't now.
    Refused,
    /// The broker can't be reached, or says nothing.
    Unreachable,
}

#[derive(Debug)]
struct Entry {
    owner: Owner,
    trouble: Option<Trouble>,
}

/// Topics with their owners.
#[derive(Debug)]
pub(crate) struct Owners {
    by_topic: HashMap<TopicName, Entry>,
    by_version: BTreeMap<u64, TopicName>,
    next_version: u64,
    limit: usize,
}

impl Owners {
    pub(crate) fn new(limit: usize) -> Self {
        let (by_topic, by_version) = (HashMap::new(), BTreeMap::new());
        Self { by_topic, by_version, next_version: 1, limit }
    }

    /// The owner, if there is a word on it that wasn't found wrong.
    pub(crate) fn known(&self, topic: &TopicName) -> Option<Owner> {
        let entry = self.by_topic.get(topic).filter(|entry| entry.trouble.is_none())?;
        Some(entry.owner.clone())
    }

    /// The last word, if it was found wrong.
    pub(crate) fn blamed(&self, topic: &TopicName) -> Option<(Owner, Trouble)> {
        let entry = self.by_topic.get(topic)?;
        Some((entry.owner.clone(), entry.trouble?))
    }

    /// Takes a broker's word, and gives it its version.
    pub(crate) fn learn(&mut self, topic: &TopicName, owner: Owner) -> Owner {
        let owner = Owner { version: self.next_version, ..owner };
        self.next_version += 1;
        let entry = Entry { owner: owner.clone(), trouble: None };
        if let Some(old) = self.by_topic.insert(topic.clone(), entry) {
            self.by_version.remove(&old.owner.version);
        }
        self.by_version.insert(owner.version, topic.clone());
        while self.by_topic.len() > self.limit
            && let Some((_, oldest)) = self.by_version.pop_first()
        {
            self.by_topic.remove(&oldest);
        }
        owner
    }

    /// The word with this version was wrong.
    pub(crate) fn blame(&mut self, topic: &TopicName, version: u64, trouble: Trouble) {
        if let Some(entry) = self.by_topic.get_mut(topic)
            && entry.owner.version == version
        {
            entry.trouble = Some(trouble);
        }
    }
}

/// Somebody who could be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub url: Arc<str>,
    /// Of its connection; `None`: there is none.
    pub health: Option<Health>,
    /// Connecting to it failed a moment ago.
    pub failed_lately: bool,
}

/// In which order to ask. After a word that was wrong, those who had nothing to do with it come
/// first, then who refused, for that one is there and may know better, then who said it, and last
/// who couldn't be reached. So two brokers with different views are asked in turn until they agree,
/// and a dead one holds nobody up. Else the given order stays.
pub(crate) fn order(
    mut candidates: Vec<Candidate>,
    blamed: Option<&(Owner, Trouble)>,
) -> Vec<Arc<str>> {
    let rank = |candidate: &Candidate| {
        let url = &candidate.url;
        match blamed {
            Some((owner, Trouble::Unreachable)) if owner.url == *url => 4,
            _ if candidate.failed_lately || candidate.health == Some(Health::Doubtful) => 3,
            Some((owner, _)) if owner.told_by == *url => 2,
            Some((owner, Trouble::Refused)) if owner.url == *url => 1,
            _ => 0,
        }
    };
    candidates.sort_by_key(rank);
    candidates.into_iter().map(|candidate| candidate.url).collect()
}

#[cfg(test)]
mod tests;
