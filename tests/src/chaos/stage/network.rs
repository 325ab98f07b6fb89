//! [`Network`]: how packets between members are lost. By nftables rules where each member has a
//! network namespace of its own; else by relays that every broker and bookie is reached through and
//! reaches etcd through, which need no privilege, but part nobody from one peer alone.

use std::collections::BTreeMap;

use super::super::plan::{BOOKIES, BROKERS, ETCD, Fault, Kind};
use crate::cluster::Cluster;
use crate::relay::{Cut, Relay};

/// Everybody who isn't a member.
const CLIENTS: &str = "clients";

/// See the module.
#[derive(Debug)]
pub enum Network {
    /// The cluster's own.
    Namespaces,
    /// Of each broker and bookie: those to etcd, and those that it is reached by.
    Relays(BTreeMap<&'static str, Relays>),
}

/// The relays of one member.
#[derive(Debug, Default)]
pub struct Relays {
    /// What it takes for etcd.
    pub to_etcd: Vec<Relay>,
    /// What others take for it.
    pub to_it: Vec<Relay>,
}

impl Network {
    /// Begins a fault of the network.
    ///
    /// # Panics
    /// When that fails, or the fault is none of the network.
    pub fn begin(&self, cluster: &Cluster, fault: &Fault) {
        match self {
            Self::Namespaces => cut_by_rules(cluster, fault),
            Self::Relays(relays) => cut_relays(&relays[fault.target], fault),
        }
    }

    /// Ends it.
    ///
    /// # Panics
    /// When that fails.
    pub fn heal(&self, cluster: &Cluster) {
        match self {
            Self::Namespaces => cluster.heal(),
            Self::Relays(relays) => relays
                .values()
                .flat_map(|relays| relays.to_etcd.iter().chain(&relays.to_it))
                .for_each(Relay::heal),
        }
    }
}

fn cut_by_rules(cluster: &Cluster, fault: &Fault) {
    let target = [fault.target];
    let members = BOOKIES.iter().chain(&BROKERS).chain(&ETCD).copied();
    let others: Vec<&str> = members.chain([CLIENTS]).filter(|name| *name != fault.target).collect();
    match fault.kind {
        Kind::CutOffFromEtcd => cluster.cut(&target, &ETCD),
        Kind::Isolate => cluster.cut(&target, &others),
        Kind::OneWay if fault.has_first_way() => cluster.cut_one_way(&target, &others),
        Kind::OneWay => cluster.cut_one_way(&others, &target),
        Kind::Split => {
            let [one, other] = fault.sides();
            if fault.pick.is_multiple_of(3) {
                cluster.cut_one_way(&one, &other);
            } else {
                cluster.cut(&one, &other);
            }
        }
        kind => panic!("{} is no fault of the network", kind.name()),
    }
}

fn cut_relays(relays: &Relays, fault: &Fault) {
    let Relays { to_etcd, to_it } = relays;
    match fault.kind {
        Kind::CutOffFromEtcd => to_etcd.iter().for_each(|relay| relay.cut(Cut::Both)),
        Kind::Isolate => to_etcd.iter().chain(to_it).for_each(|relay| relay.cut(Cut::Both)),
        Kind::OneWay => {
            let [speaks, hears] = if fault.has_first_way() {
                [Cut::ToTarget, Cut::FromTarget]
            } else {
                [Cut::FromTarget, Cut::ToTarget]
            };
            to_etcd.iter().for_each(|relay| relay.cut(speaks));
            to_it.iter().for_each(|relay| relay.cut(hears));
        }
        kind => panic!("{} can't be done by relays", kind.name()),
    }
}
