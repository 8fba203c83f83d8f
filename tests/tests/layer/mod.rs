//! `IdempotencyLayer`: around routers and services, and around annotated handlers.

mod beneath;
mod copied;
mod forwarded;
mod services;
