//! [`BundleId`]: a range of a namespace's topic hashes, the unit of ownership.

use std::fmt;
use std::str::FromStr;

use geminga_proto::topic_name::NamespaceName;

/// An inclusive range of topic hashes (`TopicName::hash`). Written as two fixed-width
/// hexadecimal numbers, so that ranges sort by their lower bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashRange {
    /// Lowest hash in it.
    pub first: u32,
    /// Highest hash in it; not below `first`.
    pub last: u32,
}

impl HashRange {
    /// Every hash.
    pub const ALL: Self = Self { first: 0, last: u32::MAX };

    /// True if `hash` is in the range.
    #[must_use]
    pub const fn contains(self, hash: u32) -> bool {
        self.first <= hash && hash <= self.last
    }
}

impl fmt::Display for HashRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:08x}-{:08x}", self.first, self.last)
    }
}

/// The text is not a bundle's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a bundle: expected tenant/namespace/xxxxxxxx-yyyyyyyy, in lowercase hex")]
pub struct BundleParseError(String);

impl BundleParseError {
    fn of(text: &str) -> Self {
        Self(text.chars().take(80).collect())
    }
}

impl FromStr for HashRange {
    type Err = BundleParseError;

    fn from_str(text: &str) -> Result<Self, BundleParseError> {
        let fail = || BundleParseError::of(text);
        let (first, last) = text.split_once('-').ok_or_else(fail)?;
        let first = u32::from_str_radix(first, 16).map_err(|_| fail())?;
        let last = u32::from_str_radix(last, 16).map_err(|_| fail())?;
        let range = Self { first, last };
        // Only the canonical form is accepted: a bundle has exactly one key.
        if first <= last && range.to_string() == text { Ok(range) } else { Err(fail()) }
    }
}

/// A namespace's bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId {
    /// Whose topics.
    pub namespace: NamespaceName,
    /// Which of them.
    pub range: HashRange,
}

impl fmt::Display for BundleId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.range)
    }
}

impl FromStr for BundleId {
    type Err = BundleParseError;

    fn from_str(text: &str) -> Result<Self, BundleParseError> {
        let fail = || BundleParseError::of(text);
        let (namespace, range) = text.rsplit_once('/').ok_or_else(fail)?;
        let namespace = namespace.parse::<NamespaceName>().map_err(|_| fail())?;
        Ok(Self { namespace, range: range.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_written_with_fixed_width_bounds_and_read_back() {
        let namespace = NamespaceName::new("public", "default").expect("valid");
        let range = HashRange { first: 0x4000_0000, last: 0x7fff_ffff };
        let bundle = BundleId { namespace, range };
        assert_eq!(bundle.to_string(), "public/default/40000000-7fffffff");
        assert_eq!(bundle.to_string().parse(), Ok(bundle));
        assert!(range.contains(0x4000_0000) && range.contains(0x7fff_ffff));
        assert!(!range.contains(0x3fff_ffff) && !range.contains(0x8000_0000));
        assert!(HashRange::ALL.contains(0) && HashRange::ALL.contains(u32::MAX));
    }

    #[test]
    fn only_the_canonical_form_of_a_bundle_is_read() {
        for text in [
            "public/default",
            "public/default/",
            "public/default/0-ffffffff",
            "public/default/FFFFFFFF-ffffffff",
            "public/default/80000000-00000000",
            "public/default/+0000000-7fffffff",
            "default/00000000-ffffffff",
            "a/b/c/00000000-ffffffff",
            "public/default/00000000-ffffffff-",
        ] {
            assert!(text.parse::<BundleId>().is_err(), "{text}");
        }
    }
}
