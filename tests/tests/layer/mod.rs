//! `IdempotencyLayer`: around routers and services, and around annotated handlers.

mod beneath;
mod copied;
mod covered;
mod forwarded;
mod services;
