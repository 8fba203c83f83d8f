//! `IdempotencyLayer`: around routers and services, and around annotated handlers.

mod copied;
mod beneath;
mod forwarded;
mod services;
