//! `IdempotencyLayer`: around routers, around services, and around annotated handlers.

mod beneath;
mod claims_that_end;
mod copied;
mod covered;
mod extractors;
mod forwarded;
mod forwarding_extractors;
mod late;
mod made_anew;
mod marks;
mod middleware;
mod readiness;
mod rebuilt;
mod rejections;
mod request_bodies;
mod routers;
mod services;
mod step_owners;
mod steps;
