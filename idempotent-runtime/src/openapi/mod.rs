//! What the attribute adds to an OpenAPI document.
#[cfg(feature = "aide")]
mod aide;
mod description;
mod recorded;
#[cfg(feature = "utoipa")]
mod utoipa;

#[cfg(feature = "aide")]
pub use self::aide::complete;
#[cfg(feature = "aide")]
#[doc(hidden)]
pub use self::aide::{Documented, identity};
#[cfg(feature = "utoipa")]
#[doc(hidden)]
pub use self::utoipa::operation;
