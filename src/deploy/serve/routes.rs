//! What the server answers to which request.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;
use serde_json::json;
use url::form_urlencoded;

use super::queue::{Failed, Picture, Reply};
use super::refusal::Refusal;
use super::{Server, multipart, protocol};
use crate::deploy::predict::{Answer, Asked, Prediction, Row};

/// How long an image may wait for its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Length of the JSON before binary tensors.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
/// Metrics in Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The page needs its own style and script, pictures that it was given, and this server; nothing else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// An answer.
pub(super) type Answered = Response<Full<Bytes>>;

/// Requests that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Page,
    Predict,
    Metrics,
    Live,
    Ready,
    Server,
    Model,
    ModelReady,
    Infer,
    Unknown,
}

impl Route {
    fn of(path: &str, model: &str) -> Self {
        match path {
            "/" => return Self::Page,
            "/predict" => return Self::Predict,
            "/metrics" => return Self::Metrics,
            "/v2" | "/v2/" => return Self::Server,
            "/v2/health/live" => return Self::Live,
            "/v2/health/ready" => return Self::Ready,
            _ => {}
        }
        let Some(rest) = path.strip_prefix("/v2/models/") else { return Self::Unknown };
        let mut parts = rest.split('/');
        let name = parts.next().unwrap_or_default();
        // A name in a path is written in percent code.
        let named = form_urlencoded::parse(format!("n={}", name.replace('+', "%2B")).as_bytes()).any(|(_, value)| value == model);
        let mut rest: Vec<&str> = parts.collect();
        if rest.first() == Some(&"versions") && rest.get(1) == Some(&protocol::VERSION) {
            rest.drain(..2);
        }
        match rest.as_slice() {
            _ if !named => Self::Unknown,
            [] => Self::Model,
            ["ready"] => Self::ModelReady,
            ["infer"] => Self::Infer,
            _ => Self::Unknown,
        }
    }

    /// As metrics name it.
    fn name(self) -> &'static str {
        match self {
            Self::Page => "/",
            Self::Predict => "/predict",
            Self::Metrics => "/metrics",
            Self::Live => "/v2/health/live",
            Self::Ready => "/v2/health/ready",
            Self::Server => "/v2",
            Self::Model => "/v2/models/{name}",
            Self::ModelReady => "/v2/models/{name}/ready",
            Self::Infer => "/v2/models/{name}/infer",
            Self::Unknown => "other",
        }
    }
}

/// Answers a request; whatever is wrong with it is an answer too.
pub(super) async fn answer(server: &Server, request: Request<Incoming>) -> Answered {
    let started = Instant::now();
    let route = Route::of(request.uri().path(), server.classifier.name());
    let answered = match routed(server, route, request, started).await {
        Ok(answered) => answered,
        Err(refusal) => refused(refusal),
    };
    server.metrics.request(route.name(), answered.status().as_u16(), started.elapsed());
    answered
}

async fn routed(server: &Server, route: Route, request: Request<Incoming>, started: Instant) -> Result<Answered, Refusal> {
    let post = matches!(route, Route::Predict | Route::Infer);
    match (post, request.method()) {
        _ if route == Route::Unknown => {}
        (true, &Method::POST) | (false, &Method::GET | &Method::HEAD) => {}
        (true, _) => return Err(Refusal::method("POST")),
        (false, _) => return Err(Refusal::method("GET")),
    }
    let ready = server.is_ready();
    let state = |name: &str, is: bool| {
        let status = if is { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Ok(with_status(status, as_json(&json!({ name: is }))))
    };
    match route {
        Route::Page => Ok(page(server)),
        Route::Predict => predict(server, request, started).await,
        Route::Infer => infer(server, request).await,
        Route::Metrics => Ok(text(PROMETHEUS, server.metrics.text(server.classifier.name(), server.queue.len()))),
        Route::Live => state("live", true),
        Route::Ready | Route::ModelReady => state("ready", ready),
        Route::Server => Ok(as_json(&protocol::server())),
        Route::Model => Ok(as_json(&protocol::model(&server.classifier))),
        Route::Unknown => {
            let path = request.uri().path();
            let name = server.classifier.name();
            let reason = format!("nothing is at {path}; see /, /predict, /metrics, /v2, /v2/models/{name}");
            Err(Refusal::new(StatusCode::NOT_FOUND, reason))
        }
    }
}

/// Images as they are, in a body or a form.
async fn predict(server: &Server, request: Request<Incoming>, started: Instant) -> Result<Answered, Refusal> {
    let asked = asked(request.uri().query().unwrap_or_default())?;
    let (head, body) = request.into_parts();
    let arriving = server.queue.arriving();
    let (body, _held) = server.memory.read(body, &head.headers, server.settings.max_body).await?;
    let boundary = header(&head.headers, &CONTENT_TYPE).and_then(multipart::boundary);
    let files = match boundary {
        Some(boundary) => multipart::files(&body, &boundary).map_err(Refusal::bad)?,
        None => vec![multipart::File { name: String::new(), content: body }],
    };
    if files.is_empty() {
        return Err(Refusal::bad("the form has no file"));
    }
    let (names, pictures): (Vec<_>, Vec<_>) = files.into_iter().map(|file| (file.name, Picture::Encoded(file.content))).unzip();
    let replies = replies(server, arriving, pictures).await?;
    let mut predictions = Vec::with_capacity(names.len());
    for (id, reply) in names.into_iter().zip(replies) {
        let answer = match reply {
            Ok(row) => Answer::of(&row, asked),
            Err(Failed::Image(reason)) => Err(reason),
            Err(Failed::Model(reason)) => return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, reason)),
        };
        predictions.push(Prediction { id, answer });
    }
    let failed = predictions.iter().find_map(|prediction| prediction.answer.as_ref().err());
    let rows: Vec<Row<'_>> = predictions.iter().map(|prediction| Row::of(prediction, server.classifier.classes())).collect();
    let none = predictions.iter().all(|prediction| prediction.answer.is_err());
    let answer = Predicted {
        model: server.classifier.name(),
        seconds: started.elapsed().as_secs_f64(),
        predictions: rows,
        error: failed.map(String::as_str).filter(|_| none),
    };
    let status = if none { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    Ok(with_status(status, as_json(&answer)))
}

/// The answer to images.
#[derive(Serialize)]
struct Predicted<'a> {
    model: &'a str,
    seconds: f64,
    predictions: Vec<Row<'a>>,
    /// Why none of them could be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// What a query asks for.
fn asked(query: &str) -> Result<Asked, Refusal> {
    const USUAL: usize = 5;
    let mut asked = Asked { top: USUAL, threshold: 0.0 };
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match key.as_ref() {
            "top_k" => {
                let top = value.parse().ok().filter(|&top| top >= 1);
                asked.top = top.ok_or_else(|| Refusal::bad(format!("top_k={value} is no number of classes")))?;
            }
            "threshold" => {
                let threshold = value.parse().ok().filter(|value| (0.0..=1.0).contains(value));
                asked.threshold = threshold.ok_or_else(|| Refusal::bad(format!("threshold={value} is no number from 0 to 1")))?;
            }
            other => return Err(Refusal::bad(format!("{other:?} is not known here; use top_k or threshold"))),
        }
    }
    Ok(asked)
}

/// Tensors.
async fn infer(server: &Server, request: Request<Incoming>) -> Result<Answered, Refusal> {
    let (head, body) = request.into_parts();
    let arriving = server.queue.arriving();
    let (body, _held) = server.memory.read(body, &head.headers, server.settings.max_body).await?;
    let length = head.headers.get(&HEADER_LENGTH).map(|value| value.to_str().ok().and_then(|text| text.parse().ok()));
    let length = match length {
        Some(None) => return Err(Refusal::bad("Inference-Header-Content-Length is no length")),
        Some(length) => length,
        None => None,
    };
    let inference = protocol::read(&body, length, &server.classifier, server.settings.max_pixels);
    let mut inference = inference.map_err(Refusal::bad)?;
    let replies = replies(server, arriving, std::mem::take(&mut inference.pictures)).await?;
    let mut rows = Vec::with_capacity(replies.len());
    for (number, reply) in replies.into_iter().enumerate() {
        rows.push(match reply {
            Ok(row) => row,
            Err(Failed::Image(reason)) => {
                return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("image {number}: {reason}")));
            }
            Err(Failed::Model(reason)) => return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, reason)),
        });
    }
    let answer = inference.answer(&rows, &server.classifier);
    let answer = answer.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(match answer.header {
        None => body_of("application/json", answer.body),
        Some(length) => {
            let mut answered = body_of("application/octet-stream", answer.body);
            answered.headers_mut().insert(HEADER_LENGTH, length.into());
            answered
        }
    })
}

/// Waits for the network.
async fn replies(server: &Server, arriving: super::queue::Arriving<'_>, pictures: Vec<Picture>) -> Result<Vec<Reply>, Refusal> {
    if pictures.len() > server.queue.capacity() {
        let text = format!("{} images, above the limit of {} in a request", pictures.len(), server.queue.capacity());
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let submitted = server.queue.submit(pictures);
    drop(arriving);
    let waiting = submitted.map_err(|_| {
        server.metrics.full();
        Refusal::busy()
    })?;
    let all = async {
        let mut replies = Vec::with_capacity(waiting.len());
        for reply in waiting {
            replies.push(reply.await.unwrap_or_else(|_| Err(Failed::Model("the server is stopping".to_owned()))));
        }
        replies
    };
    let late =
        |_| Refusal { retry_after: Some(1), ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no answer within 30 seconds") };
    tokio::time::timeout(PATIENCE, all).await.map_err(late)
}

fn page(server: &Server) -> Answered {
    let mut answered = text("text/html; charset=utf-8", server.page.clone());
    answered.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    answered
}

fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn refused(refusal: Refusal) -> Answered {
    let Refusal { status, reason, retry_after, allow } = refusal;
    let mut answered = with_status(status, as_json(&json!({ "error": reason })));
    if let Some(seconds) = retry_after {
        answered.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if let Some(method) = allow {
        answered.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    }
    answered
}

fn with_status(status: StatusCode, mut answered: Answered) -> Answered {
    *answered.status_mut() = status;
    answered
}

fn as_json(value: &impl Serialize) -> Answered {
    // A value that was built here can be written.
    body_of("application/json", serde_json::to_vec(value).unwrap_or_default())
}

fn text(kind: &'static str, text: String) -> Answered {
    body_of(kind, text.into_bytes())
}

fn body_of(kind: &'static str, body: Vec<u8>) -> Answered {
    let mut answered = Response::new(Full::new(Bytes::from(body)));
    let headers = answered.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        let route = |path: &str| Route::of(path, "my model");
        assert_eq!(route("/v2/models/my%20model"), Route::Model);
        assert_eq!(route("/v2/models/my%20model/versions/1/infer"), Route::Infer);
        assert_eq!(route("/v2/models/my%20model/ready"), Route::ModelReady);
        for unknown in ["/v2/models/other", "/v2/models/my%20model/versions/2", "/v2/models/my%20model/x", "/x", "//"] {
            assert_eq!(route(unknown), Route::Unknown, "{unknown}");
        }
    }

    #[test]
    fn queries_are_checked() {
        let found = asked("top_k=3&threshold=0.5").unwrap();
        assert_eq!((found.top, found.threshold), (3, 0.5));
        for wrong in ["top_k=0", "top_k=x", "threshold=2", "threshold=nan", "topk=3"] {
            assert_eq!(asked(wrong).unwrap_err().status, StatusCode::BAD_REQUEST, "{wrong}");
        }
    }
}
