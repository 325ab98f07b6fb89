//! Pulsar's paths that Geminga doesn't serve yet, each with the name of what is missing: they
//! answer 501 for every method, where a path that nobody knows answers 404.

use axum::Router;
use axum::http::{Method, Uri};
use axum::routing::any;

use crate::frontend::admin::AdminState;
use crate::frontend::admin::error::ApiError;

/// Below `/admin/v2/namespaces/{tenant}/{namespace}/`.
const OF_NAMESPACE: &[(&str, &str)] = &[
    ("antiAffinity", "anti-affinity groups"),
    ("autoSubscriptionCreation", "the policy autoSubscriptionCreation"),
    ("backlogQuota", "backlog quotas"),
    ("backlogQuotaMap", "backlog quotas"),
    ("clearBacklog", "clearing the backlog of a namespace"),
    ("compactionThreshold", "compaction"),
    ("deduplication", "deduplication"),
    ("deduplicationSnapshotInterval", "deduplication"),
    ("delayedDelivery", "delayed delivery"),
    ("dispatchRate", "rate limits"),
    ("encryptionRequired", "the policy encryptionRequired"),
    ("inactiveTopicPolicies", "deletion of inactive topics"),
    ("isAllowAutoUpdateSchema", "schemas"),
    ("maxConsumersPerSubscription", "limits by namespace"),
    ("maxConsumersPerTopic", "limits by namespace"),
    ("maxProducersPerTopic", "limits by namespace"),
    ("maxSubscriptionsPerTopic", "limits by namespace"),
    ("maxTopicsPerNamespace", "limits by namespace"),
    ("maxUnackedMessagesPerConsumer", "limits on unacknowledged messages"),
    ("maxUnackedMessagesPerSubscription", "limits on unacknowledged messages"),
    ("messageTTL", "message expiry"),
    ("offloadDeletionLagMs", "offloading"),
    ("offloadPolicies", "offloading"),
    ("offloadThreshold", "offloading"),
    ("offloadThresholdInSeconds", "offloading"),
    ("permissions", "permissions"),
    ("permissions/{*rest}", "permissions"),
    ("persistence", "the policy persistence (quorums of one namespace)"),
    ("persistence/bookieAffinity", "bookie affinity groups"),
    ("properties", "properties of a namespace"),
    ("properties/{key}", "properties of a namespace"),
    ("publishRate", "rate limits"),
    ("removeOffloadPolicies", "offloading"),
    ("replication", "geo-replication"),
    ("replicatorDispatchRate", "geo-replication"),
    ("schemaAutoUpdateCompatibilityStrategy", "schemas"),
    ("schemaCompatibilityStrategy", "schemas"),
    ("schemaValidationEnforced", "schemas"),
    ("subscribeRate", "rate limits"),
    ("subscriptionAuthMode", "permissions"),
    ("subscriptionDispatchRate", "rate limits"),
    ("subscriptionExpirationTime", "expiry of subscriptions"),
    ("subscriptionTypesEnabled", "the policy subscriptionTypesEnabled"),
];

/// Below `/admin/v2/persistent/{tenant}/{namespace}/{topic}/`.
const OF_TOPIC: &[(&str, &str)] = &[
    ("autoSubscriptionCreation", TOPIC_POLICIES),
    ("backlogQuota", TOPIC_POLICIES),
    ("backlogQuotaMap", TOPIC_POLICIES),
    ("backlogSize", "the backlog behind a message id"),
    ("compaction", "compaction"),
    ("compactionThreshold", TOPIC_POLICIES),
    ("deduplicationEnabled", TOPIC_POLICIES),
    ("deduplicationSnapshotInterval", TOPIC_POLICIES),
    ("delayedDelivery", TOPIC_POLICIES),
    ("dispatchRate", TOPIC_POLICIES),
    ("examinemessage", "reading messages over REST"),
    ("inactiveTopicPolicies", TOPIC_POLICIES),
    ("ledger/{ledger}/entry/{entry}", "reading messages over REST"),
    ("maxConsumers", TOPIC_POLICIES),
    ("maxConsumersPerSubscription", TOPIC_POLICIES),
    ("maxMessageSize", TOPIC_POLICIES),
    ("maxProducers", TOPIC_POLICIES),
    ("maxSubscriptionsPerTopic", TOPIC_POLICIES),
    ("maxUnackedMessagesOnConsumer", TOPIC_POLICIES),
    ("maxUnackedMessagesOnSubscription", TOPIC_POLICIES),
    ("messageTTL", TOPIC_POLICIES),
    ("messageid/{timestamp}", "finding a message by its time"),
    ("offload", "offloading"),
    ("offloadPolicies", TOPIC_POLICIES),
    ("partitioned-stats", PARTITIONS),
    ("permissions", "permissions"),
    ("permissions/{*rest}", "permissions"),
    ("persistence", TOPIC_POLICIES),
    ("properties", "properties of a topic"),
    ("publishRate", TOPIC_POLICIES),
    ("replication", "geo-replication"),
    ("replicatorDispatchRate", TOPIC_POLICIES),
    ("retention", TOPIC_POLICIES),
    ("schemaCompatibilityStrategy", "schemas"),
    ("schemaValidationEnforced", "schemas"),
    ("subscribeRate", TOPIC_POLICIES),
    ("subscription/{subscription}/analyzeBacklog", "analysis of a backlog"),
    ("subscription/{subscription}/expireMessages/{seconds}", "message expiry"),
    ("subscription/{subscription}/position/{position}", "reading messages over REST"),
    ("subscription/{subscription}/properties", "properties of a subscription"),
    ("subscription/{subscription}/resetcursor/{timestamp}", "moving a subscription to a time"),
    ("subscription/{subscription}/skip/{count}", "skipping a number of messages"),
    ("subscriptionDispatchRate", TOPIC_POLICIES),
    ("terminate", "termination of topics"),
    ("truncate", "truncation of topics"),
];

/// Everything else.
const OTHERS: &[(&str, &str)] = &[
    ("/admin/v2/bookies/{*rest}", "placement of bookies in racks"),
    ("/admin/v2/broker-stats/{*rest}", "broker-stats (see /metrics and …/geminga/queues)"),
    ("/admin/v2/clusters/{cluster}/{*rest}", "peer clusters and isolation policies"),
    ("/admin/v2/non-persistent/{*rest}", "non-persistent topics"),
    ("/admin/v2/resourcegroups", "resource groups"),
    ("/admin/v2/resourcegroups/{*rest}", "resource groups"),
    ("/admin/v2/resource-quotas", "resource quotas"),
    ("/admin/v2/resource-quotas/{*rest}", "resource quotas"),
    ("/admin/v2/schemas/{*rest}", "schemas"),
    ("/admin/v2/functions/{*rest}", "functions"),
    ("/admin/v2/worker/{*rest}", "functions"),
    ("/admin/v3/functions/{*rest}", "functions"),
    ("/admin/v3/packages/{*rest}", "packages"),
    ("/admin/v3/sinks/{*rest}", "connectors"),
    ("/admin/v3/sources/{*rest}", "connectors"),
    ("/admin/v3/transactions/{*rest}", "transactions"),
    ("/lookup/v2/topic/non-persistent/{*rest}", "non-persistent topics"),
];

const TOPIC_POLICIES: &str = "policies of one topic (policies of its namespace are)";
/// What partitioned topics are called in answers.
pub const PARTITIONS: &str = "partitioned topics";

/// Adds the paths to a router.
pub fn add(router: Router<AdminState>) -> Router<AdminState> {
    let namespaces = OF_NAMESPACE.iter().map(|(path, feature)| {
        (format!("/admin/v2/namespaces/{{tenant}}/{{namespace}}/{path}"), *feature)
    });
    let topics = OF_TOPIC.iter().map(|(path, feature)| {
        (format!("/admin/v2/persistent/{{tenant}}/{{namespace}}/{{topic}}/{path}"), *feature)
    });
    let others = OTHERS.iter().map(|(path, feature)| ((*path).to_owned(), *feature));
    namespaces.chain(topics).chain(others).fold(router, |router, (path, feature)| {
        router.route(&path, any(move || async move { ApiError::not_built(feature) }))
    })
}

/// Answers a path that has no route.
pub async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let reason = if path.starts_with("/admin/") || path.starts_with("/lookup/") {
        format!("{method} {path}: not built in Geminga; docs/ADMIN_API.md lists what is")
    } else {
        format!("{method} {path}: no such path; administration is below /admin/v2")
    };
    ApiError::not_found(reason)
}

/// Answers a method that a path's route doesn't have; axum adds the `Allow` header.
pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let reason = format!("{method} {path}: the path exists, but not with this method; see Allow");
    ApiError::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, reason)
}
