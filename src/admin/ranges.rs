//! `/api/v1/network-ranges`: how networks are served.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ipnetwork::Ipv4Network;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Shared;
use super::error::ApiError;
use super::extract::{Asked, Called, JsonObject, shown};
use super::known;
use crate::model::{NetworkRange, RangeMode, Serve, UnreadyAction};
use crate::validate::{self, Reader, Write};

/// `GET /api/v1/network-ranges`
pub(super) async fn list(
    State(api): State<Shared>,
    mut asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let page = asked.page();
    asked.finish()?;
    let ranges = all(&api).await?;
    let ranges = known::cut(ranges, page);
    Ok(Json(json!({"network_ranges": ranges})))
}

/// `GET /api/v1/network-ranges/{range}`, by name, network or id.
pub(super) async fn get(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<Json<NetworkRange>, ApiError> {
    find(&api, &name).await.map(Json)
}

/// `POST /api/v1/network-ranges`
pub(super) async fn create(
    State(api): State<Shared>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let range = write(&api, body, Write::Create, fresh(Uuid::new_v4())).await?;
    let location = format!("/api/v1/network-ranges/{}", range.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(range),
    )
        .into_response())
}

/// `PUT /api/v1/network-ranges/{range}`: all fields anew.
pub(super) async fn replace(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Json<NetworkRange>, ApiError> {
    let id = find(&api, &name).await?.id;
    write(&api, body, Write::Replace, fresh(id)).await.map(Json)
}

/// `PATCH /api/v1/network-ranges/{range}`: only the given fields.
pub(super) async fn change(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Json<NetworkRange>, ApiError> {
    let range = find(&api, &name).await?;
    write(&api, body, Write::Change, range).await.map(Json)
}

/// `DELETE /api/v1/network-ranges/{range}`
pub(super) async fn delete(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<StatusCode, ApiError> {
    let _one = api.writes.lock().await;
    let range = find(&api, &name).await?;
    let deleted = api
        .catalog
        .delete_network_range(range.id)
        .await
        .map_err(ApiError::in_use)?;
    if !deleted {
        return Err(not_found(&name));
    }
    api.settle().await;
    tracing::info!(range.name, "network range deleted");
    Ok(StatusCode::NO_CONTENT)
}

async fn write(
    api: &Shared,
    body: Map<String, Value>,
    write: Write,
    base: NetworkRange,
) -> Result<NetworkRange, ApiError> {
    let _one = api.writes.lock().await;
    let mut range = base;
    if write == Write::Change {
        // Again, now that nobody else writes.
        range = find(api, &range.id.to_string()).await?;
    }
    validate::range(Reader::new(body, write, api.strictness), &mut range)?;
    api.catalog.save_network_range(&range).await?;
    api.settle().await;
    tracing::info!(range.name, range.network = %range.network, "network range saved");
    find(api, &range.id.to_string()).await
}

async fn all(api: &Shared) -> Result<Vec<NetworkRange>, ApiError> {
    if api.catalog.is_away() {
        return Ok(known::ranges(api));
    }
    Ok(api.catalog.list_network_ranges().await?)
}

async fn find(api: &Shared, name: &str) -> Result<NetworkRange, ApiError> {
    let id = name.parse::<Uuid>().ok();
    let network = name
        .parse::<Ipv4Network>()
        .ok()
        .filter(|_| name.contains('/'));
    let ranges = all(api).await?;
    let mut named = None;
    let mut meant = None;
    for range in ranges {
        if Some(range.id) == id || Some(range.network) == network {
            meant = Some(range);
        } else if range.name == name {
            named = Some(range);
        }
    }
    meant.or(named).ok_or_else(|| not_found(name))
}

fn not_found(name: &str) -> ApiError {
    ApiError::NotFound(format!("there is no network range `{}`", shown(name)))
}

/// Every default.
fn fresh(id: Uuid) -> NetworkRange {
    NetworkRange {
        id,
        name: String::new(),
        network: Ipv4Network::from(std::net::Ipv4Addr::UNSPECIFIED),
        mode: RangeMode::Full,
        serve: Serve::All,
        unready: UnreadyAction::Wait,
        always_chainload: false,
        pools: Vec::new(),
        exclusions: Vec::new(),
        gateway: None,
        dns: Vec::new(),
        domain: None,
        search: Vec::new(),
        ntp: Vec::new(),
        mtu: None,
        routes: Vec::new(),
        lease_seconds: 3600,
        options: std::collections::BTreeMap::new(),
    }
}
