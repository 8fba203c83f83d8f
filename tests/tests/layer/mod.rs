//! `IdempotencyLayer`: around routers and services, and around annotated handlers.

mod beneath;
mod forwarded;
mod services;
