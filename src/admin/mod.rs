//! The admin REST API, `/healthz`, `/readyz`, `/metrics`: the map of its routes.
//!
//! One file per noun (`images`, `imports`, `doctor`, `replicas`, `clients`, `clones`, `ranges`, `sessions`, `health`); [`auth`]
//! says who is let in, `error` is the only place that turns failures into HTTP, `extract`
//! takes requests apart, `server` owns sockets and tasks. [`routes`] is the whole list of
//! what is answered, each entry with its [`Access`]: there is no route without a rule.
//!
//! Every write is validated whole, goes through the catalog (which has the last word), and
//! is in the cache when it is answered: it holds from the next packet on.
//! No SQL, no boot logic, no other edge here.

mod aside;
pub mod auth;
mod clients;
mod clones;
mod doctor;
mod error;
mod extract;
mod health;
mod images;
mod imports;
mod known;
mod ranges;
mod replicas;
mod server;
mod servers;
mod sessions;
mod stock;

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

pub use auth::{Access, AdminMetrics};
pub use doctor::{DoctorMetrics, look_over};
pub use health::{Part, Readiness};
pub use server::AdminServer;

use crate::boot::disks::Disks;
use crate::boot::tracker::Tracker;
use crate::cache::Cache;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::replicate::Replication;
use crate::storage::{Directory, Pending, Storage, Uploads};
use crate::validate::Strictness;

/// What the admin API works on.
#[derive(Clone)]
pub struct Handles {
    /// PostgreSQL.
    pub catalog: Catalog,
    /// Refreshed after every write.
    pub cache: Cache,
    /// For the live stream of boots.
    pub tracker: Tracker,
    /// Who has which disk.
    pub boot_disks: Disks,
    /// Kernels and initrds.
    pub storage: Directory,
    /// Disks.
    pub disks: Arc<dyn Storage>,
    /// Disk files on their way in.
    pub uploads: Uploads,
    /// What is begun and not yet done with images.
    pub pending: Pending,
    /// Which server has what.
    pub replication: Replication,
    /// What is taken in.
    pub limits: ImageLimits,
    /// The time.
    pub clock: Clock,
    /// Who knows it is let in.
    pub token: auth::Token,
    /// What `/metrics` shows.
    pub registry: Arc<Registry>,
    /// Our own counters, registered in `registry` before it was shared.
    pub metrics: AdminMetrics,
    /// Where catalog and store do not agree; registered as well.
    pub doctor: DoctorMetrics,
    /// Which listeners are up, for `/readyz`.
    pub readiness: Readiness,
    /// `[validation] enable_strict_mode`.
    pub strictness: Strictness,
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}

/// What is taken in as a disk.
#[derive(Debug, Clone)]
pub struct ImageLimits {
    /// Most bytes of an uploaded file.
    pub upload_bytes: u64,
    /// The folder whose files may be imported by their path.
    pub import_dir: Option<std::path::PathBuf>,
}

/// What handlers share.
struct Api {
    handles: Handles,
    /// Conversions under way.
    works: imports::Works,
    /// What was begun and waits for a person.
    aside: aside::Aside,
    /// One write at a time: a change reads the row, changes it and writes it back.
    writes: tokio::sync::Mutex<()>,
    /// Room for looks into disks.
    checks: tokio::sync::Semaphore,
    /// Ends the endless answers.
    cancel: CancellationToken,
}

impl std::ops::Deref for Api {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.handles
    }
}

impl Api {
    /// After a committed change: the cache takes it in. If the database went away in that very
    /// moment the change is stored all the same, and the cache follows by itself later.
    async fn settle_client(&self, id: uuid::Uuid) {
        if let Err(e) = self.cache.refresh_clients(&[id]).await {
            tracing::warn!(error = %e, "a change is stored, but the cache can't be refreshed yet");
        }
    }

    /// As [`Api::settle_client`], for all else.
    async fn settle(&self) {
        if let Err(e) = self.cache.refresh().await {
            tracing::warn!(error = %e, "a change is stored, but the cache can't be refreshed yet");
        }
    }
}

impl Api {
    /// What was begun with an image is done or undone.
    fn settled(&self, image: uuid::Uuid) {
        if let Err(e) = self.pending.end(image) {
            tracing::warn!(error = %e, "the journal of images keeps an entry that is over");
        }
    }
}

type Shared = Arc<Api>;

/// One thing that is answered.
pub struct Route {
    /// The verb.
    pub method: &'static str,
    /// The path, parameters in braces.
    pub path: &'static str,
    /// Who may.
    pub access: Access,
    handler: MethodRouter<Shared>,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({:?})", self.method, self.path, self.access)
    }
}

fn route<H, T>(method: &'static str, path: &'static str, access: Access, handler: H) -> Route
where
    H: Handler<T, Shared>,
    T: 'static,
{
    let filter = match method {
        "GET" => MethodFilter::GET,
        "POST" => MethodFilter::POST,
        "PUT" => MethodFilter::PUT,
        "PATCH" => MethodFilter::PATCH,
        _ => MethodFilter::DELETE,
    };
    Route {
        method,
        path,
        access,
        handler: MethodRouter::new().on(filter, handler),
    }
}

/// Everything that is answered. A `GET` answers `HEAD` too.
#[must_use]
pub fn routes() -> Vec<Route> {
    use Access::{Admin, Public};
    vec![
        route("GET", "/healthz", Public, health::alive),
        route("GET", "/readyz", Public, health::ready),
        route("GET", "/metrics", Public, health::metrics),
        route("GET", "/api/v1/images", Admin, images::list),
        route("POST", "/api/v1/images", Admin, images::create),
        route("GET", "/api/v1/images/{image}", Admin, images::get),
        route("PUT", "/api/v1/images/{image}", Admin, images::replace),
        route("PATCH", "/api/v1/images/{image}", Admin, images::change),
        route("DELETE", "/api/v1/images/{image}", Admin, images::delete),
        route("PUT", "/api/v1/images/{image}/content", Admin, images::put),
        route(
            "GET",
            "/api/v1/images/{image}/content",
            Admin,
            images::content,
        ),
        route("POST", "/api/v1/images/{image}/clone", Admin, images::clone),
        route(
            "POST",
            "/api/v1/images/{image}/files",
            Admin,
            images::add_files,
        ),
        route(
            "DELETE",
            "/api/v1/images/{image}/files",
            Admin,
            images::drop_files,
        ),
        route("GET", "/api/v1/images/{image}/usage", Admin, images::usage),
        route(
            "GET",
            "/api/v1/images/{image}/check",
            Admin,
            images::last_check,
        ),
        route("POST", "/api/v1/images/{image}/check", Admin, images::check),
        route(
            "GET",
            "/api/v1/images/{image}/snapshots",
            Admin,
            images::versions,
        ),
        route(
            "POST",
            "/api/v1/images/{image}/snapshots",
            Admin,
            images::create_version,
        ),
        route(
            "DELETE",
            "/api/v1/images/{image}/snapshots/{snapshot}",
            Admin,
            images::delete_version,
        ),
        route(
            "POST",
            "/api/v1/images/{image}/snapshots/{snapshot}/release",
            Admin,
            images::release_version,
        ),
        route(
            "POST",
            "/api/v1/images/{image}/snapshots/{snapshot}/return",
            Admin,
            images::return_version,
        ),
        route(
            "GET",
            "/api/v1/images/{image}/snapshots/{snapshot}/diff",
            Admin,
            images::compare::diff,
        ),
        route(
            "GET",
            "/api/v1/images/{image}/clone-quota",
            Admin,
            clones::image_quota,
        ),
        route(
            "PUT",
            "/api/v1/images/{image}/clone-quota",
            Admin,
            clones::set_image_quota,
        ),
        route("GET", "/api/v1/clones", Admin, clones::list),
        route("GET", "/api/v1/servers", Admin, servers::list),
        route("DELETE", "/api/v1/servers/{server}", Admin, servers::forget),
        route("GET", "/api/v1/replicas", Admin, replicas::all),
        route(
            "GET",
            "/api/v1/images/{image}/replicas",
            Admin,
            replicas::list,
        ),
        route(
            "POST",
            "/api/v1/images/{image}/replicas",
            Admin,
            replicas::begin,
        ),
        route(
            "DELETE",
            "/api/v1/images/{image}/replicas/{server}",
            Admin,
            replicas::remove,
        ),
        route("GET", "/api/v1/uploads", Admin, images::uploads),
        route("GET", "/api/v1/uploads/{name}", Admin, images::upload),
        route(
            "DELETE",
            "/api/v1/uploads/{name}",
            Admin,
            images::upload_delete,
        ),
        route("GET", "/api/v1/imports", Admin, imports::list),
        route("POST", "/api/v1/imports", Admin, images::import),
        route("GET", "/api/v1/imports/{import}", Admin, imports::get),
        route("DELETE", "/api/v1/imports/{import}", Admin, imports::cancel),
        route("GET", "/api/v1/orphans", Admin, stock::get),
        route("DELETE", "/api/v1/orphans", Admin, stock::remove),
        route("GET", "/api/v1/doctor/storage", Admin, doctor::get),
        route(
            "POST",
            "/api/v1/doctor/storage/repair",
            Admin,
            doctor::repair,
        ),
        route("GET", "/api/v1/clients", Admin, clients::list),
        route("POST", "/api/v1/clients", Admin, clients::create),
        route("GET", "/api/v1/clients/{client}", Admin, clients::get),
        route("PUT", "/api/v1/clients/{client}", Admin, clients::replace),
        route("PATCH", "/api/v1/clients/{client}", Admin, clients::change),
        route("DELETE", "/api/v1/clients/{client}", Admin, clients::delete),
        route(
            "DELETE",
            "/api/v1/clients/{client}/disk",
            Admin,
            clients::reset_disk,
        ),
        route(
            "GET",
            "/api/v1/clients/{client}/disk/rebase",
            Admin,
            images::compare::rebase_plan,
        ),
        route(
            "POST",
            "/api/v1/clients/{client}/disk/rebase",
            Admin,
            images::compare::rebase,
        ),
        route(
            "GET",
            "/api/v1/clients/{client}/clone-quota",
            Admin,
            clones::client_quota,
        ),
        route(
            "PUT",
            "/api/v1/clients/{client}/clone-quota",
            Admin,
            clones::set_client_quota,
        ),
        route(
            "GET",
            "/api/v1/clients/{client}/maintenance",
            Admin,
            images::maintenance::get,
        ),
        route(
            "POST",
            "/api/v1/clients/{client}/maintenance",
            Admin,
            images::maintenance::begin,
        ),
        route(
            "DELETE",
            "/api/v1/clients/{client}/maintenance",
            Admin,
            images::maintenance::discard,
        ),
        route(
            "POST",
            "/api/v1/clients/{client}/maintenance/publish",
            Admin,
            images::maintenance::done,
        ),
        route("GET", "/api/v1/network-ranges", Admin, ranges::list),
        route("POST", "/api/v1/network-ranges", Admin, ranges::create),
        route("GET", "/api/v1/network-ranges/{range}", Admin, ranges::get),
        route(
            "PUT",
            "/api/v1/network-ranges/{range}",
            Admin,
            ranges::replace,
        ),
        route(
            "PATCH",
            "/api/v1/network-ranges/{range}",
            Admin,
            ranges::change,
        ),
        route(
            "DELETE",
            "/api/v1/network-ranges/{range}",
            Admin,
            ranges::delete,
        ),
        route("GET", "/api/v1/sessions", Admin, sessions::list),
        route("GET", "/api/v1/sessions/watch", Admin, sessions::watch),
        route("GET", "/api/v1/sessions/{session}", Admin, sessions::get),
    ]
}

/// The router over [`routes`].
fn router(api: &Shared) -> Router {
    let mut router = Router::new();
    for Route {
        method,
        path,
        access,
        handler,
    } in routes()
    {
        let gate = auth::Gate {
            api: api.clone(),
            method,
            path,
            access,
        };
        let guarded = handler.route_layer(axum::middleware::from_fn_with_state(gate, auth::guard));
        router = router.route(path, guarded);
    }
    router
        .fallback(auth::unknown_path)
        .method_not_allowed_fallback(auth::unknown_method)
        .layer(axum::extract::DefaultBodyLimit::max(extract::BODY_MAX))
        .layer(axum::middleware::from_fn_with_state(
            api.clone(),
            known::guard,
        ))
        .layer(axum::middleware::map_response(harmless))
        .with_state(api.clone())
}

/// Answers are for programs: no browser shall guess, run or keep them.
async fn harmless(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let fixed = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
