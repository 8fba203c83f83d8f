//! The answers that the engine gives in the handler's place, as problem details (RFC 9457) or in the dialect of clients
//! that read another shape.

pub(crate) mod problem;
pub(crate) mod stripe;

pub use crate::rejection::problem::Rejection;
pub use crate::rejection::stripe::stripe;
