//! `/api/v1/images/{image}/replicas`: which server has which version, and sending one to
//! another server. How far that is stands in the rows; it goes on by itself across restarts
//! and ends when its row is deleted.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Shared;
use super::error::ApiError;
use super::extract::{Asked, Called, CalledTwo, JsonObject, shown};
use super::images::find;
use crate::model::version::followed;
use crate::model::{Image, ImageKind, Replica, ReplicaState, Version};
use crate::replicate::NotReplicated;
use crate::validate::Violations;

impl From<NotReplicated> for ApiError {
    fn from(error: NotReplicated) -> Self {
        let message = error.to_string();
        match error {
            NotReplicated::NoServer(_) | NotReplicated::Ambiguous(_) => {
                Self::invalid("to", message)
            }
            NotReplicated::NoReplica => Self::NotFound(message),
            NotReplicated::Catalog(error) => error.into(),
            NotReplicated::Store(error) => error.into(),
            NotReplicated::Here
            | NotReplicated::NotStored
            | NotReplicated::LastCopy
            | NotReplicated::Refused(_) => Self::Conflict { field: "", message },
        }
    }
}

/// A disk image with its versions, oldest first.
async fn disk(api: &Shared, name: &str) -> Result<(Image, Vec<Version>), ApiError> {
    let image = find(api, name).await?;
    if image.kind != ImageKind::Disk {
        return Err(ApiError::Conflict {
            field: "",
            message: format!(
                "the image `{}` has no disk, and so no versions to replicate",
                shown(&image.name)
            ),
        });
    }
    let versions = api.catalog.list_versions(image.id).await?;
    Ok((image, versions))
}

/// The version that is named, or the one in production.
fn version<'a>(
    versions: &'a [Version],
    image: &Image,
    name: Option<&str>,
) -> Result<&'a Version, ApiError> {
    let id = name.and_then(|name| name.parse::<Uuid>().ok());
    let found = match name {
        None => followed(versions, None, None),
        Some(name) => versions.iter().find(|v| v.name == name || Some(v.id) == id),
    };
    found.ok_or_else(|| {
        ApiError::NotFound(format!(
            "the image `{}` has no version `{}`",
            shown(&image.name),
            shown(name.unwrap_or("in production"))
        ))
    })
}

/// A row with names beside its ids.
fn told(api: &Shared, row: &Replica, image: &str, version: &str) -> Value {
    let site = api.replication.site();
    let server = site.server(row.server_id);
    let from = row.from_server.and_then(|id| site.server(id));
    let mut told = json!(row);
    told["image"] = json!(image);
    told["version"] = json!(version);
    told["server"] = json!(server.map(|s| &s.name));
    told["server_alive"] = json!(server.is_some_and(|s| s.alive));
    told["from"] = json!(from.map(|s| &s.name));
    told
}

async fn rows(api: &Shared, image: Option<Uuid>) -> Result<Json<Value>, ApiError> {
    let snapshot = api.cache.get();
    let rows = api.catalog.list_replicas(image).await?;
    let told = rows.iter().map(|row| {
        let image = snapshot.image(row.image_id);
        let version = snapshot.version(row.version_id);
        let name =
            |name: Option<&String>, id: Uuid| name.cloned().unwrap_or_else(|| id.to_string());
        let image = name(image.map(|i| &i.name), row.image_id);
        let version = name(version.map(|v| &v.name), row.version_id);
        told(api, row, &image, &version)
    });
    Ok(Json(json!({"replicas": told.collect::<Vec<_>>()})))
}

/// `GET /api/v1/replicas`
pub(super) async fn all(State(api): State<Shared>, asked: Asked) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    rows(&api, None).await
}

/// `GET /api/v1/images/{image}/replicas`
pub(super) async fn list(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let image = find(&api, &name).await?;
    rows(&api, Some(image.id)).await
}

/// What is asked for: the server, and the version.
fn wanted(
    mut body: serde_json::Map<String, Value>,
) -> Result<(String, Option<String>), Violations> {
    let mut violations = Violations::new();
    let to = match body.remove("to") {
        Some(Value::String(to)) if !to.is_empty() => to,
        Some(_) => {
            violations.add("to", "must be the name or id of a server");
            String::new()
        }
        None => {
            violations.add("to", "is required: the name or id of a server");
            String::new()
        }
    };
    let version = match body.remove("version") {
        None | Some(Value::Null) => None,
        Some(Value::String(version)) => Some(version),
        Some(_) => {
            violations.add("version", "must be the name or id of a version");
            None
        }
    };
    for field in body.keys() {
        violations.add(shown(field), "is not a known field");
    }
    violations.into_result()?;
    Ok((to, version))
}

/// `POST /api/v1/images/{image}/replicas`: 202 while it is copied, 200 where it is already.
pub(super) async fn begin(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let (to, of) = wanted(body)?;
    let (image, versions) = disk(&api, &name).await?;
    let version = version(&versions, &image, of.as_deref())?;
    let to = api.replication.called(&to).await?;
    let row = api.replication.begin(image.id, version.id, &to).await?;
    let status = match row.state {
        ReplicaState::Verified => StatusCode::OK,
        ReplicaState::Copying | ReplicaState::Failed => StatusCode::ACCEPTED,
    };
    tracing::info!(image.name, version = version.name, to = to.name, state = %row.state, "replication asked for");
    let location = format!("/api/v1/images/{}/replicas", image.id);
    let told = Json(told(&api, &row, &image.name, &version.name));
    Ok((status, [(header::LOCATION, location)], told).into_response())
}

/// `DELETE /api/v1/images/{image}/replicas/{server}[?version=NAME]`: the server removes it, or
/// the copying ends.
pub(super) async fn remove(
    State(api): State<Shared>,
    CalledTwo(name, server): CalledTwo,
    mut asked: Asked,
) -> Result<StatusCode, ApiError> {
    let of = asked.text("version");
    asked.finish()?;
    let (image, versions) = disk(&api, &name).await?;
    let version = version(&versions, &image, of.as_deref())?;
    let server = match api.replication.called(&server).await {
        Err(error @ NotReplicated::NoServer(_)) => {
            return Err(ApiError::NotFound(error.to_string()));
        }
        found => found?,
    };
    api.replication
        .remove(image.id, version.id, &server)
        .await?;
    tracing::info!(
        image.name,
        version = version.name,
        server = server.name,
        "replica removed"
    );
    Ok(StatusCode::NO_CONTENT)
}
