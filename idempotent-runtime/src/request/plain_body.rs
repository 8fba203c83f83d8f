//! Finds out at compile time whether a handler's last argument is a plain body extractor of axum.

use std::marker::PhantomData;
use std::ops::Deref;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Form, Multipart, RawForm, Request};
use bytes::BytesMut;

use crate::request::deferred::ExtractionTime;
use crate::request::extract::Guarded;

/// A body extractor of axum.
pub trait PlainBody {}

/// Decides by an argument's type when it is extracted. The compiler prefers the method for a `PlainBody` to the method
/// of `OtherExtractor`, to which this type dereferences.
#[derive(Debug)]
pub struct Probe<B>(OtherExtractor, PhantomData<fn() -> B>);

/// Any other type. For example, a user's own extractor may verify a signature, which must happen before every replay.
#[derive(Debug)]
pub struct OtherExtractor(ExtractionTime);

impl<B> Probe<B> {
    /// Creates the probe for this argument.
    pub const fn of<M>(_: &Guarded<B, M>) -> Self {
        Self(OtherExtractor(ExtractionTime::BeforeClaim), PhantomData)
    }
}

impl<B: PlainBody> Probe<B> {
    /// Returns that the argument is extracted under the claim.
    pub const fn idempotent_extraction(&self) -> ExtractionTime {
        ExtractionTime::PlainBody
    }
}

impl<B> Deref for Probe<B> {
    type Target = OtherExtractor;

    fn deref(&self) -> &OtherExtractor {
        &self.0
    }
}

impl OtherExtractor {
    /// Returns that the argument is extracted before the claim.
    pub const fn idempotent_extraction(&self) -> ExtractionTime {
        self.0
    }
}

macro_rules! plain_bodies {
    ($([$($parameter:ident)?] $body:ty),* $(,)?) => {
        $(
            impl<$($parameter)?> PlainBody for $body {}
            impl<$($parameter)?> PlainBody for Option<$body> {}
            impl<$($parameter,)? Rejection> PlainBody for Result<$body, Rejection> {}
        )*
    };
}

plain_bodies! {
    [T] Json<T>, [T] Form<T>, [] RawForm, [] Multipart, [] Bytes, [] BytesMut, [] String, [] Body, [] Request,
}
