//! The parameters of a request: form-encoded, with brackets for nesting, as Stripe's SDKs send them.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::ApiError;

/// Parameters by name. Each known parameter is taken out, so unknown ones are left.
pub(crate) struct Parameters(BTreeMap<String, Parameter>);

/// A parameter `name=value`, `name[key]=value` or `name[]=value`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Parameter {
    Text(String),
    Table(BTreeMap<String, Parameter>),
    List(#[expect(dead_code, reason = "no parameter is a list")] Vec<IgnoredAny>),
}

impl<S: Send + Sync> FromRequest<S> for Parameters {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let is_form = is_form(request.headers());
        let body = Bytes::from_request(request, state).await.map_err(|rejection| ApiError::UnreadableBody {
            status: rejection.status(),
            reason: rejection.body_text(),
        })?;
        if !is_form && !body.is_empty() {
            return Err(ApiError::NotAForm);
        }
        let form = serde_qs::Config::new().use_form_encoding(true);
        form.deserialize_bytes(&body).map(Self).map_err(|error| ApiError::MalformedForm(error.to_string()))
    }
}

impl Parameters {
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Parameter::Text(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::invalid(name, "must be a single value")),
        }
    }

    pub(crate) fn required_text(&mut self, name: &'static str) -> Result<String, ApiError> {
        self.text(name)?.filter(|text| !text.is_empty()).ok_or(ApiError::MissingParameter(name))
    }

    pub(crate) fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.text(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::invalid(name, "must be `true` or `false`")),
        }
    }

    pub(crate) fn table(&mut self, name: &'static str) -> Result<BTreeMap<String, String>, ApiError> {
        let not_a_table = || ApiError::invalid(name, &format!("must be given as `{name}[key]=value`"));
        let table = match self.0.remove(name) {
            None => BTreeMap::new(),
            Some(Parameter::Table(table)) => table,
            // An empty text is Stripe's form for no entries.
            Some(Parameter::Text(text)) if text.is_empty() => BTreeMap::new(),
            Some(_) => return Err(not_a_table()),
        };
        let texts = table.into_iter().map(|(key, value)| match value {
            Parameter::Text(text) => Ok((key, text)),
            Parameter::Table(_) | Parameter::List(_) => Err(not_a_table()),
        });
        texts.collect()
    }

    /// Fails if parameters were not taken.
    pub(crate) fn end(self) -> Result<(), ApiError> {
        self.0.into_keys().next().map_or(Ok(()), |name| Err(ApiError::UnknownParameter(name)))
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
    content_type.is_some_and(|content_type| content_type.starts_with(b"application/x-www-form-urlencoded"))
}
