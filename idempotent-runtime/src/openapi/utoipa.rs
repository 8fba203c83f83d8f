//! Completes what `#[utoipa::path]` has documented.

use std::any::type_name;

use utoipa::Path;
use utoipa::openapi::path::{HttpMethod, Operation, ParameterIn};
use utoipa::openapi::{Header, RefOr, Response, Responses};

use crate::openapi::description::{Description, EXTENSION, object, replay_header};
use crate::policy::Policy;
use crate::record::headers::REPLAYED;

/// The operation of a handler, with what its policy adds: what the attribute's expansion calls.
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
        complete(&mut operation, Description::new(policy, only));
    }
    operation
}

/// Whether utoipa made the type for the policy's handler. `use elsewhere::*` can import the type of another handler with the
/// same name.
fn is_of<P>(policy: &Policy) -> bool {
    let plain = |path: &str| path.replace("r#", "");
    let (module, function) = policy.module_and_function();
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
    // OpenAPI requires a description, and utoipa leaves an empty one out.
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

/// The reason phrase of the status; for a class, `default` and an unknown status, the key itself says more than any word.
fn description_of(key: &str) -> String {
    let reason = key.parse().ok().and_then(|status: http::StatusCode| status.canonical_reason());
    reason.map_or_else(|| format!("Response {key}."), |reason| format!("{reason}."))
}

// aide has types of its own for these objects, so that this and its `reject` share no code.

/// Adds to the documented response of the status. Copies that of a range or of `default` first, which a response of its own
/// would hide.
fn reject(Responses { responses, .. }: &mut Responses, status: u16, rejection: Response) {
    let key = status.to_string();
    let range = format!("{}XX", status / 100);
    let documented = [key.as_str(), &range, "default"].into_iter().find_map(|key| responses.get(key).cloned());
    let mut response = match documented {
        None => rejection.clone(),
        Some(RefOr::T(response)) => response,
        // A shared response, which other operations use too.
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
