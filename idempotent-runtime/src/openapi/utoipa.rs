//! Completes what `#[utoipa::path]` has documented.

use std::any::type_name;

use utoipa::openapi::path::{HttpMethod, Operation, ParameterIn, PathItem};
use utoipa::openapi::{Header, OpenApi, RefOr, Response, Responses};
use utoipa::{Modify, Path};

use crate::openapi::description::{Description, EXTENSION, object, replay_header};
use crate::openapi::problem::{COMPONENT, PROBLEM, ProblemSchema, component, reference};
use crate::policy::Policy;
use crate::policy::location::SourceLocation;
use crate::record::headers::REPLAYED;

/// The operation of a handler, with the additions of its policy. The attribute's expansion calls it.
pub fn operation<P: Path>(policy: &Policy) -> Operation {
    let mut operation = P::operation();
    if !is_of::<P>(policy) {
        return operation;
    }
    let methods = P::methods();
    let methods: Vec<_> = methods.iter().map(http_method).collect();
    let guarded: Vec<&str> = methods.iter().filter(|method| policy.guards(method)).map(http::Method::as_str).collect();
    if !guarded.is_empty() {
        let only = (guarded.len() < methods.len()).then_some(&*guarded);
        complete(&mut operation, Description::new(policy, only, ProblemSchema::Inline));
    }
    operation
}

/// Makes the schema of rejections one component of the document, to which each response refers with the codes of its status.
///
/// A handler cannot add a component through utoipa. So name this type among the modifiers of the document, or call
/// [`modify`](Modify::modify) if the document comes from `OpenApiRouter`. Import it with `use`, because utoipa accepts
/// no path in `modifiers(…)`.
///
/// ```
/// use idempotent_runtime::{idempotent, openapi::ProblemComponent};
/// use utoipa::OpenApi;
///
/// #[utoipa::path(post, path = "/charges", responses((status = 200, body = String)))]
/// #[idempotent(scope = "charges")]
/// async fn create_charge(order: String) -> String {
///     format!("charged for {order}")
/// }
///
/// #[derive(OpenApi)]
/// #[openapi(paths(create_charge), modifiers(&ProblemComponent))]
/// struct Document;
///
/// fn main() {
///     let document = serde_json::to_value(Document::openapi()).unwrap();
///     assert!(document["components"]["schemas"]["IdempotencyProblem"].is_object());
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ProblemComponent;

impl Modify for ProblemComponent {
    fn modify(&self, document: &mut OpenApi) {
        let items = document.paths.paths.values_mut();
        let responses = items.flat_map(operations).flat_map(|operation| operation.responses.responses.values_mut());
        let contents = responses.filter_map(|response| match response {
            RefOr::T(response) => response.content.get_mut(PROBLEM),
            RefOr::Ref(_) => None,
        });
        let schemas = contents.filter_map(|content| match content {
            RefOr::T(content) => content.schema.as_mut(),
            RefOr::Ref(_) => None,
        });
        let mut is_used = false;
        for schema in schemas {
            let whole = serde_json::to_value(&*schema).expect("a schema serialises");
            if whole["title"] == COMPONENT {
                let properties = &whole["properties"];
                *schema = object(reference(&properties["status"]["enum"], &properties["code"]["enum"]));
                is_used = true;
            }
        }
        if is_used {
            let components = document.components.get_or_insert_default();
            components.schemas.entry(COMPONENT.to_owned()).or_insert_with(|| object(component()));
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, options, head, patch, trace, .. } = item;
    [get, put, post, delete, options, head, patch, trace].into_iter().flatten()
}

/// Whether utoipa made the type for this policy's handler. `use elsewhere::*` can import the type of another handler
/// with the same name.
fn is_of<P>(policy: &Policy) -> bool {
    let plain = |path: &str| path.replace("r#", "");
    let SourceLocation { module, function, .. } = *policy.location();
    plain(type_name::<P>()) == plain(&format!("{module}::__path_{function}"))
}

fn http_method(method: &HttpMethod) -> http::Method {
    match method {
        HttpMethod::Get => http::Method::GET,
        HttpMethod::Post => http::Method::POST,
        HttpMethod::Put => http::Method::PUT,
        HttpMethod::Delete => http::Method::DELETE,
        HttpMethod::Options => http::Method::OPTIONS,
        HttpMethod::Head => http::Method::HEAD,
        HttpMethod::Patch => http::Method::PATCH,
        HttpMethod::Trace => http::Method::TRACE,
    }
}

/// Adds what the user has not documented.
fn complete(operation: &mut Operation, description: Description) {
    let Description { key, rejections, recorded, extension } = description;
    operation.extensions.get_or_insert_default().entry(EXTENSION.to_owned()).or_insert(extension);
    if let Some((name, parameter)) = key {
        let parameters = operation.parameters.get_or_insert_default();
        let is_documented = parameters.iter().any(|parameter| match parameter {
            RefOr::T(parameter) => {
                parameter.parameter_in == ParameterIn::Header && parameter.name.eq_ignore_ascii_case(&name)
            }
            RefOr::Ref(_) => false,
        });
        if !is_documented {
            parameters.push(RefOr::T(object(parameter)));
        }
    }
    // OpenAPI requires a description, but utoipa omits an empty one.
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            response.description = description_of(status);
        }
    }
    for (status, response) in rejections {
        reject(&mut operation.responses, status, object(response));
    }
    let responses = &mut operation.responses.responses;
    let documented: Vec<String> = responses.keys().cloned().collect();
    for (status, response) in responses {
        if let RefOr::T(response) = response
            && recorded.may_be(status, &documented)
        {
            add_header(response, REPLAYED.as_str(), RefOr::T(object(replay_header())));
        }
    }
}

/// The reason phrase of the status. For a class, `default` or an unknown status, the key itself says most.
fn description_of(key: &str) -> String {
    let reason = key.parse().ok().and_then(|status: http::StatusCode| status.canonical_reason());
    reason.map_or_else(|| format!("Response {key}."), |reason| format!("{reason}."))
}

// aide has its own types for these objects, so this function and its `reject` share no code.

/// Adds the rejection to the documented response of this status. If there is none, first copies the response of a range
/// or of `default`: a separate response for the status would hide that one.
fn reject(Responses { responses, .. }: &mut Responses, status: u16, rejection: Response) {
    let key = status.to_string();
    let range = format!("{}XX", status / 100);
    let documented = [key.as_str(), &range, "default"].into_iter().find_map(|key| responses.get(key).cloned());
    let mut response = match documented {
        None => rejection.clone(),
        Some(RefOr::T(response)) => response,
        // A shared response, which other operations use too, is not changed.
        Some(RefOr::Ref(_)) => return,
    };
    for (name, header) in rejection.headers {
        add_header(&mut response, &name, header);
    }
    for (media_type, content) in rejection.content {
        response.content.entry(media_type).or_insert(content);
    }
    responses.insert(key, RefOr::T(response));
}

fn add_header(response: &mut Response, name: &str, header: RefOr<Header>) {
    if !response.headers.keys().any(|documented| documented.eq_ignore_ascii_case(name)) {
        response.headers.insert(name.to_owned(), header);
    }
}
