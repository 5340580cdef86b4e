//! Requests to answers: the page, its stream of events, and the order to drain where that is allowed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic_etcd::{Address, Registry, RegistryError};

use super::guard::{Guard, Refusal};
use super::hub::Hub;
use super::wire;
use crate::failure::with_causes;
use crate::print::Output;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What the server serves.
pub(crate) struct Site {
    hub: Arc<Hub>,
    guard: Guard,
    registry: Registry,
    /// Whether the page may give orders.
    may_drain: bool,
    output: Output,
    questions: Semaphore,
}

impl Site {
    pub(crate) fn new(hub: Arc<Hub>, guard: Guard, registry: Registry, may_drain: bool, output: Output) -> Self {
        Self { hub, guard, registry, may_drain, output, questions: Semaphore::new(MAX_QUESTIONS) }
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>, end: CancellationToken) -> Response<Body> {
        let mut answer = match self.guard.check(&request) {
            _ if head_of(&request) > MAX_HEAD => {
                text(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head of this request is too large")
            }
            Ok(()) => self.route(request, end).await,
            Err(refusal) => refused(refusal),
        };
        for (name, value) in HEADERS {
            answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        answer
    }

    async fn route(&self, request: Request<Incoming>, end: CancellationToken) -> Response<Body> {
        let path = request.uri().path();
        if path == "/drain" {
            return match *request.method() {
                Method::POST => self.drain(request).await,
                _ => not_allowed("POST"),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return not_allowed("GET, HEAD");
        }
        if path == "/events" {
            return self.events(end);
        }
        if let Some(lease) = path.strip_prefix("/lease/") {
            return self.lease(lease).await;
        }
        match ASSETS.iter().find(|asset| asset.0 == path) {
            Some((_, kind, text)) => answer(StatusCode::OK, kind, *text),
            None => text(StatusCode::NOT_FOUND, "there is nothing of that name"),
        }
    }

    fn events(&self, end: CancellationToken) -> Response<Body> {
        match self.hub.open(end) {
            Some(events) => {
                let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(events)));
                let headers = answer.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
                // Proxies such as nginx would hold events back.
                headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
                answer
            }
            None => unavailable("too many pages are open"),
        }
    }

    /// How long a lease lives: of an instance that is shown, since others are not this page's business.
    async fn lease(&self, lease: &str) -> Response<Body> {
        let lease = i64::from_str_radix(lease, 16).ok().filter(|lease| self.hub.board().has_lease(*lease));
        // No error to a browser, which would log one for each instance that leaves while it is looked at.
        let unknown = || answer(StatusCode::OK, JSON, json!({ "granted": null, "remaining": null }).to_string());
        let Some(lease) = lease else { return unknown() };
        let Ok(_place) = self.questions.try_acquire() else {
            return unavailable("etcd is asked too much at once");
        };
        match self.registry.lease(lease).await {
            Ok(Some(lease)) => {
                let (granted, remaining) = (lease.granted().as_secs(), lease.remaining().as_secs());
                answer(StatusCode::OK, JSON, json!({ "granted": granted, "remaining": remaining }).to_string())
            }
            Ok(None) => unknown(),
            Err(error) => text(status_of(&error), with_causes(&error)),
        }
    }

    async fn drain(&self, request: Request<Incoming>) -> Response<Body> {
        if !self.may_drain {
            return text(StatusCode::FORBIDDEN, "this page only looks: --allow-drain lets it give orders");
        }
        if let Err(refusal) = self.guard.check_order(&request) {
            return refused(refusal);
        }
        let order = match read_order(request).await {
            Ok(order) => order,
            Err(refusal) => return refusal,
        };
        let known = self.hub.board().instance(&order.service, &order.address).map(|it| (it.lease(), wire::lease(it)));
        let Some((lease, shown)) = known else {
            return text(StatusCode::NOT_FOUND, "the page shows no such instance");
        };
        if shown != order.lease {
            return text(StatusCode::CONFLICT, "another server has that address by now");
        }
        // What is shown may be old: etcd compares the lease once more.
        match self.registry.drain_leased(&order.service, order.address.clone(), lease).await {
            Ok(()) => {
                // Standard output may be closed; the order was obeyed all the same.
                let _ = self.output.drained(&order.service, &order.address, "marked");
                answer(StatusCode::OK, JSON, json!({ "marked": true }).to_string())
            }
            Err(error) => text(status_of(&error), with_causes(&error)),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    service: String,
    address: Address,
    /// Of the instance that is meant.
    lease: String,
}

async fn read_order(request: Request<Incoming>) -> Result<Order, Response<Body>> {
    let body = Limited::new(request.into_body(), MAX_ORDER).collect();
    match timeout(ORDER_LIMIT, body).await {
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the order did not come in time")),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(text(StatusCode::PAYLOAD_TOO_LARGE, "the order is too large"))
        }
        Ok(Err(_)) => Err(text(StatusCode::BAD_REQUEST, "the order ended early")),
        Ok(Ok(body)) => serde_json::from_slice(&body.to_bytes())
            .map_err(|error| text(StatusCode::BAD_REQUEST, format!("that is no order: {error}"))),
    }
}

fn status_of(error: &RegistryError) -> StatusCode {
    match error {
        RegistryError::Config(_) => StatusCode::BAD_REQUEST,
        RegistryError::UnknownAddress { .. } => StatusCode::NOT_FOUND,
        RegistryError::NoDrainingMark { .. } | RegistryError::Contended { .. } => StatusCode::CONFLICT,
        _ => StatusCode::BAD_GATEWAY,
    }
}

/// About how many bytes the head of a request has.
fn head_of<B>(request: &Request<B>) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    request.uri().path().len() + fields.sum::<usize>()
}

fn refused(refusal: Refusal) -> Response<Body> {
    match refusal {
        Refusal::NoHost => text(StatusCode::BAD_REQUEST, "a request needs one Host header"),
        Refusal::ForeignHost => {
            text(StatusCode::FORBIDDEN, "the Host header names another server: --allow-host lets a name be this one's")
        }
        Refusal::ForeignSite => text(StatusCode::FORBIDDEN, "only pages of this server may ask for this"),
        Refusal::NoToken => text(
            StatusCode::FORBIDDEN,
            "the token is missing or of another run: open the address that the program printed",
        ),
        Refusal::NotJson => text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "an order is JSON"),
    }
}

fn not_allowed(allowed: &'static str) -> Response<Body> {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "the method is not allowed here");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn unavailable(reason: &'static str) -> Response<Body> {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, reason);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    answer
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", text)
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";
const JSON: &str = "application/json";

/// All files of the page: path, kind and text.
const ASSETS: [(&str, &str, &str); 10] = [
    ("/", HTML, include_str!("page/index.html")),
    ("/style.css", STYLE, include_str!("page/style.css")),
    ("/icon.svg", IMAGE, include_str!("page/icon.svg")),
    ("/main.js", SCRIPT, include_str!("page/main.js")),
    ("/stream.js", SCRIPT, include_str!("page/stream.js")),
    ("/model.js", SCRIPT, include_str!("page/model.js")),
    ("/table.js", SCRIPT, include_str!("page/table.js")),
    ("/timeline.js", SCRIPT, include_str!("page/timeline.js")),
    ("/details.js", SCRIPT, include_str!("page/details.js")),
    ("/dom.js", SCRIPT, include_str!("page/dom.js")),
];

/// Of every answer. The page loads nothing but its own files, cannot be framed, and takes no text for HTML or script.
const HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// For the head of a request: browsers send a tenth of it.
const MAX_HEAD: usize = 16 << 10;
/// An order is a service, an address and a lease.
const MAX_ORDER: usize = 4 << 10;
/// Questions of pages that etcd is asked at once.
const MAX_QUESTIONS: usize = 8;
const ORDER_LIMIT: Duration = Duration::from_secs(5);
