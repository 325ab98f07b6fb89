//! `/admin/v2/tenants`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use geminga_proto::topic_name::TenantName;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::core::admin::AdminError;
use crate::frontend::admin::AdminState;
use crate::frontend::admin::brokers::check_clusters;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::{Options, TenantPath, json_body};

/// Body of a tenant's creation or update.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TenantInfo {
    #[serde(default)]
    admin_roles: Vec<String>,
    #[serde(default)]
    allowed_clusters: Vec<String>,
}

/// Options of a deletion.
#[derive(Debug, Deserialize)]
pub struct DeleteOptions {
    #[serde(default)]
    force: bool,
}

/// The tenants, sorted.
pub async fn list(State(state): State<AdminState>) -> Result<Json<Vec<String>>, ApiError> {
    Ok(Json(state.broker.list_tenants().await?))
}

/// A tenant.
pub async fn get(
    State(state): State<AdminState>,
    TenantPath(tenant): TenantPath,
) -> Result<Json<Value>, ApiError> {
    check_exists(&state, &tenant).await?;
    Ok(Json(json!({ "adminRoles": [], "allowedClusters": [state.identity.name] })))
}

/// Creates a tenant.
pub async fn create(
    State(state): State<AdminState>,
    TenantPath(tenant): TenantPath,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    check_info(&state, &body)?;
    state.broker.create_tenant(tenant.as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Changes what is known of a tenant: there is only what it has already.
pub async fn update(
    State(state): State<AdminState>,
    TenantPath(tenant): TenantPath,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    check_info(&state, &body)?;
    check_exists(&state, &tenant).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes a tenant without namespaces.
pub async fn delete(
    State(state): State<AdminState>,
    TenantPath(tenant): TenantPath,
    Options(options): Options<DeleteOptions>,
) -> Result<StatusCode, ApiError> {
    if options.force {
        let reason = "Broker doesn't allow forced deletion of tenants; delete its namespaces first";
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, reason));
    }
    state.broker.delete_tenant(tenant.as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn check_exists(state: &AdminState, tenant: &TenantName) -> Result<(), ApiError> {
    let tenants = state.broker.list_tenants().await?;
    if tenants.iter().any(|known| known == tenant.as_str()) {
        return Ok(());
    }
    Err(AdminError::TenantNotFound(tenant.to_string()).into())
}

/// No body means a tenant of this cluster; one that names clusters has to name this one.
fn check_info(state: &AdminState, body: &Bytes) -> Result<(), ApiError> {
    let Some(info) = json_body::<TenantInfo>(body)? else { return Ok(()) };
    if !info.admin_roles.is_empty() {
        return Err(ApiError::not_built("administrators of a tenant (adminRoles)"));
    }
    if info.allowed_clusters.is_empty() {
        return Err(ApiError::refused("Clusters can not be empty"));
    }
    check_clusters(state, &info.allowed_clusters)
}
