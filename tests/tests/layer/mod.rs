//! `IdempotencyLayer`: around routers and services, and around annotated handlers.

mod beneath;
mod copied;
mod covered;
mod extractors;
mod forwarded;
mod made_anew;
mod services;
mod steps;
