//! The service that is asked without a look through the routes.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// One of the routes' services, asked directly: finding it among the others, and the
/// bodies and futures that are boxed on the way, are a fifteenth of what a small fetch takes.
#[derive(Clone)]
pub struct Direct {
    name: &'static str,
    call: Arc<dyn Fn(Request<Body>) -> Answer + Send + Sync>,
}

impl Direct {
    /// Asks a clone of `service` for each call; it has to be ready always.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>,
        S: NamedService + Clone + Send + Sync + 'static,
    {
        let call = move |request| service.clone().call(request);
        Self { name: S::NAME, call: Arc::new(call) }
    }

    /// Whether `path` names a method of the service.
    pub(super) fn serves(&self, path: &str) -> bool {
        let service = path.strip_prefix('/').and_then(|path| path.strip_prefix(self.name));
        service.is_some_and(|method| method.starts_with('/'))
    }

    pub(super) async fn call(&self, request: Request<Body>) -> Response<Body> {
        let Ok(response) = (self.call)(request).await;
        response
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Direct").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use super::*;

    #[derive(Clone)]
    struct Experts;

    impl NamedService for Experts {
        const NAME: &'static str = "tpad.v1.ExpertService";
    }

    impl Service<Request<Body>> for Experts {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Answer;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Answer {
            Box::pin(async move { Ok(Response::new(request.into_body())) })
        }
    }

    #[test]
    fn it_serves_its_own_methods_and_no_others() {
        let direct = Direct::new(Experts);
        for (path, serves) in [
            ("/tpad.v1.ExpertService/FetchExperts", true),
            ("/tpad.v1.ExpertService/", true),
            ("/tpad.v1.ExpertService", false),
            ("/tpad.v1.ExpertServices/FetchExperts", false),
            ("//tpad.v1.ExpertService/FetchExperts", false),
            ("tpad.v1.ExpertService/FetchExperts", false),
            ("/tpad.v1.ModelService/GetStatus", false),
            ("/", false),
        ] {
            assert_eq!(direct.serves(path), serves, "{path}");
        }
    }
}
