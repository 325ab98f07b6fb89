//! Every path that is served, and by which handler.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};

use crate::frontend::admin::config::AdminConfig;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::guard::{Guard, guard};
use crate::frontend::admin::{
    AdminState, brokers, bundles, cluster, geminga, lookup, metrics, namespaces, not_built, repair,
    subscriptions, tenants, topics,
};

/// The whole API behind its middleware.
pub fn router(state: AdminState, config: &AdminConfig) -> Router {
    let paths = [add_process, add_cluster, add_namespaces, add_topics, add_subscriptions];
    let routes = paths.into_iter().fold(Router::new(), |router, add| add(router));
    let routes = not_built::add(add_geminga(routes))
        .fallback(not_built::unknown_path)
        .method_not_allowed_fallback(not_built::wrong_method)
        .with_state(state);
    // A router of its own, so that the middleware comes before the choice of a route: it changes
    // the path.
    Router::new()
        .fallback_service(routes)
        .layer(from_fn_with_state(Guard::new(config.clone()), guard))
}

type Routes = Router<AdminState>;

fn add_process(router: Routes) -> Routes {
    router
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics::scrape))
        .route("/lookup/v2/topic/persistent/{tenant}/{namespace}/{topic}", get(lookup::topic))
}

/// `ok` once the composition root has said that everything serves.
async fn ready(State(state): State<AdminState>) -> Result<&'static str, ApiError> {
    match state.readiness.why_not() {
        None => Ok("ok"),
        Some(why) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why)),
    }
}

fn add_cluster(router: Routes) -> Routes {
    let change_cluster = brokers::change_cluster;
    let change_dynamic = brokers::change_dynamic;
    router
        .route("/admin/v2/brokers", get(brokers::list))
        .route("/admin/v2/brokers/health", get(brokers::health))
        .route("/admin/v2/brokers/ready", get(ready))
        .route("/admin/v2/brokers/leaderBroker", get(brokers::leader))
        .route("/admin/v2/brokers/configuration", get(brokers::dynamic_names))
        .route("/admin/v2/brokers/configuration/runtime", get(brokers::runtime))
        .route("/admin/v2/brokers/configuration/values", get(brokers::dynamic_values))
        .route("/admin/v2/brokers/configuration/{name}", axum::routing::delete(change_dynamic))
        .route(
            "/admin/v2/brokers/configuration/{name}/{value}",
            post(change_dynamic).delete(change_dynamic),
        )
        .route("/admin/v2/brokers/{cluster}", get(brokers::list_of_cluster))
        .route("/admin/v2/clusters", get(brokers::clusters))
        .route(
            "/admin/v2/clusters/{cluster}",
            get(brokers::cluster).put(change_cluster).post(change_cluster).delete(change_cluster),
        )
        .route("/admin/v2/tenants", get(tenants::list))
        .route(
            "/admin/v2/tenants/{tenant}",
            get(tenants::get).put(tenants::create).post(tenants::update).delete(tenants::delete),
        )
}

fn add_namespaces(router: Routes) -> Routes {
    let namespace = |path: &str| format!("/admin/v2/namespaces/{{tenant}}/{{namespace}}{path}");
    router
        .route("/admin/v2/namespaces/{tenant}", get(namespaces::list))
        .route(
            &namespace(""),
            get(namespaces::get).put(namespaces::create).delete(namespaces::delete),
        )
        .route(&namespace("/topics"), get(namespaces::topics))
        .route(&namespace("/bundles"), get(namespaces::bundles))
        .route(&namespace("/unload"), put(bundles::unload_namespace))
        .route(&namespace("/{bundle}/unload"), put(bundles::unload))
        .route(
            &namespace("/retention"),
            get(namespaces::get_retention)
                .post(namespaces::set_retention)
                .delete(namespaces::delete_retention),
        )
        .route(
            &namespace("/autoTopicCreation"),
            get(namespaces::get_auto_topic_creation)
                .post(namespaces::set_auto_topic_creation)
                .delete(namespaces::delete_auto_topic_creation),
        )
}

fn add_topics(router: Routes) -> Routes {
    let list = "/admin/v2/persistent/{tenant}/{namespace}";
    let topic = |path: &str| format!("{list}/{{topic}}{path}");
    let change_partitions = topics::change_partitions;
    router
        .route(list, get(topics::list))
        .route(&format!("{list}/partitioned"), get(topics::list_partitioned))
        .route(&topic(""), put(topics::create).delete(topics::delete))
        .route(
            &topic("/partitions"),
            get(topics::partitions)
                .put(change_partitions)
                .post(change_partitions)
                .delete(change_partitions),
        )
        .route(&topic("/stats"), get(topics::stats))
        .route(&topic("/internalStats"), get(topics::internal_stats))
        .route(&topic("/lastMessageId"), get(topics::last_message_id))
        .route(&topic("/unload"), put(topics::unload))
        .route(&topic("/subscriptions"), get(subscriptions::list))
}

fn add_subscriptions(router: Routes) -> Routes {
    let subscription = |path: &str| {
        let topic = "/admin/v2/persistent/{tenant}/{namespace}/{topic}";
        format!("{topic}/subscription/{{subscription}}{path}")
    };
    router
        .route(&subscription(""), put(subscriptions::create).delete(subscriptions::delete))
        .route(&subscription("/resetcursor"), post(subscriptions::reset))
        .route(&subscription("/skip_all"), post(subscriptions::skip_all))
}

fn add_geminga(router: Routes) -> Routes {
    let bookie = |path: &str| format!("/admin/v2/geminga/bookies/{{bookie}}/{path}");
    router
        .route(&bookie("decommission"), put(repair::decommission))
        .route(&bookie("recover"), put(repair::recover))
        .route(&bookie("scrub"), get(repair::scrub).put(repair::start_scrub))
        .route(&bookie("drain"), get(repair::drain).delete(repair::cancel))
        .route("/admin/v2/geminga/repairs", get(repair::repairs))
        .route("/admin/v2/geminga/ledgers/{ledger}/check", get(repair::check))
        .route("/admin/v2/geminga/ledgers", get(geminga::ledgers))
        .route("/admin/v2/geminga/ledgers/{ledger}", get(geminga::ledger))
        .route("/admin/v2/geminga/brokers", get(cluster::brokers))
        .route("/admin/v2/geminga/bookies", get(cluster::bookies))
        .route("/admin/v2/geminga/cluster", get(cluster::status))
        .route("/admin/v2/geminga/namespaces/{tenant}/{namespace}/bundles", get(bundles::list))
        .route("/admin/v2/bookies/all", get(cluster::bookies_as_pulsar))
        .route("/admin/v2/geminga/meta", get(geminga::meta))
        .route("/admin/v2/geminga/durability", get(geminga::durability))
        .route("/admin/v2/geminga/queues", get(geminga::queues))
}
