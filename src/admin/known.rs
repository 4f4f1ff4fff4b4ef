//! Reading without the database: clients, images and ranges as they were known last.
//!
//! In the same order and form as from the catalog. What changes something never comes here.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;

use super::Shared;
use super::error::ApiError;
use crate::catalog::Page;
use crate::model::{Client, Image, NetworkRange};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// RFC 9111 dropped the header's registration, not its meaning; people who look see it.
const STALE: HeaderValue =
    HeaderValue::from_static("110 dls \"the database is away: as it was known last\"");

/// While the database is away: what would change something is refused at once, and what was read
/// is marked. What is read as it goes away is not waited for.
pub(super) async fn guard(
    State(api): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let away = api.catalog.is_away();
    if request.method() != Method::GET && request.method() != Method::HEAD {
        if away {
            return Err(ApiError::Unavailable);
        }
        return Ok(next.run(request).await);
    }
    if !away {
        return Ok(api.catalog.unless_away(next.run(request)).await?);
    }
    let mut response = next.run(request).await;
    if response.status().is_success() && response.headers().get(header::CONTENT_TYPE) == Some(&JSON)
    {
        response.headers_mut().insert(header::WARNING, STALE);
    }
    Ok(response)
}

/// That part of a list.
pub(super) fn cut<T>(list: impl IntoIterator<Item = T>, page: Page) -> Vec<T> {
    let number = |n: Option<i64>| n.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    list.into_iter()
        .skip(number(page.offset).unwrap_or(0))
        .take(number(page.limit).unwrap_or(usize::MAX))
        .collect()
}

/// Clients by host name.
pub(super) fn clients(api: &Shared, enabled_only: bool, page: Page) -> Vec<Client> {
    let snapshot = api.cache.get();
    let wanted = |c: &&std::sync::Arc<Client>| c.enabled || !enabled_only;
    let mut all: Vec<_> = snapshot.clients().filter(wanted).cloned().collect();
    all.sort_by(|a, b| (&a.hostname, a.id).cmp(&(&b.hostname, b.id)));
    cut(all, page).iter().map(|c| (**c).clone()).collect()
}

/// Images by name.
pub(super) fn images(api: &Shared) -> Vec<Image> {
    let snapshot = api.cache.get();
    let mut all: Vec<Image> = snapshot.images().map(|i| (**i).clone()).collect();
    all.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    all
}

/// Ranges by network.
pub(super) fn ranges(api: &Shared) -> Vec<NetworkRange> {
    let snapshot = api.cache.get();
    snapshot.ranges().iter().map(|r| (**r).clone()).collect()
}
