//! The answers of the guard instead of the handler's response, as problem details (RFC 9457) or in the format that
//! other clients expect.

pub(crate) mod mark;
pub(crate) mod problem;
pub(crate) mod rendering;
pub(crate) mod request;
pub(crate) mod stripe;

pub use crate::rejection::problem::Rejection;
pub use crate::rejection::request::RejectedRequest;
pub use crate::rejection::stripe::stripe;
