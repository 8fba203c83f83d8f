//! The content of a request and its caller, which become its claim.

use std::mem;
use std::sync::Arc;

use axum::extract::Request;
use futures_util::future::OptionFuture;
use http::StatusCode;

use crate::caller_limit::{Caller, CallerLimit};
use crate::fingerprint::body::{BodyForm, digest_of_body, has_several_boundaries};
use crate::fingerprint::builder::{Credentials, PartDigest};
use crate::fingerprint::target::digest_of_target;
use crate::observe::traceparent::TraceParent;
use crate::policy::values::Reads;
use crate::registry::OfRequest;
use crate::registry::Registry;
use crate::rejection::problem::{RETRY_AFTER, Rejection};
use crate::request::request_body::{BodyLimit, Broken, buffer, is_small};
use crate::request::upload::Upload;

/// The content of the request and its caller. Empty if the header with the key is missing.
#[derive(Default)]
pub(crate) struct ClaimInput {
    /// The caller that the registry or the layer names.
    pub(crate) caller: Option<String>,
    /// The credentials, if no caller is named.
    pub(crate) credentials: Credentials,
    pub(crate) trace: Option<Box<TraceParent>>,
    /// The digest of the target, if it is part of the fingerprint.
    pub(crate) target: Option<PartDigest>,
    pub(crate) body: InputBody,
    /// The body that was not read, if there is one.
    pub(crate) upload: Option<Upload>,
}

#[derive(Default)]
pub(crate) enum InputBody {
    Read(PartDigest),
    #[default]
    NotRead,
    /// The body was not read, because other bodies of the caller hold all permits.
    NotPermitted,
    /// The body could not be read. Contains the response that axum's own body extractors would send.
    Broken(Broken),
}

/// The rejection of a request whose body was not read because of other bodies of its caller.
pub(crate) const BODY_NOT_PERMITTED: Rejection =
    Rejection::TooManyInFlight { retry_after: RETRY_AFTER, of_caller: true };

impl ClaimInput {
    /// Returns whether the body could not be read, so that nothing can be claimed.
    pub(super) fn has_broken_body(&self) -> bool {
        matches!(self.body, InputBody::Broken(_))
    }

    /// Reads the head of a request. `own` is a function that names the caller and is called before the registry's.
    pub(super) fn of_head(
        request: &mut Request,
        reads: Reads,
        registry: Option<&Registry>,
        own: Option<&OfRequest>,
        credentials: Credentials,
    ) -> Self {
        let functions = [own, registry.and_then(Registry::caller)];
        let caller = functions.into_iter().flatten().find_map(|function| ask(request, function));
        let target = match reads {
            Reads::Nothing => None,
            Reads::Target => Some(digest_of_target(request, false)),
            Reads::Body | Reads::Json => Some(digest_of_target(request, true)),
        };
        Self {
            credentials: if caller.is_none() { credentials } else { Credentials::default() },
            caller,
            trace: TraceParent::of(request.headers()).map(Box::new),
            target,
            body: InputBody::NotRead,
            upload: None,
        }
    }

    /// Reads the body, if it is part of the fingerprint.
    pub(super) async fn read_body(
        &mut self,
        request: &mut Request,
        reads: Reads,
        registry: Option<&Registry>,
        limit: BodyLimit,
    ) {
        let form = match reads {
            Reads::Nothing | Reads::Target => None,
            Reads::Body => Some(BodyForm::Bytes),
            Reads::Json => Some(BodyForm::Json),
        };
        if let Some(form) = form {
            let limited = self.body_limit_of_caller(is_small(request), registry);
            // Boxed, so that the future of the handler stays small.
            let permit = OptionFuture::from(limited.map(|(permits, caller)| Box::pin(permits.read_body(caller)))).await;
            // The permit is held while the body is read.
            self.body = match &permit {
                Some(None) => InputBody::NotPermitted,
                None | Some(Some(_)) => read(request, form, limit).await,
            };
        }
        if matches!(self.body, InputBody::NotRead | InputBody::NotPermitted) {
            let limit = limit.bytes(request);
            self.upload = Upload::of(request, limit);
        }
    }

    /// Returns the limit by which the body may have to wait, and the caller that it counts for. The handler may name
    /// another caller later.
    fn body_limit_of_caller<'r>(
        &self,
        is_small: bool,
        registry: Option<&'r Registry>,
    ) -> Option<(&'r Arc<CallerLimit>, Caller)> {
        let registry = registry.filter(|registry| !is_small && !registry.is_disabled())?;
        let limit = registry.caller_limit()?;
        Some((limit, Caller::of(self.caller.as_deref(), registry.credential_headers(), &self.credentials)))
    }
}

/// A body that is read when the gate knows that the request may claim a key.
pub(crate) struct BodyReading {
    pub(super) claim_input: ClaimInput,
    pub(super) reads: Reads,
    pub(super) registry: Option<Registry>,
}

impl BodyReading {
    /// Returns the content of the request for `Gate::set_claim_input`.
    pub(crate) async fn read(mut self, request: &mut Request, limit: BodyLimit) -> ClaimInput {
        self.claim_input.read_body(request, self.reads, self.registry.as_ref(), limit).await;
        self.claim_input
    }
}

/// Calls a function of the application with the head of the request, and returns the function's result.
pub(crate) fn ask(request: &mut Request, function: &OfRequest) -> Option<String> {
    let (parts, body) = mem::take(request).into_parts();
    let answer = function(&parts);
    *request = Request::from_parts(parts, body);
    answer
}

/// Reads and digests the body. The handler can still read it afterwards.
async fn read(request: &mut Request, form: BodyForm, limit: BodyLimit) -> InputBody {
    if has_several_boundaries(request.headers()) {
        return InputBody::Broken(Box::new((StatusCode::BAD_REQUEST, SEVERAL_BOUNDARIES.to_owned())));
    }
    match buffer(request, limit).await {
        Ok(bytes) => InputBody::Read(digest_of_body(request.headers(), &bytes, form)),
        Err(broken) => InputBody::Broken(broken),
    }
}

const SEVERAL_BOUNDARIES: &str = "the media type has more than one `boundary`, so readers may divide the body in different \
     ways: send one";
