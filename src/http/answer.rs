//! One request -> one response. Never a path, a token or a URL in a log line.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::body::{Answer, FileBody};
use super::ledger::Ledger;
use super::link::Fate;
use super::metrics::{HttpMetrics, ItemLabel, Outcome};
use super::standin::Errands;
use crate::boot::files::{Content, Files, NoFile, Visitor};
use crate::boot::path::{BootPath, Item};
use crate::boot::session::{BootFile, Door};
use crate::model::part::{Part, if_range_holds, none_match_hits, part};

/// A phone-home body may be this long, bytes.
const LONGEST_REPORT: usize = 1024;

/// What every request of a connection shares.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) files: Files,
    pub(super) ledger: Ledger,
    pub(super) metrics: HttpMetrics,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) fate: Fate,
    pub(super) errands: Errands,
    /// How long a request's body may take.
    pub(super) body_timeout: Duration,
}

/// A refusal on its way to the client.
struct Refusal(StatusCode, Outcome, &'static str);

impl Desk {
    /// Answers a request; the connection goes on afterwards.
    pub(super) async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Infallible> {
        let client = self.client.ip().to_canonical();
        let path = BootPath::parse_http(request.uri().path());
        let item = path.as_ref().map_or(ItemLabel::None, label);
        let (outcome, response) = match self.judge(path, request).await {
            Ok((outcome, response)) => (outcome, response),
            Err(Refusal(status, outcome, text)) => (outcome, plain(status, text)),
        };
        self.metrics.answered(item, outcome);
        tracing::debug!(
            client.ip = %client,
            item = item.as_str(),
            outcome = outcome.as_str(),
            status = response.status().as_u16(),
            "answered a request"
        );
        Ok(response)
    }

    async fn judge(
        &self,
        path: Result<BootPath, crate::boot::path::BadPath>,
        request: Request<Incoming>,
    ) -> Result<(Outcome, Response<Answer>), Refusal> {
        // An absolute-form target names the host once more (RFC 9112 section 3.2.2): a request
        // that was meant for another one is no business of ours.
        if let Some(host) = request.uri().host()
            && host.parse::<IpAddr>().ok() != Some(self.server.ip().to_canonical())
        {
            return Err(Refusal(
                StatusCode::MISDIRECTED_REQUEST,
                Outcome::OtherHost,
                "this is another host\n",
            ));
        }
        let path =
            path.map_err(|e| Refusal(StatusCode::NOT_FOUND, Outcome::BadPath(e), NO_FILE))?;
        let is_report = label(&path) == ItemLabel::Report;
        let allowed = if is_report { "GET, POST" } else { "GET, HEAD" };
        let fits = match *request.method() {
            Method::GET => true,
            Method::HEAD => !is_report,
            Method::POST => is_report,
            _ => false,
        };
        if !fits {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "not by this method\n");
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static(allowed));
            return Ok((Outcome::BadMethod, response));
        }
        let visitor = self.visitor()?;
        let (head, body) = request.into_parts();
        let content = if head.method == Method::HEAD {
            self.files.peek(&path, visitor).await
        } else {
            let report = if head.method == Method::POST {
                Some(self.report(body).await?)
            } else {
                None
            };
            self.files.open(&path, visitor, report.as_deref()).await
        };
        match content.map_err(refusal)? {
            Content::Noted => {
                let mut response = Response::new(Answer::Text(None));
                *response.status_mut() = StatusCode::NO_CONTENT;
                Ok((Outcome::Noted, response))
            }
            Content::Text { body, mime } => {
                let headers = [
                    (header::CONTENT_TYPE, value(mime)),
                    (header::CONTENT_LENGTH, HeaderValue::from(body.len())),
                    // A script is made for one request of one boot.
                    (header::CACHE_CONTROL, value("no-store")),
                ];
                let body = (head.method != Method::HEAD).then_some(body);
                let mut response = Response::new(Answer::Text(body));
                response.headers_mut().extend(headers);
                Ok((Outcome::Served, response))
            }
            file @ Content::File { .. } => Ok(self.file(file, &head.method, &head.headers)),
        }
    }

    fn file(
        &self,
        content: Content,
        method: &Method,
        asked: &HeaderMap,
    ) -> (Outcome, Response<Answer>) {
        let Content::File {
            file,
            size,
            etag,
            attempt,
            name,
        } = content
        else {
            return (Outcome::Noted, plain(StatusCode::NOT_FOUND, NO_FILE));
        };
        let quoted = value(&format!("\"{etag}\""));
        let mut response = Response::new(Answer::Text(None));
        let headers = response.headers_mut();
        headers.insert(header::ACCEPT_RANGES, value("bytes"));
        headers.insert(header::ETAG, quoted);
        if none_match_hits(text(asked, &header::IF_NONE_MATCH), &etag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return (Outcome::NotModified, response);
        }
        headers.insert(header::CONTENT_TYPE, value(mime(&name)));
        // A range is defined for GET only (RFC 9110 section 14.2).
        let wanted =
            if *method == Method::GET && if_range_holds(text(asked, &header::IF_RANGE), &etag) {
                part(text(asked, &header::RANGE), size)
            } else {
                Part::Whole
            };
        let (outcome, range) = match wanted {
            Part::Whole => (Outcome::Served, 0..size),
            Part::Some(range) => {
                let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                headers.insert(header::CONTENT_RANGE, value(&content_range));
                (Outcome::Partial, range)
            }
            Part::Beyond => {
                let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE, "not so long\n");
                let content_range = value(&format!("bytes */{size}"));
                response
                    .headers_mut()
                    .insert(header::CONTENT_RANGE, content_range);
                return (Outcome::RangeBeyond, response);
            }
        };
        headers.insert(
            header::CONTENT_LENGTH,
            HeaderValue::from(range.end - range.start),
        );
        if outcome == Outcome::Partial {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        if *method == Method::GET {
            let transfer = attempt.map(|boot| {
                self.ledger
                    .begin(boot, name, size, range.clone(), self.fate.clone())
            });
            let errands = self.errands.clone();
            let body = FileBody::new(file, range, errands, transfer, self.metrics.clone());
            *response.body_mut() = Answer::File(body);
        }
        (outcome, response)
    }

    fn visitor(&self) -> Result<Visitor, Refusal> {
        match (
            self.client.ip().to_canonical(),
            self.server.ip().to_canonical(),
        ) {
            (IpAddr::V4(client), IpAddr::V4(server)) => Ok(Visitor {
                client,
                server,
                door: Door::Http,
            }),
            _ => Err(Refusal(
                StatusCode::FORBIDDEN,
                Outcome::NotIpv4,
                "booting goes by IPv4\n",
            )),
        }
    }

    async fn report(&self, body: Incoming) -> Result<String, Refusal> {
        let bad = || {
            Refusal(
                StatusCode::PAYLOAD_TOO_LARGE,
                Outcome::BadBody,
                "a report has at most 1024 bytes, sent at once\n",
            )
        };
        let body = Limited::new(body, LONGEST_REPORT).collect();
        let body = tokio::time::timeout(self.body_timeout, body).await;
        let bytes = body.map_err(|_| bad())?.map_err(|_| bad())?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

const NO_FILE: &str = "no such file\n";

const fn label(path: &BootPath) -> ItemLabel {
    match path {
        BootPath::Loader(_) => ItemLabel::Loader,
        BootPath::Mine { item, .. } => match item {
            Item::Script => ItemLabel::Script,
            Item::Kernel => ItemLabel::Kernel,
            Item::Initrd(_) => ItemLabel::Initrd,
            Item::Report(_) => ItemLabel::Report,
        },
    }
}

fn refusal(why: NoFile) -> Refusal {
    let (status, text) = match why {
        NoFile::BadPath | NoFile::NoLoader | NoFile::NoSuchItem => (StatusCode::NOT_FOUND, NO_FILE),
        NoFile::BadToken | NoFile::NotBooting => (StatusCode::FORBIDDEN, "not yours\n"),
        NoFile::Over => (StatusCode::GONE, "this boot is over\n"),
        NoFile::Unreadable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the file can't be read on the server\n",
        ),
    };
    Refusal(status, Outcome::NoFile(why), text)
}

/// One line of text.
fn plain(status: StatusCode, line: &'static str) -> Response<Answer> {
    let mut response = Response::new(Answer::Text(Some(Bytes::from_static(line.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().extend([
        (header::CONTENT_TYPE, value("text/plain; charset=utf-8")),
        (header::CONTENT_LENGTH, HeaderValue::from(line.len())),
    ]);
    response
}

/// UEFI HTTP Boot goes by this type where a URL does not end in `.efi`.
fn mime(name: &BootFile) -> &'static str {
    match name {
        BootFile::Loader(name) if name.ends_with(".efi") => "application/efi",
        BootFile::Loader(_) | BootFile::Image(..) => "application/octet-stream",
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// Our own values are plain ASCII and never empty, which OVMF could not stand.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none"))
}
