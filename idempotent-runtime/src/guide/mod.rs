//! The guide: what there is to decide, in the order in which it comes up.
//!
//! | page | the question |
//! |---|---|
//! | [`arguments`] | what can a policy say, and for whole routers? |
//! | [`choosing_a_guarantee`] | what may a retry do after the process died in the handler? |
//! | [`transactions`] | what may happen to a `Tx`, and what is its client told? |
//! | [`errors_in_transactions`] | what happens when a statement fails inside a `Tx`? |
//! | [`choosing_a_store`] | where do the records lie, and what can that place lose? |
//! | [`keys_and_callers`] | whose key is it, where does it come from, and what must a retry repeat? |
//! | [`what_to_cache`] | which responses are final, and what of them is kept? |
//! | [`streaming`] | uploads, downloads and events: what can be replayed? |
//! | [`background_work`] | what of a handler goes on without its client, and what of it survives? |
//! | [`webhooks`] | how do I verify the events of Stripe, Standard Webhooks and GitHub, and what is their key? |
//! | [`browsers`] | what do CORS, forms and `fetch` need? |
//! | [`middleware_order`] | in which order do layers go around a guard? |
//! | [`shutdown`] | what happens to running handlers at SIGTERM and in a rolling restart? |
//! | [`changing_a_policy`] | what does a retry get across a deploy that changes a policy? |
//! | [`compatibility`] | which versions of axum, sqlx, SeaORM and others? |
//! | [`writing_a_store`] | how do I add a store of my own? |
//! | [`rejections`] | what does a client get, and when? |
//! | [`limits`] | what holds, what does not, and what keeps records private? |
//! | [`documenting`] | what does an OpenAPI document say of a handler? |
//! | [`operating`] | how do operators look inside, and what do they watch? |
//! | [`testing_handlers`] | how does an application test its handlers? |
//! | [`glossary`] | what does a word mean? |
//!
//! Coming from somewhere else:
//!
//! | page | |
//! |---|---|
//! | [`migrating_from_rustango`] | its router middleware |
//! | [`migrating_from_axum_idempotent`] | the crate `axum-idempotent` |
//! | [`migrating_from_idempotent`] | the crate `idempotent` |
//! | [`migrating_from_nothing`] | an API whose clients send no keys yet |
//!
//! The [cookbook](https://github.com/idempotent-rs/idempotent/blob/main/docs/cookbook.md) has commands to paste for the
//! things that people try first.

#![cfg_attr(
    not(all(feature = "postgres", feature = "redis", feature = "sqlite", feature = "testing")),
    allow(rustdoc::broken_intra_doc_links, reason = "the pages link to what other features add")
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
    arguments: "arguments.md",
    rejections: "rejections.md",
    limits: "limits.md",
    documenting: "documenting.md",
    operating: "operating.md",
    testing_handlers: "testing_handlers.md",
    glossary: "glossary.md",
    choosing_a_guarantee: "choosing_a_guarantee.md",
    transactions: "transactions.md",
    errors_in_transactions: "errors_in_transactions.md",
    choosing_a_store: "choosing_a_store.md",
    keys_and_callers: "keys_and_callers.md",
    what_to_cache: "what_to_cache.md",
    streaming: "streaming.md",
    background_work: "background_work.md",
    webhooks: "webhooks.md",
    browsers: "browsers.md",
    middleware_order: "middleware_order.md",
    shutdown: "shutdown.md",
    changing_a_policy: "changing_a_policy.md",
    compatibility: "compatibility.md",
    writing_a_store: "writing_a_store.md",
    migrating_from_rustango: "migrating_from_rustango.md",
    migrating_from_axum_idempotent: "migrating_from_axum_idempotent.md",
    migrating_from_idempotent: "migrating_from_idempotent.md",
    migrating_from_nothing: "migrating_from_nothing.md",
}
