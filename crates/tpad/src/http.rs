//! The read-only HTTP pages, for people and Prometheus: asking has no effect on caches.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const INDEX: &str = "tpad\n\n\
    /livez    200 while the process answers\n\
    /readyz   200 when models are loaded and served; else 503 and what is missing\n\
    /metrics  counters, for Prometheus\n\
    /status   models, tiers and levels, JSON\n";

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Pages {
    /// `Err` says what is missing.
    pub(crate) ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// The status document.
    pub(crate) status: Arc<dyn Fn() -> serde_json::Result<String> + Send + Sync>,
    /// Everything that is counted.
    pub(crate) registry: Arc<Registry>,
}

impl Pages {
    /// GET and HEAD alone; anything else is 405.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/", get(INDEX))
            .route("/livez", get("ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/status", get(status))
            .fallback((StatusCode::NOT_FOUND, INDEX))
            .with_state(self)
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

async fn readyz(State(pages): State<Pages>) -> Response {
    match (pages.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(missing) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")).into_response()
        }
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &pages.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => failed(&error),
    }
}

async fn status(State(pages): State<Pages>) -> Response {
    match (pages.status)() {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn fmt::Display) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use http::Request;
    use http_body_util::BodyExt;
    use prometheus_client::metrics::counter::Counter;
    use tower::ServiceExt;

    use super::*;

    async fn ask(pages: &Pages, method: &str, path: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(axum::body::Body::empty()).expect("a request");
        let Ok(response) = pages.clone().router().oneshot(request).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (code, String::from_utf8(body.to_vec()).expect("text"))
    }

    fn pages(ready: Arc<AtomicBool>) -> Pages {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc_by(3);
        registry.register("tpad_things", "Things", counter);
        Pages {
            ready: Arc::new(move || {
                let ready = ready.load(Ordering::Relaxed);
                if ready { Ok(()) } else { Err("loading m".to_owned()) }
            }),
            status: Arc::new(|| Ok("{\"ready\":true}".to_owned())),
            registry: Arc::new(registry),
        }
    }

    #[tokio::test]
    async fn readiness_says_what_is_missing_and_liveness_does_not_care() {
        let ready = Arc::new(AtomicBool::new(false));
        let pages = pages(Arc::clone(&ready));
        assert_eq!(ask(&pages, "GET", "/readyz").await, (503, "not ready: loading m\n".to_owned()));
        assert_eq!(ask(&pages, "GET", "/livez").await.0, 200);
        ready.store(true, Ordering::Relaxed);
        assert_eq!(ask(&pages, "GET", "/readyz").await, (200, "ready\n".to_owned()));
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_and_status_is_the_document() {
        let pages = pages(Arc::default());
        let (code, text) = ask(&pages, "GET", "/metrics").await;
        assert_eq!(code, 200);
        assert!(text.contains("tpad_things_total 3") && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(ask(&pages, "GET", "/status").await, (200, "{\"ready\":true}".to_owned()));
    }

    #[tokio::test]
    async fn only_reading_is_possible() {
        let pages = pages(Arc::default());
        for path in ["/", "/livez", "/readyz", "/metrics", "/status"] {
            for method in ["POST", "PUT", "DELETE", "PATCH"] {
                assert_eq!(ask(&pages, method, path).await.0, 405, "{method} {path}");
            }
            let (_, body) = ask(&pages, "HEAD", path).await;
            assert_eq!(body, "", "HEAD {path}");
        }
        let (code, body) = ask(&pages, "GET", "/nothing").await;
        assert!(code == 404 && body.contains("/status"), "{code} {body}");
    }
}
