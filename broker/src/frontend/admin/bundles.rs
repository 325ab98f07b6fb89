//! Bundles of a namespace: who owns them, and handing them over.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use geminga_meta::bundle::{BundleId, HashRange};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::core::admin::AdminError;
use crate::core::api::{Lookup, TopicError};
use crate::core::cluster_info::BundleInfo;
use crate::frontend::admin::AdminState;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::{NamespacePath, Options, PathParams};
use crate::frontend::admin::redirect;

/// Brokers that one unloading of a namespace goes through.
const MAX_BROKERS: usize = 64;

/// Options of unloading a namespace.
#[derive(Debug, Deserialize)]
pub struct UnloadOptions {
    /// Brokers that have unloaded what they had of it, separated by commas.
    #[serde(default)]
    unloaded: String,
}

/// A namespace's bundles with their owners.
pub async fn list(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
) -> Result<Json<Value>, ApiError> {
    let bundles = state.broker.bundles(&name).await?;
    let bundles: Vec<Value> = bundles.iter().map(bundle_json).collect();
    Ok(Json(json!({ "namespace": name.to_string(), "bundles": bundles })))
}

fn bundle_json(info: &BundleInfo) -> Value {
    let owner = info.owner.as_ref();
    json!({
        "bundle": info.bundle.range.to_string(),
        "owner": owner.map(|owner| &owner.broker_id),
        "service_url": owner.map(|owner| &owner.service_url),
        "admin_url": owner.map(|owner| &owner.admin_url),
    })
}

/// Reads a bundle's name, as Geminga writes it or as Pulsar does: `0x00000000_0x40000000`, without
/// its upper end unless that is the last hash.
fn range(text: &str) -> Result<HashRange, ApiError> {
    let malformed = || {
        let text: String = text.chars().take(80).collect();
        ApiError::refused(format!("{text:?} is no bundle; one is 00000000-3fffffff, for example"))
    };
    let Some((first, end)) = text.split_once('_') else {
        return text.parse().map_err(|_| malformed());
    };
    let hash = |text: &str| {
        let hex = |digits: &&str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 8).filter(hex)?;
        u32::from_str_radix(digits, 16).ok()
    };
    let (first, end) = (hash(first).ok_or_else(malformed)?, hash(end).ok_or_else(malformed)?);
    let last = if end == u32::MAX { end } else { end.checked_sub(1).ok_or_else(malformed)? };
    if first > last { Err(malformed()) } else { Ok(HashRange { first, last }) }
}

/// Hands a bundle over.
pub async fn unload(
    State(state): State<AdminState>,
    NamespacePath(namespace): NamespacePath,
    params: PathParams,
    uri: Uri,
) -> Result<StatusCode, ApiError> {
    let id = BundleId { namespace, range: range(params.get("bundle")?)? };
    match state.broker.unload_bundle(&id).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(AdminError::Topic(TopicError::NotOwner)) if !redirect::was_sent_here(&uri) => {
            let bundles = state.broker.bundles(&id.namespace).await?;
            let owner = bundles.into_iter().find(|info| info.bundle == id);
            match owner.and_then(|info| info.owner) {
                Some(owner) => Err(redirect::to(&owner.admin_url, &uri)),
                // It has gone meanwhile, which is as good.
                None => Ok(StatusCode::NO_CONTENT),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Hands over all bundles of a namespace: each broker those that it owns, one after the other.
pub async fn unload_namespace(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
    Options(options): Options<UnloadOptions>,
    uri: Uri,
) -> Result<StatusCode, ApiError> {
    let unloaded = state.broker.unload_namespace(&name).await?;
    let mut done: Vec<&str> = options.unloaded.split(',').filter(|id| !id.is_empty()).collect();
    let own = state.broker.config().broker_id.as_str();
    done.push(own);
    let next = unloaded.others.into_iter().find_map(|owner| match owner {
        Lookup::Elsewhere { broker_id, admin_url, .. } if !done.contains(&broker_id.as_str()) => {
            Some(admin_url)
        }
        Lookup::Elsewhere { .. } | Lookup::Here => None,
    });
    match next {
        // What has moved to a broker that was done already moved because it was handed over.
        None => Ok(StatusCode::NO_CONTENT),
        Some(_) if done.len() > MAX_BROKERS => {
            Err(ApiError::refused(format!("more than {MAX_BROKERS} brokers own bundles of it")))
        }
        Some(admin_url) => {
            let path = format!("{admin_url}{}?unloaded={}", uri.path(), done.join(","));
            Err(ApiError::elsewhere(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_read_in_both_forms() {
        let read = |text| range(text).map(|range| range.to_string()).map_err(|e| e.status.as_u16());
        assert_eq!(read("00000000-3fffffff"), Ok("00000000-3fffffff".to_owned()));
        assert_eq!(read("0x00000000_0x40000000"), Ok("00000000-3fffffff".to_owned()));
        assert_eq!(read("0xc0000000_0xffffffff"), Ok("c0000000-ffffffff".to_owned()));
        for text in [
            "",
            "all",
            "0x00000000_0x00000000",
            "0x40000000_0x00000001",
            "00000000_40000000",
            "0x0_0x40000000",
            "0x00000000_0x400000000",
            "0x+0000000_0x40000000",
            "3fffffff-00000000",
        ] {
            assert_eq!(read(text), Err(412), "{text}");
        }
    }
}
