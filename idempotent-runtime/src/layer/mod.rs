//! The same engine as a tower layer: for routes that cannot be annotated, and for whole routers.

mod cross_origin;
mod fallback;
#[cfg(any(feature = "operate", feature = "testing"))]
pub(crate) mod made;

use std::convert::identity;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Once};
use std::task::{Context, Poll};

use axum::BoxError;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::ACCEPT_ENCODING;
use http::request::Parts;
use tower_layer::Layer;
use tower_service::Service;

use crate::idempotency_key::{IdempotencyKey, key_in};
use crate::layer::cross_origin::CrossOriginWarning;
use crate::layer::fallback::is_of_fallback;
use crate::observe::begin_series_of_scope;
use crate::policy::Policy;
use crate::policy::handle::PolicyHandle;
use crate::registry::OfRequest;
use crate::registry::Registry;
use crate::request::claim_input::ask;
use crate::request::context::Execution;
use crate::request::expansion::OpenGate;
use crate::request::identify::Gate;
use crate::request::input::{InputKey, RequestInput};
use crate::request::request_body::BodyLimit;
use crate::request::response_mark::{failed, is_of_another_guard, not_called, without_foreign_headers, without_mark};
use crate::sync::{Mutex, lock};

/// Guards every service beneath it with one policy: it claims, records and replays as `#[idempotent]` does for one
/// handler.
///
/// An annotated handler beneath a layer keeps its own policy, because that policy is written and reviewed together with
/// the handler. The policy can name the caller, another key, or the content that a retry must repeat. If the handler's
/// own guard takes a request, the layer meanwhile keeps duplicates out, and records nothing. Nothing is recorded twice,
/// and no layer of another scope weakens the policy of a handler.
///
/// # Scopes
///
/// Give layers and handlers different scopes. [`Registry::install`] compares the scopes of handlers, not those of
/// layers.
///
/// If several guards around a request have the same scope, caller and key, only the outermost one claims, whatever
/// guards are in between. The inner guards run under its claim, policy and store, and each retry gets its record. One
/// claim allows one execution. If something between two such guards sends the request on twice, for instance a
/// middleware that retries or hedges, the handler does not run a second time: the second request gets 409 `in_flight`,
/// and a WARN is logged. If the outer guard receives that 409, the guard does not record it, and the claim ends as
/// after a crash, by `after_crash`. So put such a middleware around the outermost guard.
///
/// A handler that takes a `Tx` cannot record under the claim of another guard: the request gets 500
/// `transaction_failed`, and the handler does not run.
///
/// [`Idempotency`](crate::Idempotency) describes the claim under which a handler runs, and records its steps under that
/// claim: the claim of the handler's own key, or else the claim of the nearest layer around it.
///
/// # Differences from an annotated handler
///
/// - The layer claims the key before anything beneath it sees the request, including authentication. So put the layer
///   beneath the authentication, and name the [`caller`](Self::caller). Without a caller, another user's key is
///   rejected if the users have different [credentials](crate::RegistryBuilder::credential_headers).
/// - Responses of extractors, fallbacks and layers beneath the layer are recorded like those of handlers.
/// - The body of a keyed request is read into memory before it is passed on, up to
///   [`max_request_body`](Self::max_request_body); a longer body gets 413. The limits beneath the layer apply
///   afterwards, as to a request without a key. With [`without_fingerprint`](crate::PolicyBuilder::without_fingerprint)
///   the body is not read.
/// - A keyed request has no `Accept-Encoding` beneath the layer, so that no record is compressed for one client. A
///   compression around the layer compresses replays too.
/// - A response with `Access-Control-*` is recorded without these headers, because a retry may come from another
///   origin: put CORS around the layer, or name the headers in [`keep_headers`](crate::PolicyBuilder::keep_headers).
///   The first such response logs a WARN.
/// - The layer is always ready. It waits until the service beneath it is ready when it calls that service, so a replay,
///   a rejection and a duplicate that waits hold no permit of a concurrency limit beneath the layer. A request that
///   waits for such a permit holds its key. To reject requests under load, put the limit and the load shedding around
///   the layer. If the service fails to become ready, nothing has run, and the key is free.
/// - If the policy is [`required`](crate::PolicyBuilder::required), the order decides what a request without a key gets
///   if no route takes it: see the guide's page [`layer`](crate::guide::layer#required).
/// - A layer *beneath* it, such as a timeout, may drop the service's future. This ends the handler in the middle of its
///   work, and the response of that layer counts as the handler's. Put such layers around the `IdempotencyLayer`: then
///   they cannot stop the service. A handler with its own guard beneath the layer continues; if that guard has the same
///   scope, the claim lasts until that handler ends. If a response that the handler's policy records does not reach the
///   layer, and the layer records no other response, the claim ends as after a crash.
/// - A middleware or a forwarding handler between the layer and a handler's own guard runs for each attempt. If this
///   code returns the response as it is, the handler's guard records the response. If this code makes a response
///   itself, or returns the response to a request with another key, the layer records that response. The layer records
///   no rejection of a guard beneath it, whatever the key, unless the middleware makes a new response from the
///   rejection.
/// - If the service answers with an error, which axum's services never do, the claim ends like the claim of a handler
///   that panics.
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::post};
/// use idempotent_runtime::{IdempotencyLayer, Policy, Registry, store::MemoryStore};
///
/// let policy = Policy::builder("api").cache((200..=299).chain([402, 409])).build()?;
/// let layer = IdempotencyLayer::new(policy).with_registry(Registry::new(MemoryStore::new()));
/// let app: Router = Router::new().route("/charges", post(async || "charged")).layer(layer);
/// # Ok::<(), idempotent_runtime::InvalidPolicy>(())
/// ```
#[derive(Clone)]
pub struct IdempotencyLayer {
    policy: Arc<Policy>,
    registry: Option<Registry>,
    caller: Option<Arc<OfRequest>>,
    key: Option<Arc<OfRequest>>,
    max_request_body: Option<usize>,
    cross_origin: Arc<CrossOriginWarning>,
    series: Arc<Once>,
}

impl fmt::Debug for IdempotencyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("policy", &self.policy)
            .field("registry", &self.registry)
            .field("caller", &self.caller.is_some())
            .field("key", &self.key.is_some())
            .field("max_request_body", &self.max_request_body)
            .finish_non_exhaustive()
    }
}

impl IdempotencyLayer {
    /// Creates a layer with this policy. The layer uses the registry of a [`Registry::layer`] around it, or the
    /// installed one.
    pub fn new(policy: Policy) -> Self {
        let policy = Arc::new(policy);
        #[cfg(any(feature = "operate", feature = "testing"))]
        made::add(&policy);
        Self {
            policy,
            registry: None,
            caller: None,
            key: None,
            max_request_body: None,
            cross_origin: Arc::default(),
            series: Arc::new(Once::new()),
        }
    }

    /// Uses this registry, even if there is another registry around the layer or an installed one.
    #[must_use]
    pub fn with_registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Sets the function that names the caller of each request from its head, instead of the registry's function, with
    /// the rules of [`RegistryBuilder::caller`](crate::RegistryBuilder::caller). If the function returns `None`, the
    /// registry's function is called.
    ///
    /// # Examples
    ///
    /// ```
    /// use axum::http::request::Parts;
    /// use idempotent_runtime::{IdempotencyLayer, Policy};
    ///
    /// #[derive(Clone)]
    /// struct Tenant(String);
    ///
    /// fn tenant(parts: &Parts) -> Option<String> {
    ///     parts.extensions.get::<Tenant>().map(|tenant| tenant.0.clone())
    /// }
    ///
    /// let layer = IdempotencyLayer::new(Policy::builder("api").build()?).caller(tenant);
    /// # Ok::<(), idempotent_runtime::InvalidPolicy>(())
    /// ```
    #[must_use]
    pub fn caller(mut self, caller: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.caller = Some(Arc::new(caller));
        self
    }

    /// Sets the function that returns the key of each request from its head, instead of the policy's header. `None`
    /// means that the request has no key.
    ///
    /// # Examples
    ///
    /// ```
    /// use idempotent_runtime::{IdempotencyLayer, Policy};
    ///
    /// let layer = IdempotencyLayer::new(Policy::builder("deliveries").build()?)
    ///     .key(|parts| parts.uri.path().strip_prefix("/deliveries/").map(str::to_owned));
    /// # Ok::<(), idempotent_runtime::InvalidPolicy>(())
    /// ```
    #[must_use]
    pub fn key(mut self, key: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    /// Sets the largest body of a keyed request, in bytes. The body is read into memory before the key is claimed, and
    /// a request with a larger body gets 413.
    ///
    /// The default is axum's [`DefaultBodyLimit`](axum::extract::DefaultBodyLimit) if that limit is around the layer
    /// and is not axum's own 2 MiB; otherwise 64 MiB. The layer cannot see the limits of the routes beneath it. So set
    /// the largest of these limits here if it is larger than the default, or if all of them are smaller and you want to
    /// use less memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use axum::{Router, extract::DefaultBodyLimit, routing::post};
    /// use idempotent_runtime::{IdempotencyLayer, Policy};
    ///
    /// let layer = IdempotencyLayer::new(Policy::builder("uploads").build()?).max_request_body(256 << 20);
    /// let upload = post(async |body: String| body.len().to_string()).layer(DefaultBodyLimit::max(256 << 20));
    /// let app: Router = Router::new().route("/uploads", upload).layer(layer);
    /// # Ok::<(), idempotent_runtime::InvalidPolicy>(())
    /// ```
    #[must_use]
    pub fn max_request_body(mut self, bytes: usize) -> Self {
        self.max_request_body = Some(bytes);
        self
    }

    /// Returns the policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, inner: S) -> IdempotencyService<S> {
        // The recorder of metrics is installed by now.
        self.series.call_once(|| begin_series_of_scope(self.policy.scope()));
        IdempotencyService { layer: self.clone(), inner }
    }
}

/// A service under an [`IdempotencyLayer`].
#[derive(Clone, Debug)]
pub struct IdempotencyService<S> {
    layer: IdempotencyLayer,
    inner: S,
}

impl<S, B, R> Service<http::Request<B>> for IdempotencyService<S>
where
    S: Service<Request, Response = http::Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    /// Is always ready: most answers need no call of the service, and a waiting request must not hold a permit of the
    /// service.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(self.layer.clone().guard(self.inner.clone(), request.map(Body::new)))
    }
}

impl IdempotencyLayer {
    async fn guard<S, R>(self, mut inner: S, mut request: Request) -> Result<Response, S::Error>
    where
        S: Service<Request, Response = http::Response<R>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let needs_no_key = is_of_fallback::<S>(request.extensions());
        let gate = self.gate(&mut request).await.filter(|(gate, _)| !(needs_no_key && gate.is_rejected_without_key()));
        let Some((gate, execution)) = gate else {
            poll_fn(|cx| inner.poll_ready(cx)).await?;
            return inner.call(request).await.map(|response| without_foreign_headers(response.map(Body::new)));
        };
        // A response that is encoded for this client may be replayed to another client.
        request.headers_mut().remove(ACCEPT_ENCODING);
        let error = Arc::new(Mutex::new(None));
        let kept_error = Arc::clone(&error);
        let answering = async move {
            if let Err(error) = poll_fn(|cx| inner.poll_ready(cx)).await {
                *lock(&kept_error) = Some(error);
                return not_called();
            }
            execution.put_around(request.extensions_mut());
            match inner.call(request).await {
                Ok(response) => {
                    let response = response.map(Body::new);
                    let is_answered = is_of_another_guard(&response, &execution) && !execution.must_answer();
                    if is_answered {
                        return response;
                    }
                    self.cross_origin.warn_of(response.headers(), &self.policy);
                    without_mark(response)
                }
                Err(error) => {
                    *lock(&kept_error) = Some(error);
                    failed()
                }
            }
        };
        let response = OpenGate::of(gate).run(answering, identity).await;
        let error = lock(&error).take();
        error.map_or(Ok(response), Err)
    }

    /// Returns the gate of a request that has a key or needs one. Returns `None` if the request passes unguarded.
    async fn gate(&self, request: &mut Request) -> Option<(Gate, Arc<Execution>)> {
        let policy = &self.policy;
        if !policy.guards(request.method()) {
            return None;
        }
        let registry = self.registry.clone().or_else(|| Registry::serving(request.extensions()));
        let key = match self.key.as_deref() {
            Some(function) => InputKey::Computed(ask(request, function).map(|key| IdempotencyKey::new(&key))),
            None => InputKey::Header(key_in(&request.headers().get_all(policy.header()))),
        };
        let execution = Execution::beneath(request.extensions());
        let input =
            RequestInput::of_layer(request, Arc::clone(&execution), registry, key, self.caller.as_deref(), policy);
        let mut gate = Gate::new(PolicyHandle::Layer(Arc::clone(policy)), Some(input));
        if !gate.has_key_or_rejection() {
            return None;
        }
        if let Some(reading) = gate.begin_to_read() {
            let limit = self.max_request_body.map_or(BodyLimit::AroundLayer, |limit| BodyLimit::Bytes(limit as u64));
            gate.set_claim_input(reading.read(request, limit).await);
        }
        Some((gate, execution))
    }
}
