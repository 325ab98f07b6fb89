//! [`Owners`]: which broker serves which topics, as far as is known, and which word was wrong. No
//! I/O, no clock. [`order`] decides whom to ask.
//!
//! A broker's word is about one topic, or about all of a bundle ([`Scope`]): so a thousand topics
//! that move together are looked up once.
//!
//! Invariants: a broker's word is used until somebody who acted on it says that it was wrong; only
//! the word that was acted on can be called wrong, so that a newer one isn't lost; of two words on
//! a topic the newer one counts; at the limit the oldest word is forgotten.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use geminga_proto::topic_name::{NamespaceName, TopicName};
use geminga_proto::v1::HashRange;

use crate::liveness::Health;

/// Which topics a word is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// One.
    Topic(TopicName),
    /// Those of a namespace whose hashes are in a range.
    Bundle { namespace: NamespaceName, first: u32, last: u32 },
}

impl Scope {
    /// Of an answer to the question for `topic`. A range that the topic isn't in says nothing.
    pub(crate) fn of(topic: &TopicName, bundle: Option<HashRange>) -> Self {
        let hash = topic.hash();
        match bundle {
            Some(HashRange { first, last }) if first <= hash && hash <= last => {
                Self::Bundle { namespace: topic.namespace().clone(), first, last }
            }
            _ => Self::Topic(topic.clone()),
        }
    }

    /// True if it is about `topic`, too.
    pub(crate) fn covers(&self, topic: &TopicName) -> bool {
        match self {
            Self::Topic(name) => name == topic,
            Self::Bundle { namespace, first, last } => {
                namespace == topic.namespace() && (*first..=*last).contains(&topic.hash())
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(topic) => topic.fmt(out),
            Self::Bundle { namespace, first, last } => {
                write!(out, "{namespace}/{first:08x}-{last:08x}")
            }
        }
    }
}

/// A broker's word on who serves which topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// What it is about.
    pub scope: Scope,
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
    /// By the namespace and the last hash; no two of them overlap.
    by_bundle: BTreeMap<(NamespaceName, u32), Entry>,
    by_version: BTreeMap<u64, Scope>,
    next_version: u64,
    limit: usize,
}

impl Owners {
    pub(crate) fn new(limit: usize) -> Self {
        let (by_topic, by_bundle, by_version) = (HashMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { by_topic, by_bundle, by_version, next_version: 1, limit }
    }

    /// The newest word on a topic.
    fn latest(&self, topic: &TopicName) -> Option<&Entry> {
        let from = (topic.namespace().clone(), topic.hash());
        let bundle = self.by_bundle.range(from..).next().map(|(_, entry)| entry);
        let bundle = bundle.filter(|entry| entry.owner.scope.covers(topic));
        let both = self.by_topic.get(topic).into_iter().chain(bundle);
        both.max_by_key(|entry| entry.owner.version)
    }

    /// The owner, if there is a word on it that wasn't found wrong.
    pub(crate) fn known(&self, topic: &TopicName) -> Option<Owner> {
        let entry = self.latest(topic).filter(|entry| entry.trouble.is_none())?;
        Some(entry.owner.clone())
    }

    /// The last word, if it was found wrong.
    pub(crate) fn blamed(&self, topic: &TopicName) -> Option<(Owner, Trouble)> {
        let entry = self.latest(topic)?;
        Some((entry.owner.clone(), entry.trouble?))
    }

    /// For which topics a question for this one is probably answered, as the last word was.
    pub(crate) fn scope(&self, topic: &TopicName) -> Scope {
        let latest = self.latest(topic).map(|entry| entry.owner.scope.clone());
        latest.unwrap_or_else(|| Scope::Topic(topic.clone()))
    }

    /// Takes a broker's word, and gives it its version.
    pub(crate) fn learn(&mut self, owner: Owner) -> Owner {
        let owner = Owner { version: self.next_version, ..owner };
        self.next_version += 1;
        self.forget_all_in(&owner.scope);
        self.by_version.insert(owner.version, owner.scope.clone());
        let entry = Entry { owner: owner.clone(), trouble: None };
        match &owner.scope {
            Scope::Topic(topic) => drop(self.by_topic.insert(topic.clone(), entry)),
            Scope::Bundle { namespace, last, .. } => {
                self.by_bundle.insert((namespace.clone(), *last), entry);
            }
        }
        while self.by_version.len() > self.limit
            && let Some((_, oldest)) = self.by_version.pop_first()
        {
            self.forget(&oldest);
        }
        owner
    }

    /// Forgets the word on this topic, or all words on bundles that overlap with this one: there
    /// are no two of a namespace that do, so they are old.
    fn forget_all_in(&mut self, scope: &Scope) {
        let mut old = vec![scope.clone()];
        if let Scope::Bundle { namespace, first, last } = scope {
            let later = self.by_bundle.range((namespace.clone(), *first)..);
            let overlapping = later.map(|(_, entry)| &entry.owner.scope).take_while(|later| {
                matches!(later, Scope::Bundle { namespace: of, first, .. }
                    if of == namespace && first <= last)
            });
            old = overlapping.cloned().collect();
        }
        for scope in old {
            if let Some(entry) = self.forget(&scope) {
                self.by_version.remove(&entry.owner.version);
            }
        }
    }

    fn forget(&mut self, scope: &Scope) -> Option<Entry> {
        match scope {
            Scope::Topic(topic) => self.by_topic.remove(topic),
            Scope::Bundle { namespace, last, .. } => {
                self.by_bundle.remove(&(namespace.clone(), *last))
            }
        }
    }

    /// This word was wrong.
    pub(crate) fn blame(&mut self, word: &Owner, trouble: Trouble) {
        let entry = match &word.scope {
            Scope::Topic(topic) => self.by_topic.get_mut(topic),
            Scope::Bundle { namespace, last, .. } => {
                self.by_bundle.get_mut(&(namespace.clone(), *last))
            }
        };
        if let Some(entry) = entry.filter(|entry| entry.owner.version == word.version) {
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
