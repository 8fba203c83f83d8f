//! The guide: what to decide, and where each subject is documented.
//!
//! **Decide**, in this order:
//!
//! | page | the question |
//! |---|---|
//! | [`choosing_a_guarantee`] | What can a retry do if the process died in the handler? |
//! | [`choosing_a_store`] | Where are the records kept, and what can that store lose? |
//! | [`keys_and_callers`] | Who owns a key, where does it come from, and what must a retry repeat? |
//! | [`what_to_cache`] | Which responses are final, and which parts of them are recorded? |
//!
//! **Go further**:
//!
//! | page | the subject |
//! |---|---|
//! | [`extraction`] | arguments before and after the claim: extractors that load, consume or check |
//! | [`transactions`] | how a `Tx` can end, and what its client gets |
//! | [`errors_in_transactions`] | statements that fail in a `Tx`, savepoints, a unique violation that becomes a 409 |
//! | [`streaming`] | uploads, downloads and event streams |
//! | [`background_work`] | handlers without a client, spawned tasks, jobs |
//! | [`layer`] | whole routers, and routes that cannot be annotated |
//! | [`webhooks`] | events of Stripe, Standard Webhooks and GitHub: their signatures and keys |
//! | [`browsers`] | CORS, forms and `fetch` |
//! | [`middleware_order`] | the order of layers around a guard |
//! | [`testing`] | tests of your handlers |
//! | [`writing_a_store`] | a store of your own |
//!
//! **Operate**:
//!
//! | page | the subject |
//! |---|---|
//! | [`shutdown`] | running handlers at SIGTERM and in a rolling restart |
//! | [`changing_a_policy`] | what a retry gets across a deploy that changes a policy |
//! | [`metrics`] | metrics, dashboards, alerts and traces |
//! | [`inspector`] | a page for operators, and the program `idempotent` |
//! | [`openapi`] | what an OpenAPI document says about a handler |
//!
//! **Look up**:
//!
//! | page | the subject |
//! |---|---|
//! | [`arguments`] | every argument of the attribute |
//! | [`registry`] | every setting for all handlers |
//! | [`rejections`] | every status and code that the guard answers with |
//! | [`limits`] | what is guaranteed, and what is not |
//! | [`compatibility`] | the features of the crate; versions of axum, sqlx, SeaORM and others |
//! | [`glossary`] | the words |
//!
//! **Migrate**:
//!
//! | page | from |
//! |---|---|
//! | [`migrating_from_rustango`] | Rustango's router middleware |
//! | [`migrating_from_axum_idempotent`] | the crate `axum-idempotent` |
//! | [`migrating_from_idempotent`] | the crate `idempotent` |
//! | [`migrating_from_nothing`] | an API whose clients send no keys yet |
//!
//! The [cookbook](https://github.com/idempotent-rs/idempotent/blob/main/docs/cookbook.md) has commands to paste for the first
//! steps.

#![cfg_attr(
    not(all(
        feature = "inspector",
        feature = "metrics",
        feature = "near-cache",
        feature = "postgres",
        feature = "redis",
        feature = "seal",
        feature = "sqlite",
        feature = "testing",
        any(feature = "aide", feature = "utoipa"),
    )),
    allow(rustdoc::broken_intra_doc_links, reason = "the pages link to items of other features")
)]

macro_rules! pages {
    ($($page:ident: $text:literal),* $(,)?) => {
        $(
            #[doc = include_str!($text)]
            pub mod $page {}
        )*
    };
}

pages! {
    choosing_a_guarantee: "choosing_a_guarantee.md",
    choosing_a_store: "choosing_a_store.md",
    keys_and_callers: "keys_and_callers.md",
    what_to_cache: "what_to_cache.md",
    extraction: "extraction.md",
    transactions: "transactions.md",
    streaming: "streaming.md",
    background_work: "background_work.md",
    errors_in_transactions: "errors_in_transactions.md",
    layer: "layer.md",
    webhooks: "webhooks.md",
    browsers: "browsers.md",
    middleware_order: "middleware_order.md",
    testing: "testing.md",
    writing_a_store: "writing_a_store.md",
    shutdown: "shutdown.md",
    changing_a_policy: "changing_a_policy.md",
    metrics: "metrics.md",
    inspector: "inspector.md",
    openapi: "openapi.md",
    arguments: "arguments.md",
    registry: "registry.md",
    rejections: "rejections.md",
    limits: "limits.md",
    compatibility: "compatibility.md",
    glossary: "glossary.md",
    migrating_from_rustango: "migrating_from_rustango.md",
    migrating_from_axum_idempotent: "migrating_from_axum_idempotent.md",
    migrating_from_idempotent: "migrating_from_idempotent.md",
    migrating_from_nothing: "migrating_from_nothing.md",
}
