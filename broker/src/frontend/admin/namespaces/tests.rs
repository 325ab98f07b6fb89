//! Policies in Pulsar's words and in the core's.

use super::*;

fn retention(minutes: i64, mb: i64) -> Result<NamespacePolicies, ApiError> {
    let body = json!({ "retentionTimeInMinutes": minutes, "retentionSizeInMB": mb });
    let retention: Retention = serde_json::from_value(body).expect("well formed");
    let (ms, bytes) = retention.limits()?;
    let default = NamespacePolicies::default();
    Ok(NamespacePolicies { retention_ms: Some(ms), retention_bytes: Some(bytes), ..default })
}

#[test]
fn retention_is_kept_in_milliseconds_and_bytes_and_comes_back_as_it_was_set() {
    for (minutes, mb, ms, bytes) in [
        (10, 100, 600_000, 100 << 20),
        (-1, 100, u64::MAX, 100 << 20),
        (10, -1, 600_000, u64::MAX),
        (-1, -1, u64::MAX, u64::MAX),
        (0, 0, 0, 0),
    ] {
        let policies = retention(minutes, mb).expect("valid");
        assert_eq!(policies.retention_ms, Some(ms));
        assert_eq!(policies.retention_bytes, Some(bytes));
        let expected = json!({ "retentionTimeInMinutes": minutes, "retentionSizeInMB": mb });
        assert_eq!(Retention::of(&policies), Some(expected));
    }
    assert_eq!(Retention::of(&NamespacePolicies::default()), None);
}

#[test]
fn a_retention_beyond_all_numbers_is_without_limit() {
    let policies = retention(i64::MAX, i64::MAX).expect("valid");
    assert_eq!((policies.retention_ms, policies.retention_bytes), (Some(u64::MAX), Some(u64::MAX)));
}

#[test]
fn a_retention_that_pulsar_refuses_is_refused() {
    for (minutes, mb) in [(0, 1), (1, 0), (-1, 0), (0, -1), (-2, 1), (1, -2)] {
        let error = retention(minutes, mb).expect_err("refused");
        assert_eq!(error.status.as_u16(), 412, "{minutes} {mb}");
    }
}

#[test]
fn a_retention_with_a_misspelt_field_is_refused() {
    for text in [
        r#"{"retentionTimeInMinutes": 1}"#,
        r#"{"retentionTimeInMinutes": 1, "retentionSizeInMB": 1, "retentionSizeInGB": 1}"#,
        r#"{"retentionTimeInMinutes": "1", "retentionSizeInMB": 1}"#,
    ] {
        let error = required::<Retention>(&Bytes::from(text)).expect_err("refused");
        assert_eq!(error.status.as_u16(), 400, "{text}");
    }
    assert_eq!(required::<Retention>(&Bytes::new()).map_err(|e| e.status.as_u16()), Err(400));
}

#[test]
fn automatic_creation_of_partitioned_topics_is_named_as_not_built() {
    let apply = |body: Value| {
        let creation: AutoTopicCreation = serde_json::from_value(body).expect("well formed");
        creation.allowed()
    };
    assert_eq!(apply(json!({ "allowAutoTopicCreation": false })), Ok(false));
    let plain = json!({
        "allowAutoTopicCreation": true, "topicType": "non-partitioned", "defaultNumPartitions": 0,
    });
    assert_eq!(apply(plain), Ok(true));
    for (kind, partitions, status) in
        [("partitioned", Some(3), 501), ("non-partitioned", Some(3), 501), ("round", None, 412)]
    {
        let body = json!({
            "allowAutoTopicCreation": true, "topicType": kind, "defaultNumPartitions": partitions,
        });
        assert_eq!(apply(body).map_err(|error| error.status.as_u16()), Err(status), "{kind}");
    }
}

#[test]
fn bundles_are_shown_by_all_their_bounds() {
    let expected = json!({
        "boundaries": ["0x00000000", "0x80000000", "0xffffffff"], "numBundles": 2,
    });
    assert_eq!(bundles_json(&[0, 0x8000_0000]), expected);
}

#[test]
fn a_namespace_is_shown_with_the_policies_that_are_set() {
    let policies = NamespacePolicies {
        retention_ms: Some(60_000),
        retention_bytes: None,
        auto_topic_creation: Some(false),
    };
    let info = NamespaceInfo { created_ms: 7, bundle_bounds: vec![0], policies };
    let expected = json!({
        "bundles": { "boundaries": ["0x00000000", "0xffffffff"], "numBundles": 1 },
        "replication_clusters": ["standalone"],
        "deleted": false,
        "retention_policies": { "retentionTimeInMinutes": 1, "retentionSizeInMB": -1 },
        "autoTopicCreationOverride": {
            "allowAutoTopicCreation": false, "topicType": "non-partitioned",
        },
        "geminga": { "createdMs": 7 },
    });
    assert_eq!(policies_json(&info, "standalone"), expected);
    let unset = NamespaceInfo { policies: NamespacePolicies::default(), ..info };
    let shown = policies_json(&unset, "standalone");
    assert_eq!(shown.get("retention_policies"), None);
    assert_eq!(shown.get("autoTopicCreationOverride"), None);
}
