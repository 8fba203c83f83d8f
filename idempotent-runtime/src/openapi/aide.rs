//! Documents annotated handlers for aide.

use std::marker::PhantomData;

use aide::generate::GenContext;
use aide::openapi::{Header, Operation, Parameter, PathItem, ReferenceOr, Response, Responses, StatusCode};
use aide::transform::TransformOpenApi;
use aide::{OperationInput, OperationOutput};

use crate::openapi::description::{Description, EXTENSION, object, replay_header};
use crate::openapi::problem::{COMPONENT, ProblemSchema, component};
use crate::openapi::recorded::Recorded;
use crate::policy::Policy;
use crate::policy::location::SourceLocation;
use crate::policy::registration::written_policies;
use crate::policy::values::Reads;
use crate::record::headers::REPLAYED;
use crate::request::extract::Guarded;
use crate::request::extract::{Reading, sealed};
use crate::request::idempotency::Idempotency;

/// A mode of [`Guarded`] that knows its handler's policy by [`identity`], and the declared return type.
#[derive(Debug)]
pub struct Documented<M, const IDENTITY: u128, R>(PhantomData<(M, fn() -> R)>);

impl<M, const IDENTITY: u128, R> sealed::Sealed for Documented<M, IDENTITY, R> {}

impl<M: Reading, const IDENTITY: u128, R> Reading for Documented<M, IDENTITY, R> {
    const READS: Option<Reads> = M::READS;
}

/// Identifies a handler's policy in a type: the FNV-1a hash of the handler's place and scope. The scope distinguishes
/// handlers that a macro has emitted at one place.
pub const fn identity(module: &str, function: &str, scope: &str, (file, line, column): (&str, u32, u32)) -> u128 {
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    hash = hashed(hash, module.as_bytes());
    hash = hashed(hash, function.as_bytes());
    hash = hashed(hash, scope.as_bytes());
    hash = hashed(hash, file.as_bytes());
    hash = hashed(hash, &line.to_le_bytes());
    hashed(hash, &column.to_le_bytes())
}

const fn hashed(mut hash: u128, bytes: &[u8]) -> u128 {
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u128).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        index += 1;
    }
    // No byte of UTF-8 has this value, so it separates two texts.
    (hash ^ 0xff).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
}

fn policy_of(wanted: u128) -> Option<&'static Policy> {
    written_policies().find(|policy| {
        let SourceLocation { module, function, .. } = *policy.location();
        let place = (policy.file(), policy.line(), policy.column());
        identity(module, function, policy.scope(), place) == wanted
    })
}

impl<B: OperationInput, M, const IDENTITY: u128, R: OperationOutput> OperationInput
    for Guarded<B, Documented<M, IDENTITY, R>>
{
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        B::operation_input(context, operation);
        let Some(policy) = policy_of(IDENTITY) else { return };
        let Description { key, extension, .. } = Description::new(policy, None, ProblemSchema::Inline);
        operation.extensions.entry(EXTENSION.to_owned()).or_insert(extension);
        if let Some((name, parameter)) = key
            && !operation.parameters.iter().any(|parameter| is_header(parameter, &name))
        {
            operation.parameters.push(ReferenceOr::Item(object(parameter)));
        }
    }

    /// Returns the responses that a handler's arguments may return early. Also adds the responses of the declared
    /// return type: aide has read the return type of the emitted function before, but that type is a plain response.
    fn inferred_early_responses(context: &mut GenContext, operation: &mut Operation) -> Vec<(Option<u16>, Response)> {
        let inferred = R::inferred_responses(context, operation);
        let responses = operation.responses.get_or_insert_default();
        for (status, response) in inferred {
            let response = ReferenceOr::Item(response);
            match status {
                Some(status) => _ = responses.responses.entry(StatusCode::Code(status)).or_insert(response),
                None => _ = responses.default.get_or_insert(response),
            }
        }
        let mut early = B::inferred_early_responses(context, operation);
        let Some(policy) = policy_of(IDENTITY) else { return early };
        let Description { rejections, recorded, .. } = Description::new(policy, None, problem_schema(context));
        let responses = operation.responses.get_or_insert_default();
        for (status, rejection) in rejections {
            let rejection = object(rejection);
            match early.iter_mut().find(|(early, _)| *early == Some(status)) {
                Some((_, response)) => add(response, rejection),
                None => reject(responses, status, rejection),
            }
        }
        mark_replays(responses, &recorded);
        early
    }
}

impl OperationInput for Idempotency {}

#[cfg(feature = "__transactions")]
impl<DB: sqlx::Database> OperationInput for crate::transaction::tx::Tx<DB> {}

/// Marks the recorded responses that a handler's `…_with` transform has documented. aide runs these transforms last, so
/// pass this function to `ApiRouter::finish_api_with`.
///
/// ```
/// use aide::axum::{ApiRouter, routing::post_with};
/// use aide::openapi::OpenApi;
/// use axum::http::StatusCode;
/// use idempotent_runtime::{idempotent, openapi};
///
/// #[idempotent(scope = "charges", cache = [201])]
/// async fn create_charge(order: String) -> (StatusCode, String) {
///     (StatusCode::CREATED, format!("charged for {order}"))
/// }
///
/// let mut document = OpenApi::default();
/// let app: axum::Router = ApiRouter::new()
///     .api_route("/charges", post_with(create_charge, |operation| operation.response::<201, String>()))
///     .finish_api_with(&mut document, openapi::complete);
/// let document = serde_json::to_value(document)?;
/// let created = &document["paths"]["/charges"]["post"]["responses"]["201"];
/// assert!(created["headers"]["idempotent-replayed"].is_object());
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn complete(mut api: TransformOpenApi<'_>) -> TransformOpenApi<'_> {
    let paths = api.inner_mut().paths.iter_mut().flat_map(|paths| paths.paths.values_mut());
    for operation in paths.filter_map(ReferenceOr::as_item_mut).flat_map(operations) {
        let statuses = operation.extensions.get(EXTENSION).and_then(|extension| extension.get("statuses"));
        if let Some(recorded) = statuses.and_then(Recorded::from_json) {
            mark_replays(operation.responses.get_or_insert_default(), &recorded);
        }
    }
    api
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, options, head, patch, trace, .. } = item;
    [get, put, post, delete, options, head, patch, trace].into_iter().flatten()
}

/// Returns the form of the schema: a reference to one component, unless the document is generated without components.
fn problem_schema(context: &mut GenContext) -> ProblemSchema {
    if context.schema.settings().inline_subschemas {
        return ProblemSchema::Inline;
    }
    context.schema.definitions_mut().entry(COMPONENT).or_insert_with(component);
    ProblemSchema::Component
}

fn is_header(parameter: &ReferenceOr<Parameter>, name: &str) -> bool {
    matches!(parameter, ReferenceOr::Item(Parameter::Header { parameter_data, .. })
        if parameter_data.name.eq_ignore_ascii_case(name))
}

fn mark_replays(responses: &mut Responses, recorded: &Recorded) {
    let documented: Vec<String> = responses.responses.keys().map(ToString::to_string).collect();
    let may_be = |key: &str| recorded.may_be(key, &documented);
    let by_status = responses.responses.iter_mut().filter(|(status, _)| may_be(&status.to_string()));
    let default = responses.default.iter_mut().filter(|_| may_be("default"));
    for response in by_status.map(|(_, response)| response).chain(default) {
        if let ReferenceOr::Item(response) = response {
            add_header(response, REPLAYED.as_str(), ReferenceOr::Item(object(replay_header())));
        }
    }
}

/// Adds the rejection to the documented response of this status. If there is none, first copies the response of a range
/// or of `default`, because a separate response for the status would hide that response.
fn reject(responses: &mut Responses, status: u16, rejection: Response) {
    let Responses { responses, default, .. } = responses;
    let key = StatusCode::Code(status);
    let documented = responses.get(&key).or_else(|| responses.get(&StatusCode::Range(status / 100)));
    let mut response = match documented.or(default.as_ref()) {
        None => rejection.clone(),
        Some(ReferenceOr::Item(response)) => response.clone(),
        // A shared response, which other operations use too, is not changed.
        Some(ReferenceOr::Reference { .. }) => return,
    };
    add(&mut response, rejection);
    responses.insert(key, ReferenceOr::Item(response));
}

fn add(response: &mut Response, rejection: Response) {
    for (name, header) in rejection.headers {
        add_header(response, &name, header);
    }
    for (media_type, content) in rejection.content {
        response.content.entry(media_type).or_insert(content);
    }
}

fn add_header(response: &mut Response, name: &str, header: ReferenceOr<Header>) {
    if !response.headers.keys().any(|documented| documented.eq_ignore_ascii_case(name)) {
        response.headers.insert(name.to_owned(), header);
    }
}
