//! `/api/v1/clients`: the machines that boot from us.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::Shared;
use super::error::ApiError;
use super::extract::{Asked, Called, JsonObject, shown};
use super::known;
use crate::boot::disks::NotReset;
use crate::cache::Snapshot;
use crate::catalog::CatalogError;
use crate::model::{BootMode, Client, DiskMode, MacAddr};
use crate::validate::{self, Reader, Write};

/// A client as it is answered: its row, and its image by name.
#[derive(serde::Serialize)]
struct View<'a> {
    #[serde(flatten)]
    client: &'a Client,
    assigned_image: Option<&'a str>,
    pinned_version: Option<&'a str>,
}

impl<'a> View<'a> {
    fn new(client: &'a Client, snapshot: &'a Snapshot) -> Self {
        let image = client.assigned_image_id.and_then(|id| snapshot.image(id));
        Self {
            client,
            assigned_image: image.map(|i| i.name.as_str()),
            pinned_version: client
                .pinned_version_id
                .and_then(|id| snapshot.version(id))
                .map(|v| v.name.as_str()),
        }
    }
}

fn answer(api: &Shared, client: &Client) -> Response {
    Json(View::new(client, &api.cache.get())).into_response()
}

/// `GET /api/v1/clients`, streamed: a list of any length costs no memory.
pub(super) async fn list(
    State(api): State<Shared>,
    mut asked: Asked,
) -> Result<Response, ApiError> {
    let page = asked.page();
    let enabled_only = asked.parsed::<bool>("enabled", "true or false") == Some(true);
    asked.finish()?;
    let mut clients = if api.catalog.is_away() {
        let known = known::clients(&api, enabled_only, page);
        stream::iter(known.into_iter().map(Ok)).boxed()
    } else {
        api.catalog.list_clients(enabled_only, page).boxed()
    };
    // Waiting for the first row tells a database that is away while there is still a status to set.
    let first = clients.next().await.transpose()?;
    let snapshot = api.cache.get();
    let rows = stream::iter(first.map(Ok))
        .chain(clients)
        .enumerate()
        .map(move |(i, client)| row(i, client, &snapshot));
    let body = stream::iter([Ok(r#"{"clients":["#.to_owned())])
        .chain(rows)
        .chain(stream::iter([Ok("]}".to_owned())]));
    let kind = (header::CONTENT_TYPE, "application/json");
    Ok(([kind], Body::from_stream(body)).into_response())
}

/// One element of the list. An error breaks the answer off: half a list never looks whole.
fn row(
    i: usize,
    client: Result<Client, CatalogError>,
    snapshot: &Snapshot,
) -> Result<String, std::io::Error> {
    let client = client
        .inspect_err(|error| tracing::warn!(%error, "a list of clients broke off"))
        .map_err(std::io::Error::other)?;
    let json = serde_json::to_string(&View::new(&client, snapshot))?;
    let comma = if i == 0 { "" } else { "," };
    Ok(format!("{comma}{json}"))
}

/// `GET /api/v1/clients/{client}`, by host name, MAC or id.
pub(super) async fn get(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<Response, ApiError> {
    let client = find(&api, &name).await?;
    Ok(answer(&api, &client))
}

/// `POST /api/v1/clients`
pub(super) async fn create(
    State(api): State<Shared>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let client = write(&api, body, Write::Create, fresh(Uuid::new_v4())).await?;
    let location = format!("/api/v1/clients/{}", client.id);
    let mut response = answer(&api, &client);
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = location.parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// `PUT /api/v1/clients/{client}`: all fields anew.
pub(super) async fn replace(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let client = find(&api, &name).await?;
    let client = write(&api, body, Write::Replace, client).await?;
    Ok(answer(&api, &client))
}

/// `PATCH /api/v1/clients/{client}`: only the given fields.
pub(super) async fn change(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let client = find(&api, &name).await?;
    let client = write(&api, body, Write::Change, client).await?;
    Ok(answer(&api, &client))
}

/// `DELETE /api/v1/clients/{client}`
pub(super) async fn delete(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<StatusCode, ApiError> {
    let _one = api.writes.lock().await;
    let client = find(&api, &name).await?;
    let deleted = api
        .catalog
        .delete_client(client.id)
        .await
        .map_err(ApiError::in_use)?;
    if !deleted {
        return Err(not_found(&name));
    }
    api.settle_client(client.id).await;
    tracing::info!(
        client.mac = %client.mac_address,
        client.hostname,
        "client deleted"
    );
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /api/v1/clients/{client}/disk`: its persistent disks; those of its boots go by
/// themselves. 409 while the machine has it open.
pub(super) async fn reset_disk(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<Json<Value>, ApiError> {
    let client = find(&api, &name).await?;
    let (disks, id) = (api.boot_disks.clone(), client.id);
    let done = tokio::task::spawn_blocking(move || disks.reset(id, None)).await;
    let removed = done
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .map_err(|why| not_reset(&client, &why))?;
    tracing::info!(client.mac = %client.mac_address, client.hostname, removed, "persistent disk reset");
    Ok(Json(serde_json::json!({"removed": removed})))
}

/// Why a disk was not thrown away.
pub(super) fn not_reset(client: &Client, why: &NotReset) -> ApiError {
    match why {
        NotReset::InUse => ApiError::Conflict {
            field: "",
            message: format!("{}: {why}", client.hostname),
        },
        NotReset::Store(error) => ApiError::Internal(error.to_string()),
    }
}

async fn write(
    api: &Shared,
    mut body: Map<String, Value>,
    write: Write,
    base: Client,
) -> Result<Client, ApiError> {
    let _one = api.writes.lock().await;
    let mut client = base;
    if write != Write::Create {
        // Again, now that nobody else writes.
        let current = by_id(api, client.id).await?;
        let current = current.ok_or_else(|| not_found(&client.hostname))?;
        if write == Write::Replace {
            // What is reserved already is known to the rules, and goes if it is not asked for.
            body.entry("ip_address").or_insert(Value::Null);
        }
        client = match write {
            Write::Replace => Client {
                ip_address: current.ip_address,
                created_at: current.created_at,
                last_boot_at: current.last_boot_at,
                boot_count: current.boot_count,
                ..fresh(current.id)
            },
            Write::Create | Write::Change => current,
        };
    }
    let snapshot = knowing_images(api, &body).await?;
    let image = |name: &str| image_id(&snapshot, name);
    let reader = Reader::new(body, write, api.strictness);
    let version = |image: Uuid, name: &str| version_id(&snapshot, image, name);
    validate::client(reader, &mut client, snapshot.ranges(), image, version)?;
    client.auto_registered = false;
    api.catalog.save_client_config(&client).await?;
    api.settle_client(client.id).await;
    tracing::info!(
        client.mac = %client.mac_address,
        client.hostname,
        client.enabled,
        "client saved"
    );
    Ok(by_id(api, client.id).await?.unwrap_or(client))
}

async fn by_id(api: &Shared, id: Uuid) -> Result<Option<Client>, ApiError> {
    if api.catalog.is_away() {
        // Whoever wants to change it will be told by the change.
        return Ok(api.cache.get().client(id).map(|c| (**c).clone()));
    }
    Ok(api.catalog.get_client(id).await?)
}

/// A picture of the catalog that has the images and versions the body names, if they exist: one made
/// in psql a moment ago may not be in the cache yet.
async fn knowing_images(
    api: &Shared,
    body: &Map<String, Value>,
) -> Result<Arc<Snapshot>, ApiError> {
    let snapshot = api.cache.get();
    let known = ["assigned_image", "assigned_image_id"]
        .iter()
        .filter_map(|field| body.get(*field)?.as_str())
        .all(|name| image_id(&snapshot, name).is_some());
    let pins = ["pinned_version", "pinned_version_id"]
        .iter()
        .any(|field| body.get(*field).is_some_and(Value::is_string));
    if known && !pins {
        return Ok(snapshot);
    }
    api.cache.refresh().await?;
    Ok(api.cache.get())
}

fn image_id(snapshot: &Snapshot, name: &str) -> Option<Uuid> {
    let by_id = name.parse().ok().and_then(|id| snapshot.image(id));
    by_id
        .or_else(|| snapshot.image_by_name(name))
        .map(|image| image.id)
}

fn version_id(snapshot: &Snapshot, image: Uuid, name: &str) -> Option<Uuid> {
    let id = name.parse::<Uuid>().ok();
    let versions = snapshot.versions(image).iter();
    let mut found = versions.filter(|v| v.name == name || Some(v.id) == id);
    found.next().map(|v| v.id)
}

/// The one client that a host name, a MAC in any spelling or an id means.
///
/// # Errors
/// 404 if there is none, 409 if the name means several.
pub(super) async fn find(api: &Shared, name: &str) -> Result<Client, ApiError> {
    if let Ok(id) = name.parse::<Uuid>() {
        return by_id(api, id).await?.ok_or_else(|| not_found(name));
    }
    let mut found = candidates(&api.cache.get(), name);
    if found.is_empty() {
        api.cache.refresh().await?;
        found = candidates(&api.cache.get(), name);
    }
    match found.as_slice() {
        [] => Err(not_found(name)),
        // The cache may be a moment behind; the row is the catalog's.
        [id] => by_id(api, *id).await?.ok_or_else(|| not_found(name)),
        several => Err(ApiError::Conflict {
            field: "",
            message: format!(
                "`{}` means {} clients: name the one you mean by its MAC or id",
                shown(name),
                several.len()
            ),
        }),
    }
}

fn candidates(snapshot: &Snapshot, name: &str) -> Vec<Uuid> {
    let by_mac = name
        .parse::<MacAddr>()
        .ok()
        .and_then(|mac| snapshot.client_by_mac(mac))
        .map(|client| client.id);
    let mut found: Vec<Uuid> = by_mac.into_iter().collect();
    for client in snapshot.clients() {
        if client.hostname.eq_ignore_ascii_case(name) && !found.contains(&client.id) {
            found.push(client.id);
        }
    }
    found
}

fn not_found(name: &str) -> ApiError {
    ApiError::NotFound(format!("there is no client `{}`", shown(name)))
}

/// The seed's defaults.
fn fresh(id: Uuid) -> Client {
    Client {
        id,
        mac_address: MacAddr([0; 6]),
        more_macs: Vec::new(),
        hostname: String::new(),
        ip_address: None,
        assigned_image_id: None,
        boot_mode: BootMode::Pxe,
        cpu_cores: 2,
        memory_mb: 2048,
        network_config: None,
        custom_boot_params: None,
        enabled: true,
        disk_mode: DiskMode::Ephemeral,
        ring: None,
        pinned_version_id: None,
        auto_registered: false,
        created_at: chrono::DateTime::UNIX_EPOCH,
        updated_at: chrono::DateTime::UNIX_EPOCH,
        last_boot_at: None,
        boot_count: 0,
    }
}
