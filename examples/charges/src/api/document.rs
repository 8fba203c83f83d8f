//! The parts of the OpenAPI document that do not come from the routes.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use utoipa::openapi::RefOr;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, PartialSchema, ToSchema};

use crate::error::ErrorBody;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "charges",
        description = "A small payments API whose handlers survive retries.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    servers((url = "/", description = "The server of this document")),
    modifiers(&SecuritySchemes),
)]
pub(super) struct Document;

/// Users send their name, and the card network signs its events.
struct SecuritySchemes;

impl Modify for SecuritySchemes {
    fn modify(&self, document: &mut OpenApi) {
        let name =
            Http::builder().scheme(HttpAuthScheme::Bearer).description(Some("A name, which is believed.")).build();
        let format = "`t=<seconds since 1970>,v1=<hexadecimal HMAC-SHA256 of the time, a dot and the body>`";
        let signature = ApiKey::Header(ApiKeyValue::with_description("Network-Signature", format));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("name", SecurityScheme::Http(name));
        components.add_security_scheme("signature", SecurityScheme::ApiKey(signature));
    }
}

/// The responses with which the extractors of a handler with a body reject it.
pub(super) struct BodyErrors;

impl IntoResponses for BodyErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let rejection = |status: StatusCode, description: &str, media_types: &[&str]| {
            let response =
                media_types.iter().fold(ResponseBuilder::new().description(description), |response, media_type| {
                    let schema = match *media_type {
                        "application/json" => RefOr::Ref(Ref::from_schema_name(ErrorBody::name())),
                        _ => String::schema(),
                    };
                    response.content(*media_type, ContentBuilder::new().schema(Some(schema)).build())
                });
            (status.as_str().to_owned(), RefOr::T(response.build()))
        };
        let (text, json) = ("text/plain", "application/json");
        BTreeMap::from([
            rejection(StatusCode::BAD_REQUEST, "The body is no JSON", &[text]),
            rejection(
                StatusCode::UNAUTHORIZED,
                "The request names no user, or the signature of an event is missing, wrong or old",
                &[json],
            ),
            rejection(StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is said to be no JSON", &[text]),
            rejection(StatusCode::UNPROCESSABLE_ENTITY, "The body is not what it must be", &[text, json]),
        ])
    }
}
