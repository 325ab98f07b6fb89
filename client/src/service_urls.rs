//! [`ServiceUrls`]: the addresses that a client was given, and which of them is asked first.
//!
//! Invariants: there is at least one; each is `http://host:port` and is there once; the one that
//! answered last is asked first, and before any has, a random one, so that clients with the same
//! settings spread over the brokers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use geminga_proto::env::Random;
use tonic::transport::Endpoint;

use crate::error::ClientError;

/// Addresses that a client may be given.
const MAX_URLS: usize = 64;
const SCHEME: &str = "http://";

/// The addresses of a cluster's brokers.
#[derive(Debug)]
pub(crate) struct ServiceUrls {
    urls: Vec<Arc<str>>,
    /// Which is asked first. Written by whoever got an answer; a lost update does no harm.
    first: AtomicUsize,
}

fn refuse<T>(why: impl Into<String>) -> Result<T, ClientError> {
    Err(ClientError::Config { setting: "service_url", why: why.into() })
}

/// One address, as it is compared and connected to.
fn parse(url: &str, first: bool) -> Result<Arc<str>, ClientError> {
    if url.starts_with("https://") {
        return refuse("TLS is not supported; use http://host:port");
    }
    let authority = match url.strip_prefix(SCHEME) {
        Some(authority) => authority,
        // As in "http://a:6660,b:6660".
        None if !first && !url.contains("://") => url,
        None => "",
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.is_empty() || authority.contains('/') {
        return refuse(format!("{url:?} is not http://host:port"));
    }
    // An IPv6 address has colons of its own, within brackets.
    let after_host = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
    let port_is_valid =
        after_host.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok());
    let full = format!("{SCHEME}{authority}");
    match Endpoint::from_shared(full.clone()) {
        Ok(_) if port_is_valid => Ok(full.into()),
        _ => refuse(format!("{url:?} is not http://host:port")),
    }
}

impl ServiceUrls {
    /// Checks the addresses; an item may itself be a list with commas.
    pub(crate) fn new(given: &[String], random: &dyn Random) -> Result<Self, ClientError> {
        let mut urls: Vec<Arc<str>> = Vec::new();
        for url in given.iter().flat_map(|item| item.split(',')) {
            let url = parse(url.trim(), urls.is_empty())?;
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        if urls.is_empty() {
            return refuse("there is none; give http://host:port, or several with commas");
        }
        if urls.len() > MAX_URLS {
            return refuse(format!("at most {MAX_URLS} addresses are possible"));
        }
        let first = usize::try_from(random.below(urls.len() as u64)).unwrap_or(0);
        Ok(Self { urls, first: AtomicUsize::new(first) })
    }

    /// All of them, in the order in which they are to be asked.
    pub(crate) fn in_turn(&self) -> Vec<Arc<str>> {
        let first = self.first.load(Ordering::Relaxed) % self.urls.len();
        let (before, after) = self.urls.split_at(first);
        after.iter().chain(before).cloned().collect()
    }

    /// This one answered.
    pub(crate) fn answered(&self, url: &str) {
        if let Some(at) = self.urls.iter().position(|it| **it == *url) {
            self.first.store(at, Ordering::Relaxed);
        }
    }

    /// As they were given, with commas.
    pub(crate) fn list(&self) -> String {
        self.urls.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::env::SeededRandom;

    fn urls(given: &[&str]) -> Result<ServiceUrls, ClientError> {
        let given: Vec<String> = given.iter().map(ToString::to_string).collect();
        ServiceUrls::new(&given, &SeededRandom::new(1))
    }

    #[test]
    fn lists_are_taken_apart_and_the_scheme_is_needed_once() {
        let full = "http://a:1,http://b:2,http://[::1]:3";
        for given in
            [&["http://a:1,b:2,[::1]:3"][..], &["http://a:1/", " b:2 , http://[::1]:3", "a:1"][..]]
        {
            assert_eq!(urls(given).expect("valid").list(), full, "{given:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            &[][..],
            &[""],
            &["a:1"],
            &["http://"],
            &["http://a:1,"],
            &["http://a:1,,b:1"],
            &["http://a:1", "https://b:1"],
            &["http://a:1", "pulsar://b:1"],
            &["http://a:1,b:1/path"],
            &["http://a:1,b c:1"],
            &["http://a:port"],
            &["http://a:65536"],
            &["http://[::1]:"],
        ] {
            let error = urls(bad).expect_err("no address");
            assert!(matches!(error, ClientError::Config { setting: "service_url", .. }), "{bad:?}");
        }
        let many: Vec<String> = (0..=MAX_URLS).map(|at| format!("http://h{at}:1")).collect();
        assert!(ServiceUrls::new(&many, &SeededRandom::new(1)).is_err());
    }

    #[test]
    fn the_one_that_answered_last_is_asked_first_and_the_first_one_is_random() {
        let urls = urls(&["http://a:1,b:1,c:1"]).expect("valid");
        urls.answered("http://b:1");
        let turn = urls.in_turn();
        assert_eq!(
            turn.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
            ["http://b:1", "http://c:1", "http://a:1"]
        );
        urls.answered("http://elsewhere:1");
        assert_eq!(urls.in_turn(), turn, "only service URLs are asked first");
        let given = ["http://a:1,b:1,c:1".to_owned()];
        let random = SeededRandom::new(3);
        let firsts: std::collections::BTreeSet<Arc<str>> = (0..64)
            .filter_map(|_| ServiceUrls::new(&given, &random).expect("valid").in_turn().pop())
            .collect();
        assert_eq!(firsts.len(), 3);
    }
}
