//! `IdempotencyLayer`: around routers and services, and around annotated handlers.

mod beneath;
mod claims_that_end;
mod copied;
mod covered;
mod extractors;
mod forwarded;
mod made_anew;
mod marks;
mod rebuilt;
mod services;
mod steps;
