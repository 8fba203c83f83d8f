//! Whether a handler's last argument is a plain body extractor of axum's own: what the attribute asks of types.

use std::marker::PhantomData;
use std::ops::Deref;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Form, Multipart, RawForm, Request};
use bytes::BytesMut;

use crate::request::deferred::Extraction;
use crate::request::extract::Guarded;

/// A body extractor of axum's own.
pub trait PlainBody {}

/// Tells when an argument is extracted, by its type: the method for a `PlainBody` goes before that of `OtherExtractor`, to
/// which it dereferences.
#[derive(Debug)]
pub struct Probe<B>(OtherExtractor, PhantomData<fn() -> B>);

/// Any other type: a user's own extractor may verify a signature, which must stand before every replay.
#[derive(Debug)]
pub struct OtherExtractor(Extraction);

impl<B> Probe<B> {
    /// For this argument.
    pub const fn of<M>(_: &Guarded<B, M>) -> Self {
        Self(OtherExtractor(Extraction::BeforeClaim), PhantomData)
    }
}

impl<B: PlainBody> Probe<B> {
    /// Under the claim.
    pub const fn idempotent_extraction(&self) -> Extraction {
        Extraction::PlainBody
    }
}

impl<B> Deref for Probe<B> {
    type Target = OtherExtractor;

    fn deref(&self) -> &OtherExtractor {
        &self.0
    }
}

impl OtherExtractor {
    /// Before the claim.
    pub const fn idempotent_extraction(&self) -> Extraction {
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
