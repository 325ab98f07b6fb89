//! [`WholeBodies`]: lets methods of a generated server read and write bodies themselves.
//!
//! A generated server makes a stream of its own of a request's body before its method hears of
//! it. This service takes the body out first and hands it along beside the request; a method's
//! own body goes back the same way.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http;
use tonic::codegen::tokio_stream::Stream;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

/// A body that somebody may take.
#[derive(Clone)]
struct Held(Arc<Mutex<Option<Body>>>);

impl Held {
    fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The messages of a method that answers with a body of its own: none.
#[derive(Debug)]
pub struct NoMessages<M>(std::marker::PhantomData<fn() -> M>);

impl<M> Stream for NoMessages<M> {
    type Item = Result<M, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}

/// Answers with `body`, in a service within [`WholeBodies`].
#[must_use]
pub fn respond<M>(body: Body) -> Response<NoMessages<M>> {
    let mut response = Response::new(NoMessages(std::marker::PhantomData));
    response.extensions_mut().insert(Held::new(body));
    response
}

/// The body of a request that came through [`WholeBodies`].
pub trait RequestBody {
    /// Takes it.
    ///
    /// # Errors
    /// It did not come through [`WholeBodies`], or was taken before.
    fn take_body(&mut self) -> Result<Body, Status>;
}

impl<T> RequestBody for Request<T> {
    fn take_body(&mut self) -> Result<Body, Status> {
        let held = self.extensions_mut().remove::<Held>();
        held.and_then(|held| held.take())
            .ok_or_else(|| Status::internal("the request's body is not there"))
    }
}

/// Around a generated server: keeps the bodies of the streams at `paths` whole.
#[derive(Debug, Clone)]
pub struct WholeBodies<S> {
    inner: S,
    paths: &'static [&'static str],
}

impl<S> WholeBodies<S> {
    /// `paths` are those of the methods that take their request's body and answer with one.
    pub fn new(inner: S, paths: &'static [&'static str]) -> Self {
        Self { inner, paths }
    }
}

impl<S: NamedService> NamedService for WholeBodies<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for WholeBodies<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future =
        Pin<Box<dyn Future<Output = Result<http::Response<Body>, S::Error>> + Send + 'static>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !self.paths.contains(&request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(Held::new(body));
        let answered = self.inner.call(http::Request::from_parts(parts, Body::empty()));
        Box::pin(async move {
            let mut response = answered.await?;
            // A method that failed has none.
            if let Some(body) = response.extensions_mut().remove::<Held>().and_then(|it| it.take())
            {
                *response.body_mut() = body;
            }
            Ok(response)
        })
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Held")
    }
}
