//! Topic names: `persistent://tenant/namespace/topic`, the short forms that Pulsar's users type,
//! and the `-partition-N` suffix.
//!
//! Validation is strict: what passes here can be a metadata key, a metric label and a path
//! segment of a URL without escaping surprises.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest accepted tenant or namespace, in bytes.
pub const MAX_PART_BYTES: usize = 128;
/// Longest accepted topic part, in bytes.
pub const MAX_TOPIC_BYTES: usize = 512;
/// Partition numbers stay below this.
pub const MAX_PARTITIONS: u32 = 100_000;

const DOMAIN: &str = "persistent://";
const PARTITION_INFIX: &str = "-partition-";

/// Why a text is not a topic or namespace name. Texts are cut, so an error can't flood a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// `non-persistent://` names are not served.
    #[error("{0:?}: non-persistent topics are not supported; use persistent://")]
    NonPersistent(String),
    /// Another scheme.
    #[error("{0:?}: unknown topic domain; use persistent://tenant/namespace/topic")]
    UnknownDomain(String),
    /// The wrong number of `/`.
    #[error("{0:?}: expected persistent://tenant/namespace/topic, tenant/namespace/topic or topic")]
    Shape(String),
    /// A namespace that is not `tenant/namespace`.
    #[error("{0:?}: expected tenant/namespace")]
    NamespaceShape(String),
    /// One part is empty, too long or has a character that is not allowed.
    #[error("{what} {text:?}: {why}")]
    Part {
        /// Tenant, namespace, topic or subscription.
        what: &'static str,
        /// The part, cut.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn check_part(what: &'static str, text: &str) -> Result<(), NameError> {
    let fail = |why| Err(NameError::Part { what, text: cut(text), why });
    if text.is_empty() {
        return fail("must not be empty");
    }
    if text.len() > MAX_PART_BYTES {
        return fail("is longer than 128 bytes");
    }
    if text.bytes().all(|byte| byte == b'.') {
        return fail("must not consist of dots");
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.=:".contains(&byte)) {
        return fail("only letters, digits and - _ . = : are allowed");
    }
    Ok(())
}

/// Topics and subscriptions may hold any printable character except those that separate parts.
fn check_local(what: &'static str, text: &str) -> Result<(), NameError> {
    let fail = |why| Err(NameError::Part { what, text: cut(text), why });
    if text.is_empty() {
        return fail("must not be empty");
    }
    if text.len() > MAX_TOPIC_BYTES {
        return fail("is longer than 512 bytes");
    }
    if text.bytes().all(|byte| byte == b'.') {
        return fail("must not consist of dots");
    }
    if text.contains(['/', '\\', '?', '#']) {
        return fail("must not contain / \\ ? or #");
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\u{feff}') {
        return fail("must not contain spaces or control characters");
    }
    Ok(())
}

/// Checks the name of a subscription.
///
/// # Errors
/// [`NameError::Part`] says what is wrong.
pub fn check_subscription(text: &str) -> Result<(), NameError> {
    check_local("subscription", text)
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantName(Arc<str>);

impl TenantName {
    /// Checks the name.
    ///
    /// # Errors
    /// [`NameError::Part`] says what is wrong.
    pub fn new(tenant: &str) -> Result<Self, NameError> {
        check_part("tenant", tenant)?;
        Ok(Self(tenant.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for TenantName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

/// A tenant's namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceName {
    full: Arc<str>,
    tenant_len: usize,
}

impl NamespaceName {
    /// Checks both parts.
    ///
    /// # Errors
    /// [`NameError::Part`] says which part is wrong and why.
    pub fn new(tenant: &str, namespace: &str) -> Result<Self, NameError> {
        check_part("tenant", tenant)?;
        check_part("namespace", namespace)?;
        Ok(Self { full: format!("{tenant}/{namespace}").into(), tenant_len: tenant.len() })
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.full.get(..self.tenant_len).unwrap_or_default()
    }

    /// The tenant as a checked name of its own.
    #[must_use]
    pub fn tenant_name(&self) -> TenantName {
        TenantName(self.tenant().into())
    }

    /// The namespace without its tenant.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.full.get(self.tenant_len + 1..).unwrap_or_default()
    }

    /// `tenant/namespace`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.full)
    }
}

impl FromStr for NamespaceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((tenant, namespace)) if !namespace.contains('/') => Self::new(tenant, namespace),
            _ => Err(NameError::NamespaceShape(cut(text))),
        }
    }
}

/// A topic's full name, which may be that of one partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName {
    namespace: NamespaceName,
    /// With the partition suffix, if there is one.
    local: Arc<str>,
}

impl TopicName {
    /// Checks the topic's part; the namespace is checked already.
    ///
    /// # Errors
    /// [`NameError::Part`] says what is wrong.
    pub fn new(namespace: NamespaceName, local: &str) -> Result<Self, NameError> {
        check_local("topic", local)?;
        if let Some((_, number)) = local.rsplit_once(PARTITION_INFIX)
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && parse_partition(number).is_none()
        {
            let why = "the partition must be a number below 100000 without leading zeros";
            return Err(NameError::Part { what: "topic", text: cut(local), why });
        }
        Ok(Self { namespace, local: local.into() })
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &NamespaceName {
        &self.namespace
    }

    /// The last part, with the partition suffix if there is one.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.local
    }

    /// Number of the partition, if this names one.
    #[must_use]
    pub fn partition(&self) -> Option<u32> {
        self.local.rsplit_once(PARTITION_INFIX).and_then(|(_, number)| parse_partition(number))
    }

    /// `tenant/namespace/topic`, without the domain: the form used in metadata keys.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.local)
    }

    /// Where the topic falls among its namespace's bundles: the CRC-32C of its full name.
    /// Persisted decisions depend on it, so it never changes.
    #[must_use]
    pub fn hash(&self) -> u32 {
        let crc = crc32c::crc32c(DOMAIN.as_bytes());
        let crc = crc32c::crc32c_append(crc, self.namespace.as_str().as_bytes());
        let crc = crc32c::crc32c_append(crc, b"/");
        crc32c::crc32c_append(crc, self.local.as_bytes())
    }
}

fn parse_partition(number: &str) -> Option<u32> {
    let canonical = number == "0" || !number.starts_with('0');
    let value = number.parse::<u32>().ok()?;
    (canonical && !number.starts_with('+') && value < MAX_PARTITIONS).then_some(value)
}

impl fmt::Display for TopicName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{DOMAIN}{}/{}", self.namespace, self.local)
    }
}

impl FromStr for TopicName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let path = match text.split_once("://") {
            None => text,
            Some(("persistent", path)) if path.matches('/').count() == 2 => path,
            Some(("persistent", _)) => return Err(NameError::Shape(cut(text))),
            Some(("non-persistent", _)) => return Err(NameError::NonPersistent(cut(text))),
            Some(_) => return Err(NameError::UnknownDomain(cut(text))),
        };
        let parts: Vec<&str> = path.split('/').take(4).collect();
        match parts[..] {
            [local] => Self::new(NamespaceName::new("public", "default")?, local),
            [tenant, namespace, local] => Self::new(NamespaceName::new(tenant, namespace)?, local),
            _ => Err(NameError::Shape(cut(text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topic(text: &str) -> Result<TopicName, NameError> {
        text.parse()
    }

    #[test]
    fn the_three_forms_name_the_same_topic() {
        let full = topic("persistent://public/default/orders").expect("valid");
        assert_eq!(topic("orders").as_ref(), Ok(&full));
        assert_eq!(topic("public/default/orders").as_ref(), Ok(&full));
        assert_eq!(full.to_string(), "persistent://public/default/orders");
        assert_eq!(full.path(), "public/default/orders");
        assert_eq!(
            (full.namespace().tenant(), full.namespace().namespace()),
            ("public", "default")
        );
    }

    #[test]
    fn a_partition_suffix_is_recognised_only_in_its_canonical_form() {
        let partition = |text| topic(text).map(|name| name.partition());
        assert_eq!(partition("orders-partition-12"), Ok(Some(12)));
        assert_eq!(partition("orders-partition-x"), Ok(None));
        assert_eq!(partition("orders"), Ok(None));
        for text in
            ["o-partition-01", "o-partition-100000", "o-partition-99999999999", "o-partition-"]
        {
            assert!(topic(text).is_err(), "{text}");
        }
    }

    #[test]
    fn malformed_and_hostile_names_are_refused() {
        for text in [
            "",
            "/",
            "a/b",
            "a/b/c/d",
            "persistent://",
            "persistent://a/b",
            "persistent://orders",
            "non-persistent://a/b/c",
            "kafka://a/b/c",
            "a/b/..",
            "../b/c",
            "a/./c",
            "a b",
            "a\nb",
            "a\0b",
            "a//c",
            "a/b/",
            "x?y",
            "x#y",
            "x\\y",
            "tenänt/ns/t",
            "t\u{feff}",
            "persistent://a/b/c/d",
            "persistent:///b/c",
        ] {
            assert!(topic(text).is_err(), "{text:?} passed");
        }
        assert!(topic(&"x".repeat(MAX_TOPIC_BYTES)).is_ok());
        assert!(topic(&"x".repeat(MAX_TOPIC_BYTES + 1)).is_err());
        assert!(matches!(topic("non-persistent://a/b/c"), Err(NameError::NonPersistent(_))));
    }

    #[test]
    fn the_hash_of_a_name_never_changes() {
        assert_eq!(topic("orders").map(|name| name.hash()), Ok(GOLDEN_HASH));
    }

    const GOLDEN_HASH: u32 = 0x666a_613b;

    proptest! {
        #[test]
        fn parsing_never_panics_and_a_parsed_name_parses_to_itself(text in "\\PC{0,40}") {
            if let Ok(name) = topic(&text) {
                prop_assert_eq!(topic(&name.to_string()), Ok(name));
            }
        }
    }
}
